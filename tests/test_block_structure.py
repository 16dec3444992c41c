import pytest
import torch
from families import random_tokens, tiny
from test_execution import corpus

from robustness.errors import Refusal
from robustness.measurements.measurement import local_attention
from robustness.measurements.observation import observe
from robustness.models.block_structure import examine
from robustness.models.opening import open_model

FACTS = {
    "gpt2": (False, True),
    "gpt_neox": (True, True),
    "llama": (False, False),
    "qwen2": (False, False),
    "phi": (True, True),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_how_blocks_are_put_together_is_measured(family, dtype):
    found = examine(open_model(tiny(family).to(dtype)))
    assert (found.parallel, found.centres) == FACTS[family] and not found.missing


def test_it_is_the_same_on_a_server(strict_model, family):
    found = examine(strict_model)
    assert (found.parallel, found.centres) == FACTS[family] and not found.missing


def test_outputs_that_are_summed_in_place_are_captured_before():
    net = tiny("falcon")
    written = []
    for block in net.transformer.h:
        block.mlp.register_forward_hook(lambda _m, _a, out: written.append(out.clone()))
    model = open_model(net)
    written.clear()
    with torch.no_grad():
        net(random_tokens(5, 12), use_cache=False)
    expected = torch.stack([out.norm(dim=-1)[:, 1:-1].mean(1) for out in written])
    data = observe(model, corpus(), ("norms",))["norms"]
    found = torch.from_numpy(data.mlp_norm.sel(processing="raw", statistic="mean").values)
    torch.testing.assert_close(found, expected)


def test_what_a_family_does_otherwise_is_refused_for_that_alone():
    opt = open_model(tiny("opt-350m"))
    assert observe(opt, corpus(), ("lens",))["lens"].kl.notnull().all()
    with pytest.raises(Refusal, match=r"norms cannot be measured: .*was found in 0 of 4 blocks"):
        observe(opt, corpus(), ("norms",))
    falcon = open_model(tiny("falcon"))
    with pytest.raises(Refusal, match=r"attention cannot be measured: .*`attention` eager"):
        observe(falcon, corpus(), (local_attention(6),))
