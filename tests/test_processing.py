import pytest
import torch
from families import BLOCKS, LAYERS, random_tokens, rebuilt, tiny

from robustness.errors import Refusal
from robustness.models.opening import open_model
from robustness.models.weight_processing import centre_writing, fold_norm, process

SCHEDULES = (
    tuple(range(LAYERS)),
    (0, 2, 1, 3),
    (1, 3),
    (0, 1, 1, 2, 3, 3),
)


def log_probabilities(net, schedule):
    with torch.no_grad():
        logits = rebuilt(net, schedule)(random_tokens(2, 12), use_cache=False).logits
    return logits.log_softmax(-1)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"fold": False},
        {"centre_writes": False},
        {"fold": False, "centre_writes": False},
        {"centre_head": False},
    ],
    ids=str,
)
def test_processing_leaves_predictions_alone_under_any_schedule(family, plain, options):
    net = process(open_model(tiny(family)), **options)
    changed = any(
        not torch.equal(a, b) for a, b in zip(net.parameters(), plain.parameters(), strict=False)
    )
    assert changed or options == {"fold": False, "centre_writes": False}
    for schedule in SCHEDULES:
        torch.testing.assert_close(
            log_probabilities(net, schedule), log_probabilities(plain, schedule),
            atol=1e-6 if family in {"llama", "qwen2"} else 1e-11, rtol=0,
        )  # fmt: skip


def test_folded_norms_have_nothing_left_and_centred_weights_no_mean(family):
    net = process(open_model(tiny(family)))
    head = net.get_output_embeddings().weight
    torch.testing.assert_close(head.mean(0), torch.zeros_like(head[0]), atol=1e-12, rtol=0)
    for name, parameter in net.named_parameters():
        if "norm" in name or ".ln" in name:
            expected = torch.ones if name.endswith("weight") else torch.zeros
            torch.testing.assert_close(parameter, expected(parameter.shape, dtype=torch.float64))


def test_centring_what_is_written_is_refused_where_it_changes_the_model():
    with pytest.raises(Refusal, match=r"root-mean-square norms: centring .* would change"):
        process(open_model(tiny("llama")), centre_writes=True)


def test_that_it_would_change_it_is_true():
    net = tiny("llama")
    before = log_probabilities(net, SCHEDULES[0])
    with torch.no_grad():
        for block in net.model.layers:
            for part in (block.self_attn.o_proj, block.mlp.down_proj):
                part.weight.copy_(centre_writing(part.weight)[0])
    assert (log_probabilities(net, SCHEDULES[0]) - before).abs().max() > 0.1


def test_the_original_is_left_as_it_is(model, plain):
    process(model)
    own = model.traced._module.state_dict()
    for name, tensor in plain.state_dict().items():
        assert torch.equal(tensor, own[name]), name


def test_folding_is_the_norms_affine_map():
    torch.manual_seed(0)
    weight, bias, gain, shift, normed = (torch.randn(*s) for s in ((3, 4), (3,), (4,), (4,), (4,)))
    folded, moved = fold_norm(weight, bias, gain, shift)
    torch.testing.assert_close(folded @ normed + moved, weight @ (normed * gain + shift) + bias)
    assert fold_norm(weight, None, gain, None)[1] is None


@pytest.mark.parametrize("family", ["gemma", "olmo"])
def test_gains_that_exceed_one_and_norms_without_weights_are_folded_right(family):
    net = tiny(family)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if "norm" in name:
                parameter.normal_(std=0.3)
        found = process(open_model(net))(random_tokens(2, 12), use_cache=False).logits
        expected = net(random_tokens(2, 12), use_cache=False).logits
    difference = found.log_softmax(-1) - expected.log_softmax(-1)
    torch.testing.assert_close(difference, torch.zeros_like(difference), atol=5e-5, rtol=0)


def test_what_cannot_be_processed_is_refused():
    with pytest.raises(Refusal, match=r"sublayers do not each read .* through one norm"):
        process(open_model(tiny("olmo2")))


def streams(net, tokens):
    """What enters every block."""
    found = []
    path = BLOCKS[net.family if hasattr(net, "family") else net.config.model_type]
    for block in net.get_submodule(path):
        block.register_forward_pre_hook(
            lambda _m, args, kwargs: found.append(args[0] if args else kwargs["hidden_states"]),
            with_kwargs=True,
        )
    with torch.no_grad():
        net(tokens, use_cache=False)
    return torch.stack(found)


def test_the_stream_of_a_processed_model_has_no_mean(family):
    model = open_model(tiny(family))
    net = process(model)
    if model.normed and family not in {"llama", "qwen2"}:
        means = streams(net, random_tokens(2, 12)).mean(-1)
        torch.testing.assert_close(means, torch.zeros_like(means), atol=1e-12, rtol=0)


def test_normed_embeddings_cannot_be_centred():
    model = open_model(tiny("bloom"))
    with pytest.raises(Refusal, match=r"what enters block 0 .* cannot be centred .*centre_writes"):
        process(model)
    net = process(model, centre_writes=False)
    for schedule in SCHEDULES:
        expected = log_probabilities(tiny("bloom"), schedule)
        torch.testing.assert_close(log_probabilities(net, schedule), expected, atol=1e-11, rtol=0)


def test_a_matrix_that_writes_is_the_last_that_is_called_and_not_the_last_by_name():
    net = process(open_model(tiny("phi3")))
    for schedule in SCHEDULES:
        expected = log_probabilities(tiny("phi3"), schedule)
        torch.testing.assert_close(log_probabilities(net, schedule), expected, atol=1e-6, rtol=0)
    for name, parameter in net.named_parameters():
        if "norm" in name:
            assert (parameter == 1).all(), name
