"""Sizes of batches and calls follow from free memory; see also `test_memory`."""

import math
from dataclasses import replace

import numpy as np
import pretended
import pytest
import torch
from test_execution import corpus
from transformers import AutoConfig, AutoModelForCausalLM

from robustness.measurements.observation import observe
from robustness.models.intermediates import numbers_of_token
from robustness.models.opening import open_model
from robustness.runs import sizes
from robustness.runs.settings import RunOptions
from robustness.sweeps import sweep
from robustness.sweeps.live_bytes import LiveBytes
from robustness.sweeps.preparation import prepare
from robustness.sweeps.settings import SweepSettings
from robustness.sweeps.tracing import measure_batch

GIB = 2**30

SHAPES = {
    "GPT-2": (768, 12, 7.1e6, 2),
    "8B": (4096, 32, 218e6, 2),
    "8B, float32": (4096, 32, 218e6, 4),
}
"""Width, layers, parameters of a block, and bytes of a number."""


def fitted(shape, free):
    width, layers, parameters, item = SHAPES[shape]
    states = 3 * layers
    of_state, of_call = states * width * item, int(2 * parameters / width * item)
    return sizes.fitting(free, of_state, of_call, 256), of_state, of_call


@pytest.mark.parametrize("shape", SHAPES)
def test_what_is_planned_fits_and_more_memory_never_means_less(shape):
    before = sizes.Sizes(1, 1)
    for gib in (0.5, 1, 2, 3.5, 7, 14, 22, 40, 75, 140):
        chosen, of_state, of_call = fitted(shape, int(gib * GIB))
        assert 1 <= chosen.text <= min(sizes.MOST_TEXT, chosen.call) <= sizes.MOST_CALL
        assert math.log2(chosen.text).is_integer() and math.log2(chosen.call).is_integer()
        assert chosen.call >= before.call
        assert chosen.text * chosen.call >= before.text * before.call
        share = sizes.SHARE * gib * GIB
        assert chosen.text * of_state + chosen.call * of_call <= share
        if share > 256 * of_state + sizes.LEAST_CALL * of_call:
            assert chosen.call >= sizes.LEAST_CALL
        before = chosen


@pytest.mark.parametrize(
    ("shape", "card", "text", "call"),
    [
        ("GPT-2", 3.5, 8192, 16384),  # a laptop's
        ("8B", 24 - 15 - 1, 4096, 8192),
        ("8B", 16 - 15, 256, 2048),
        ("8B", 80 - 15 - 1, 8192, 32768),
        ("8B, float32", 80 - 30 - 1, 8192, 32768),
    ],
)
def test_cards_of_usual_sizes(shape, card, text, call):
    assert fitted(shape, int(card * GIB))[0] == sizes.Sizes(text, call)


KINDS = {
    "gpt2": {"n_embd": 64, "n_head": 4, "n_layer": 4, "n_positions": 64},
    "gemma2": {
        "hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 4, "head_dim": 16,
        "num_attention_heads": 4, "num_key_value_heads": 2,
    },
    "qwen3_moe": {
        "hidden_size": 64, "moe_intermediate_size": 48, "num_hidden_layers": 4, "head_dim": 16,
        "num_attention_heads": 4, "num_key_value_heads": 2, "num_experts": 16,
        "num_experts_per_tok": 4,
    },
}  # fmt: skip


def wide(kind):
    """Return a model in which blocks take most of the memory, as in large ones."""
    torch.manual_seed(0)
    named = {**KINDS[kind], "vocab_size": 101, "bos_token_id": 0, "eos_token_id": 0}
    config = AutoConfig.for_model(kind, **named, pad_token_id=0)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_takes_about_what_was_planned(kind):
    model = open_model(wide(kind))
    text, cap = corpus(4, 64), 4
    work = prepare(model, text, SweepSettings(), RunOptions(batch_tokens=256, state_cap=cap))
    plan, matrix = work.plan(cap), model.unembedding()
    with LiveBytes() as live:
        measure_batch(work, slice(0, 4), plan, matrix)
    states = work.division.plan().peak * model.width
    planned = 4 * 256 * (states + cap * numbers_of_token(model, 64))
    assert live.most * 0.9 <= planned <= live.most * 2.5


def test_on_a_processor_and_for_a_server_sizes_are_constant(gpt2):
    assert sizes.choose(gpt2, lambda: 99, 12) == sizes.Sizes(1024, 2048)
    there = replace(gpt2, identity=gpt2.identity | {"device": "cuda"}, request={"backend": None})
    assert sizes.choose(there, lambda: 99, 12) == sizes.Sizes(8192, 65536)
    other = replace(gpt2, identity=gpt2.identity | {"device": "xpu"})
    assert sizes.choose(other, lambda: 99, 12) == sizes.Sizes(8192, 65536)


def there(kind):
    return open_model(wide("gpt2").to(kind))


@pytest.mark.slow
@pretended.needed
@pytest.mark.parametrize("kind", ["cuda", "mps"])
def test_little_free_memory_makes_small_batches_with_the_same_numbers(kind):
    text = corpus(64, 12)
    with pretended.machine(kind, memory=80 * GIB):
        whole = sweep(there(kind), text)
        assert (whole.batch_tokens, whole.state_cap) == (8192, 32768 // (64 * 12))
    with pretended.machine(kind, memory=8 * 2**20):
        model = there(kind)
        found = sweep(model, text)
        assert 12 < found.batch_tokens < 768 and not pretended.MEMORY.refusals
        seen = observe(model, text, ["norms"])["norms"]
        assert seen.batch_tokens < 8192
    np.testing.assert_allclose(found.kl, whole.kl, atol=2e-5)


@pytest.mark.slow
@pretended.needed
def test_a_run_goes_on_where_less_memory_is_free(tmp_path):
    text, path = corpus(64, 12), tmp_path / "a.nc"

    def stop(done, _total):
        if done:
            raise KeyboardInterrupt

    with pretended.machine("cuda", memory=8 * 2**20):
        with pytest.raises(KeyboardInterrupt):
            sweep(there("cuda"), text, out=path, progress=stop)
    with pretended.machine("cuda", memory=80 * GIB):
        found = sweep(there("cuda"), text, out=path)
        whole = sweep(there("cuda"), text)
    assert found.batch_tokens < whole.batch_tokens == 8192
    assert "batch_tokens 8192" in found.batches_changed
    np.testing.assert_allclose(found.kl, whole.kl, atol=2e-5)


@pretended.needed
def test_the_fullest_device_counts(monkeypatch):
    with pretended.machine("cuda", 2):
        model = there("cuda")
        model.traced._module.transformer.h[3].to("cuda:1")
        free = {"cuda:0": 5 * GIB, "cuda:1": 2 * GIB}
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free[str(device)], 0))
        assert sizes.free_bytes(model) == 2 * GIB
