import copy
from functools import cache

import pytest
import torch
from families import LAYERS, config, random_tokens, tiny
from transformers import AutoModelForCausalLM, DynamicCache

from robustness.errors import Refusal
from robustness.models.maps import Maps
from robustness.models.opening import open_model
from robustness.pruning.sizes import size_of
from robustness.pruning.units import without
from robustness.schedules import Attention, Mlp, StreamMap

CACHED = ("falcon", "gemma2", "llama", "qwen3")
"""Families with one head of keys, windows in some blocks, two heads, and heads of width 128."""


def plain(family: str, layers: int):
    """A model of transformers with as many blocks."""
    changed = config(family)
    changed.num_hidden_layers = layers
    if getattr(changed, "layer_types", None):
        changed.layer_types = changed.layer_types[:layers]
    return AutoModelForCausalLM.from_config(changed)


def count(net) -> int:
    return sum(weight.numel() for weight in net.parameters())


@cache
def opened(family: str):
    return open_model(tiny(family))


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_parameters_are_those_of_a_plain_model_with_fewer_blocks(family):
    for kept in range(1, LAYERS + 1):
        size = size_of(opened(family), tuple(range(kept)), 8)
        assert size.parameters == count(plain(family, kept))


def test_a_block_that_runs_twice_has_its_parameters_once_and_the_rest_twice(gpt2):
    once, twice = size_of(gpt2, (0, 1, 2, 3), 8), size_of(gpt2, (0, 1, 2, 3, 0, 1, 2, 3), 8)
    assert (once.parameters, once.flops_share) == (count(plain("gpt2", LAYERS)), 1)
    assert (twice.parameters, twice.flops_share) == (once.parameters, 2)
    assert twice.kv_bytes == 2 * once.kv_bytes


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_sublayers_take_their_norms_along(family):
    model = opened(family)
    whole = size_of(model, (0, 1, 2, 3), 8).parameters
    blocks = dict(model.traced._module.named_modules())[model.paths.block_list]
    parts = {
        "gpt2": ("ln_1", "attn", "ln_2", "mlp"),
        "llama": ("input_layernorm", "self_attn", "post_attention_layernorm", "mlp"),
    }[family]
    norm, attention, other, mlp = (count(blocks[1].get_submodule(name)) for name in parts)
    assert size_of(model, without(4, {Attention(1)}), 8).parameters == whole - norm - attention
    assert size_of(model, without(4, {Mlp(1)}), 8).parameters == whole - other - mlp
    assert size_of(model, (0, Mlp(1), Attention(1), 2, 3), 8).parameters == whole


def test_a_norm_that_both_sublayers_read_stays_with_the_other():
    model = opened("phi")
    block = model.traced._module.model.layers[2]
    whole = size_of(model, (0, 1, 2, 3), 8).parameters
    left = size_of(model, without(4, {Mlp(2)}), 8).parameters
    assert left == whole - count(block.mlp)


def test_a_tensor_that_two_blocks_share_stays_with_the_other():
    module = copy.deepcopy(tiny("gpt2"))
    module.transformer.h[1].mlp.c_fc.weight = module.transformer.h[0].mlp.c_fc.weight
    model = open_model(module)
    own = count(module.transformer.h[1]) - module.transformer.h[0].mlp.c_fc.weight.numel()
    assert size_of(model, (0, 2, 3), 8).parameters == count(module) - own


def test_the_share_of_operations_counts_attention_by_the_context(gpt2):
    def share(context: int) -> float:
        # 2 · parameters of the matrices, and 4 · tokens · width for the pattern, for each token.
        attention, mlp = 2 * 4 * 32 * 32 + 4 * context * 32, 2 * 8 * 32 * 32
        return (3 * (attention + mlp) + attention) / (4 * (attention + mlp))

    schedule = without(4, {Mlp(1)})
    for context in (4, 400):
        assert size_of(gpt2, schedule, context).flops_share == pytest.approx(share(context))


@pytest.mark.parametrize("family", CACHED)
def test_keys_and_values_are_those_that_a_cache_holds(family):
    model, net = opened(family), tiny(family)
    tokens, past = random_tokens(1, 3), DynamicCache(config=net.config)
    with torch.no_grad():
        net(input_ids=tokens, past_key_values=past, use_cache=True)
    held = [layer.keys.nbytes + layer.values.nbytes for layer in past.layers]
    for schedule, blocks in (((0, 1, 2, 3), range(4)), ((0, 3), (0, 3)), ((2, 2), (2, 2))):
        assert size_of(model, schedule, 8).kv_bytes * 3 == sum(held[block] for block in blocks)


def test_only_attentions_have_keys_and_values(gpt2):
    block = size_of(gpt2, (1,), 8).kv_bytes
    assert size_of(gpt2, (1, Attention(2), Mlp(3)), 8).kv_bytes == 2 * block
    assert size_of(gpt2, (Mlp(3),), 8).kv_bytes == 0


def test_keys_and_values_are_of_the_type_of_the_weights():
    narrow = open_model(tiny("llama", torch.bfloat16))
    assert size_of(opened("llama"), "0..", 8).kv_bytes == 4 * size_of(narrow, "0..", 8).kv_bytes


def test_a_state_that_does_not_grow_takes_nothing_for_a_token():
    assert size_of(opened("mamba"), (0, 1), 8).kv_bytes == 0


def test_a_model_without_a_cache_has_an_unknown_one():
    assert size_of(opened("openai-gpt"), (0, 1), 8).kv_bytes is None


def test_a_schedule_that_a_model_cannot_run_has_no_size(gpt2):
    with pytest.raises(Refusal, match="block 4"):
        size_of(gpt2, (0, 4), 8)
    with pytest.raises(Refusal, match="cannot be executed alone"):
        size_of(opened("mamba"), (0, Mlp(1)), 8)


def test_a_map_of_the_stream_counts_as_a_matrix_and_an_offset(gpt2):
    matrix, offset = torch.eye(32, dtype=torch.float64), torch.zeros(32, dtype=torch.float64)
    mapped = gpt2.with_maps(Maps({StreamMap(1, 2): matrix}, {StreamMap(1, 2): offset}))
    cut, healed = size_of(gpt2, "0-3", 8), size_of(mapped, "0-~1..2-3", 8)
    assert healed.parameters == cut.parameters + 32 * 32 + 32
    block = 2 * 12 * 32 * 32 + 4 * 8 * 32
    assert healed.flops_share == pytest.approx((2 * block + 2 * 32 * 32) / (4 * block))
    assert healed.kv_bytes == cut.kv_bytes
