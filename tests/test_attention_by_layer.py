"""Attention of models whose blocks are not alike, against what plain transformers hand over."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from oracles.plain import reduced
from strict import StrictBackend
from test_execution import corpus
from transformers import AutoConfig, AutoModelForCausalLM

from robustness.errors import Refusal
from robustness.measurements.clean_pass import Reading
from robustness.measurements.measurement import local_attention
from robustness.measurements.observation import observe
from robustness.measurements.short_texts import ShortTexts, scan
from robustness.models.opening import open_model

LOCAL = local_attention(6)

COMMON = {
    "vocab_size": 101, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0,
    "max_position_embeddings": 32, "bos_token_id": 0, "eos_token_id": 0,
    "initializer_range": 0.4,
}  # fmt: skip

EXPERTS = {
    "num_experts": 4, "num_local_experts": 4, "moe_intermediate_size": 16, "n_group": 1,
    "topk_group": 1, "num_experts_per_tok": 2, "shared_expert_intermediate_size": 16,
}  # fmt: skip

LATENT = {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4,
          "v_head_dim": 8}  # fmt: skip

LINEAR = ["linear_attention", "full_attention"] * 2

MODELS = {
    "minimax": {**EXPERTS, "layer_types": LINEAR},
    "afmoe": {**EXPERTS, "sliding_window": 5},
    "doge": {},
    "laguna": {**EXPERTS, "num_attention_heads_per_layer": [4, 2, 4, 2]},
    "kimi_linear": {
        **EXPERTS,
        **LATENT,
        "layer_types": LINEAR,
        "head_dim": 4,
        "num_key_value_heads": 4,
        "linear_head_dim": 8,
        "linear_num_heads": 4,
    },
    "qwen3_next": {**EXPERTS, "layer_types": LINEAR},
}
"""By type what has to be in its configuration."""

STATES = {"minimax", "kimi_linear", "qwen3_next"}
"""Every other block of these keeps a state, and has no weights."""


def tiny(kind, attention, **settings):
    settings = {**COMMON, **MODELS[kind], **settings}
    torch.manual_seed(1)
    net = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(kind, **settings), attn_implementation=attention, dtype=torch.float64
    )
    net.set_experts_implementation("eager")
    return net.eval()


def handed_over(kind, tokens):
    """Weights of every block, or None: those that are text by text and add up to one."""
    net, found = tiny(kind, "eager"), {}
    for layer, block in enumerate(net.model.layers):
        if hasattr(block, "self_attn"):
            block.self_attn.register_forward_hook(
                lambda _m, _a, out, layer=layer: found.__setitem__(layer, out)
            )
    with torch.no_grad():
        net(tokens, use_cache=False)
    stateful = range(0, 4, 2) if kind in STATES else ()
    return [None if layer in stateful else found[layer][1].numpy() for layer in range(4)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "attention"),
    [
        *((kind, attention) for kind in ("minimax", "laguna") for attention in ("eager", "sdpa")),
        *((kind, "sdpa") for kind in ("afmoe", "doge", "qwen3_next")),
        ("kimi_linear", "eager"),
    ],
)
def test_where_a_block_has_weights_they_are_the_models_own_and_elsewhere_none(kind, attention):
    text = corpus()
    model = open_model(tiny(kind, attention))
    assert model.identity["attention"] == attention
    data = observe(model, text, (LOCAL,))["attention"]
    patterns = handed_over(kind, torch.from_numpy(text.tokens))
    for layer, pattern in enumerate(patterns):
        here = data.isel(layer=layer)
        if pattern is None:
            assert all(here[name].isnull().all() for name in ("profile", "first_token", "entropy"))
            continue
        heads = pattern.shape[1]
        for name, values in reduced(pattern[None], 6).items():
            found = here[name].values
            np.testing.assert_allclose(found[:heads], values[0], atol=1e-6, err_msg=name)
            assert np.isnan(found[heads:]).all()
    uneven = kind in STATES or kind == "laguna"
    assert ("layers_left_out" in data.attrs) == uneven


@pytest.mark.slow
def test_it_is_the_same_on_a_server():
    model = open_model(tiny("minimax", "sdpa"))
    there = replace(model, request={"backend": StrictBackend(model.traced)})
    text = corpus()
    ours, theirs = (observe(each, text, (LOCAL,))["attention"] for each in (model, there))
    np.testing.assert_array_equal(ours.profile, theirs.profile)
    assert theirs.attrs["layers_left_out"].startswith("layers 0, 2: MiniMaxLightningAttention: ")


def test_what_takes_weights_of_every_block_alike_is_refused_where_they_are_not():
    for kind, reason in (("minimax", "layers 0, 2"), ("laguna", "blocks have 2 or 4 heads")):
        model = open_model(tiny(kind, "eager"))
        with pytest.raises(Refusal, match=reason):
            reading = Reading(lambda captured, text: captured, needs=("pattern",))
            next(scan(model, ShortTexts([[1, 2, 3]]), reading))


@pytest.mark.slow
def test_a_model_of_states_alone_is_refused():
    for attention in ("eager", "sdpa"):
        model = open_model(tiny("kimi_linear", attention, layer_types=["linear_attention"] * 4))
        with pytest.raises(Refusal, match="KimiLinearDeltaAttention: ") as refused:
            observe(model, corpus(), (LOCAL,))
        assert "\n" not in str(refused.value)


def test_an_attention_that_writes_nothing_has_weights():
    net = tiny("doge", "sdpa")
    for block in net.model.layers:
        torch.nn.init.zeros_(block.self_attn.v_proj.weight)
    data = observe(open_model(net), corpus(), (LOCAL,))["attention"]
    assert data.entropy.notnull().all() and "layers_left_out" not in data.attrs
