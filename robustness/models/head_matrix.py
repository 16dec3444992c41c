"""The matrix of a head: the head's own, or a centred copy in float32 or wider."""

from typing import Any

import torch
from accelerate.utils import align_module_device
from torch import Tensor

from robustness.models.compiled_reduction import compiled_absorb, compiled_totals, has_compiler
from robustness.models.exact_products import has_fast_bfloat16
from robustness.trace import numerics
from robustness.trace.types import HeadThere, Matrix, Squash

ROWS_AT_ONCE = 512
"""Number of rows that are converted to a wider type at once."""


def is_centred(head: Any, squash: Squash) -> bool:
    """Whether readouts are cheapest from a centred copy of a head's matrix.

    They are on a CPU, unless logits are capped, which no centring survives, or the weights are
    bfloat16 and the CPU multiplies these faster than float32.

    Parameters
    ----------
    head : Linear
        The head.
    squash : tuple
        Scale and soft cap of the logits.
    """
    weight = head.weight
    # An offloaded head is computed with where its hook puts it.
    device = head._hf_hook.execution_device if weight.is_meta else weight.device
    narrow = weight.dtype == torch.bfloat16 and has_fast_bfloat16()
    return torch.device(device).type == "cpu" and squash[1] is None and not narrow


def read(head: Any, squash: Squash, centred: bool, compiled: bool) -> Matrix:
    """Return the matrix of a head, as readouts take it.

    A centred one is multiplied by the scale of the logits and centred over the vocabulary: a number
    added to all logits of a token changes no readout, but GPT-2 adds about -100, which costs
    float32 its last digits.

    Parameters
    ----------
    head, squash
        As for `is_centred`.
    centred : bool
        Whether the matrix is a centred copy.
    compiled : bool
        Whether a CPU takes compiled sums over logits.
    """
    # An offloaded head is loaded for this, and what is returned outlives it.
    with align_module_device(head):
        weight = head.weight.detach()
        bias = None if head.bias is None else head.bias.detach()
        if centred:
            weight, bias = _centred(weight, bias, squash[0])
    matrix: Matrix = {
        "weight": weight,
        "bias": bias,
        "centred": centred,
        "squash": (1.0, None) if centred else squash,
    }
    if centred and compiled:
        matrix["totals"] = compiled_totals()
    elif not centred and has_compiler(weight.device):
        matrix["absorb"] = compiled_absorb()
    return matrix


def there(head: Any, squash: Squash, dtype: str, tokens: float) -> HeadThere | None:
    """Return what a trace on a server has to know of a head to take its matrix.

    Parameters
    ----------
    head : Module
        The head, without weights.
    squash : tuple
        Scale and soft cap of the logits.
    dtype : str
        Type of the weights on the server.
    tokens : float
        Number of tokens, each in every state, whose logits a request computes. Where traces are
        kept apart from the weights, the matrix is made of as many calls as it is wide.

    Returns
    -------
    HeadThere or None
        None for a head that is no matrix.
    """
    if not is_linear(head):
        return None
    biased = head.bias is not None
    return {
        "shape": (head.out_features, head.in_features),
        "dtype": dtype,
        "biased": biased,
        # Beside numbers that are large enough for a bias to vanish, float16 has none.
        "worth": tokens > head.in_features and not (biased and dtype == "float16"),
        "squash": squash,
    }


def is_linear(head: Any) -> bool:
    """Whether a head is a matrix, and perhaps a bias."""
    # A subclass of Linear may compute something else in its forward method.
    return type(head).forward is torch.nn.Linear.forward


def _centred(weight: Tensor, bias: Tensor | None, scale: float) -> tuple[Tensor, Tensor | None]:
    """Return a matrix and a bias minus their means over the vocabulary, times a scale."""
    weight = numerics.precise(weight)
    # Some rows at a time, since torch copies what it adds up into the wider type.
    sums = [rows.sum(0, dtype=torch.float64) for rows in weight.split(ROWS_AT_ONCE)]
    mean = torch.stack(sums).sum(0) / len(weight)
    weight = weight - mean.to(weight.dtype)
    if scale != 1.0:
        weight *= scale
    if bias is not None:
        bias = numerics.precise(bias)
        bias = (bias - bias.mean()) * scale
    return weight, bias
