"""Size of the cache of keys and values, measured on a copy of the model without weights."""

import copy
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from robustness.errors import is_out_of_memory
from robustness.models.model import Model


def cached_numbers(model: Model) -> tuple[int, ...] | None:
    """Return how many numbers the cache of every block keeps for each token, or None if unknown.

    They are counted in the cache that transformers makes: 2 · key-value heads · width of a head for
    most families, fewer where heads share keys, and 0 for states that do not grow with the text. In
    a block with a sliding window, the cache stops growing where the window is full. Nothing is
    computed, and no memory is taken.

    Parameters
    ----------
    model : Model
        An opened model; its weights may be on a server.
    """
    try:
        net = _sketch(model)
        one, two = (_numbers(net, length) for length in (1, 2))
    except Exception as error:  # whatever a model's own code raises without weights
        if is_out_of_memory(error):
            raise
        return None
    # Blocks that use the keys of others have no cache of their own, and it is not said which.
    if not len(one) == len(two) == model.layers:
        return None
    return tuple(more - less for less, more in zip(one, two))


def _sketch(model: Model) -> Any:
    """Return a model of the same configuration whose tensors have shapes and no numbers."""
    module = model.traced._module
    with torch.device("meta"):
        net = type(module)._from_config(
            copy.deepcopy(module.config),
            dtype=module.dtype,
            attn_implementation=module.config._attn_implementation,
        )
    # Other implementations of experts read values, which fake tensors do not have.
    net.set_experts_implementation("batched_mm")
    return net.eval()


def _numbers(net: Any, length: int) -> list[int]:
    """Return how many numbers the cache of every block holds after a text of some tokens."""
    tokens = torch.zeros((1, length), dtype=torch.long, device="meta")
    with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True):
        output = net(input_ids=tokens, use_cache=True)
    # State-space models have another name for it.
    cache = output.get("past_key_values") or output["cache_params"]
    counts = []
    for layer in cache.layers:
        tensors = [value for value in vars(layer).values() if isinstance(value, Tensor)]
        counts.append(sum(tensor.numel() for tensor in tensors))
    return counts
