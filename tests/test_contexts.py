"""What blocks are given besides the stream: masks only where needed, and no copies for stacks."""

import pytest
import torch
from families import SPECS, random_tokens, tiny

from robustness.models.opening import open_model
from robustness.sweeps.live_bytes import LiveBytes
from robustness.trace import block_calls, interpreter

OWN_ATTENTION = {
    "bloom", "codegen", "gemma2", "gpt_neo", "gptj", "mpt", "openai-gpt",
}  # fmt: skip
"""Families that have no attention but their own, which takes a mask always."""

ALWAYS_MASKED = {"falcon", "falcon-alibi", "falcon-new"}
"""Families whose own code makes a mask for torch's attention too."""

WINDOWED = {
    "cohere2", "exaone4", "gemma3", "gemma4", "mistral", "mixtral", "olmo3", "phi3", "qwen2",
    "qwen3", "starcoder2",
}  # fmt: skip
"""Families with windows, which torch's attention knows only from a mask."""

BY_SEQUENCE = {"bloom", "gemma4"}
"""Families with a context that differs between sequences, or lists them with their heads."""

SEQUENCES, COPIES = 3, 2


@pytest.fixture(scope="module", params=sorted(SPECS))
def opened(request):
    return request.param, open_model(tiny(request.param, torch.float32))


def masks(contexts):
    found = []
    for context in contexts:
        found += [tensor for path, tensor in block_calls.leaves(context) if tensor.ndim == 4]
    return found


def clean_run(model, length):
    tokens, blocks = random_tokens(SEQUENCES, length), model.blocks
    with torch.no_grad(), model.traced.trace(tokens, use_cache=False):
        states, contexts = interpreter.enter(blocks, {})
        found = [states, contexts].save()
    return found


def test_masks_are_made_only_where_torch_cannot_do_without(opened):
    """Else the fast kernels of torch's attention could not be taken."""
    family, model = opened
    _, contexts = clean_run(model, 11)
    has_mask = bool(masks(contexts["blocks"]))
    assert has_mask == (family in OWN_ATTENTION | ALWAYS_MASKED | WINDOWED)
    if family in WINDOWED:
        _, contexts = clean_run(model, 4)
        assert not masks(contexts["blocks"]), "the window is longer than the text"


def repeated(value, growth, path=()):
    """Return a context as stacked states need it, made by copying."""
    if isinstance(value, torch.Tensor):
        return torch.cat([value] * COPIES) if growth.get(path, len(value) == SEQUENCES) else value
    if isinstance(value, dict):
        return {key: repeated(inner, growth, (*path, key)) for key, inner in value.items()}
    if isinstance(value, tuple):
        return tuple(repeated(inner, growth, (*path, i)) for i, inner in enumerate(value))
    return value


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_stacked_states_share_their_context_without_a_copy(opened, attention):
    family, model = opened
    own = model.identity["attention"]
    if attention == "sdpa" != own:
        pytest.skip("it has no such attention")
    blocks, growth = model.blocks, model.grows
    model.traced._module.set_attn_implementation(attention)
    (states, contexts), copied = clean_run(model, 11), 0
    shared = interpreter.share(contexts, SEQUENCES)["blocks"]
    for block, state, before, after in zip(blocks, states, contexts["blocks"], shared, strict=True):
        with LiveBytes() as made:
            context = block_calls.widen(after, SEQUENCES, COPIES, growth)
        copied += made.most
        expected = repeated(before, growth)
        for (_, one), (_, other) in zip(
            block_calls.leaves(context), block_calls.leaves(expected), strict=True
        ):
            assert torch.equal(one, other)
        stacked = torch.cat([state, state.flip(1)])
        with torch.no_grad():
            found, wanted = (
                block_calls.call(block._module, stacked, given) for given in (context, expected)
            )
        assert torch.equal(found, wanted)
    model.traced._module.set_attn_implementation(own)
    assert bool(copied) == (family in BY_SEQUENCE)


def test_a_row_stands_for_all_only_if_they_are_equal():
    alike, other = torch.arange(6.0).repeat(3, 1), torch.arange(6.0).repeat(3, 1)
    other[2, 5] += 1
    of_heads, numbers = torch.ones(6, 2), torch.ones(3)
    context = ((alike, None), {"deep": {"other": other}, "heads": of_heads, "numbers": numbers})
    (first, second) = block_calls.share([context, context], 3)
    (found, _), named = first
    assert found.stride(0) == 0 and torch.equal(found, alike) and found is second[0][0]
    assert found.untyped_storage().nbytes() < alike.nbytes, "the other rows are kept"
    assert named["deep"]["other"] is other and named["heads"] is of_heads
    assert named["numbers"] is numbers
    (kept, _), named = block_calls.widen(first, 3, 2, {})
    assert kept.shape == (6, 6) and kept.stride(0) == 0
    assert torch.equal(named["deep"]["other"], torch.cat([other, other]))
