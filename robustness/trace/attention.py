"""Attention weights: by distance, on the first token, and their entropy.

Not every block has attention weights (linear attention keeps a state instead), and the number of
heads may differ between blocks. Tensors that an attention returns are therefore checked for the
properties of weights.

Trace bodies reach this module, so it keeps to plain functions of tensors: it travels as source.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from robustness.trace import block_calls, numerics

if TYPE_CHECKING:
    from robustness.trace.types import Captured, Modules, TokenFacts


def weights(queries: Tensor, keys: Tensor, mask: Tensor | None, scaling: float | None) -> Tensor:
    """Attention weights, softmax(q · k scaling) over the keys that a query may see.

    Parameters
    ----------
    queries : tensor of shape (sequence, head, query, feature)
        Queries after rotary embeddings, as they are compared with keys.
    keys : tensor of shape (sequence, group, key, feature)
        Keys; a group of heads shares its keys (grouped-query attention).
    mask : tensor of shape (1 or sequence, 1 or head, query, key), optional
        True where a query sees a key, or numbers to add to the scores. By default a query sees the
        keys up to its own.
    scaling : float, optional
        Factor of the scores; by default one over the square root of the number of features.

    Returns
    -------
    tensor of shape (sequence, head, query, key)
        Weights in float32, or in the queries' type if that is wider.
    """
    queries, keys = numerics.precise(queries), numerics.precise(keys)
    scale = queries.shape[-1] ** -0.5 if scaling is None else scaling
    keys = keys.repeat_interleave(queries.shape[1] // keys.shape[1], 1)
    with numerics.exactly(queries.device):
        scores = queries @ keys.transpose(-1, -2) * scale
    if mask is None:
        shape = scores.shape[-2:]
        mask = torch.ones(shape, dtype=torch.bool, device=scores.device).tril(shape[1] - shape[0])
    # Transformers gives a boolean mask to sdpa attention, and numbers to eager attention.
    if mask.dtype == torch.bool:
        scores = scores.masked_fill(~mask, -torch.inf)
    else:
        scores = scores + mask
    return scores.softmax(-1)


NAMES = ("module", "query", "key", "value", "attention_mask")
"""Names of the positional arguments of transformers' attention interface."""


def read(part: Any, eager: bool) -> Any:
    """Wait for an attention of the clean run, and return its weights.

    Parameters
    ----------
    part : Envoy
        Attention of a block.
    eager : bool
        Whether it returns its weights; else they are computed from its queries and keys.
    """
    if eager:
        return _returned_weights(part.output)
    return _computed_weights(_arguments(part.source.attention_interface_1.inputs))


def inspect(part: Any, eager: bool, shape: Sequence[int], tolerance: float) -> tuple[int, str]:
    """Wait for an attention, and return its number of heads, or 0 and why it has no weights.

    Weights are not negative, add up to at most one (less where a sink takes some), and are 0 for
    later tokens. Where they are computed, their product with the values must be the model's own.

    Parameters
    ----------
    part, eager
        As for `read`.
    shape : sequence of int
        Numbers of sequences and of tokens of the text.
    tolerance : float
        Largest error of sums and products of weights.
    """
    if eager:
        found = _returned_weights(part.output)
        reason = _flaw(found, shape, tolerance)
        return (0 if reason else found.shape[1]), reason
    call = part.source.attention_interface_1
    given, made = _arguments(call.inputs), block_calls.first(call.output)
    try:
        found = _computed_weights(given)
        reason = _flaw(found, shape, tolerance) or _missed(found, given["value"], made, tolerance)
        return (0 if reason else found.shape[1]), reason
    # An attention may call the interface in any way, with arguments of any shape.
    except (TypeError, ValueError, RuntimeError, LookupError, AttributeError):
        return 0, "it does not call transformers' attention interface as others do"


def _arguments(inputs: Any) -> dict[str, Any]:
    """Return the arguments of a call of transformers' attention interface by name."""
    args, kwargs = inputs
    return {"attention_mask": None, **dict(zip(NAMES, args)), **kwargs}


def _returned_weights(out: Any) -> Any:
    """Return the second value that an attention returns, or None without one."""
    return out[1] if isinstance(out, tuple) and len(out) > 1 else None


def _computed_weights(given: dict[str, Any]) -> Tensor:
    """Return the weights that follow from the arguments of the attention interface."""
    return weights(given["query"], given["key"], given["attention_mask"], given.get("scaling"))


def _flaw(found: Any, shape: Sequence[int], tolerance: float) -> str:
    """Return why a value cannot be the attention weights of a text, or an empty text."""
    sequences, length = shape
    if not isinstance(found, Tensor):
        return "it hands over no weights"
    if found.ndim != 4 or (len(found), *found.shape[2:]) != (sequences, length, length):
        return (
            f"it hands over a tensor of shape {tuple(found.shape)}, and no weights (sequence, "
            f"head, {length}, {length}) of {length} tokens on each other"
        )
    found = numerics.precise(found)
    low, high = float(found.min()), float(found.sum(-1).max())
    later = float(found.triu(1).abs().max())
    # Asked this way round, so that NaN is a flaw too.
    if not (low >= 0 and high <= 1 + tolerance and later <= tolerance):
        return (
            f"what it hands over is no weights: the least is {low:.2g}, they add up to as much as "
            f"{high:.2g}, and a later token has {later:.2g}"
        )
    return ""


def _missed(found: Tensor, values: Tensor, made: Tensor, tolerance: float) -> str:
    """Return the error of the product of weights and values, if it is above the tolerance."""
    values = numerics.precise(values)
    values = values.repeat_interleave(found.shape[1] // values.shape[1], 1)
    with numerics.exactly(found.device):
        ours = (found @ values).transpose(1, 2)
    made = numerics.precise(made).view_as(ours)
    # An attention may write nothing at all.
    off = float((ours - made).norm() / made.norm().clamp(min=torch.finfo(made.dtype).tiny))
    if off <= tolerance:
        return ""
    return f"weights of its queries and keys miss what it makes of its values (off by {off:.2g})"


def profile(captured: Captured, facts: TokenFacts) -> dict[str, Tensor]:
    """Average a pattern over its queries: by offset, on the first token, and its entropy.

    Queries are those from position `offsets` + 1 on, so that each has a token at every offset and
    none of these is the first token.

    Parameters
    ----------
    captured : Captured
        Captured tensors with `pattern` (sequence, head, query, key), if the block has weights.
    facts : TokenFacts
        Facts with `offsets`, the largest offset, and `lengths` (sequence).

    Returns
    -------
    dict of str to tensor
        `profile` (head, offset, sequence), the mean weight on the token `offset` positions before
        the query; `first_token` (head, sequence), the mean weight on the first token; `entropy`
        (head, sequence), the mean entropy of the weights in nats. Empty without a pattern.
    """
    if "pattern" not in captured:
        return {}
    pattern, first = captured["pattern"], facts["offsets"] + 1
    length = pattern.shape[-1]
    rows = pattern[:, :, first:]
    real = torch.arange(first, length, device=pattern.device) < facts["lengths"][:, None]

    def mean(values: Tensor) -> Tensor:
        return (values * real[:, None]).sum(-1) / real.sum(-1)[:, None]

    by_offset = []
    for offset in range(first):
        # The diagonal begins at query `offset`; queries before `first` are left out.
        diagonal = pattern.diagonal(-offset, -2, -1)
        by_offset.append(mean(diagonal[..., first - offset :]))
    return {
        "profile": torch.stack(by_offset).permute(2, 0, 1),
        "first_token": mean(rows[..., 0]).T,
        "entropy": mean(torch.special.entr(rows).sum(-1)).T,
    }


def finish(
    taken: Sequence[dict[str, Tensor]], modules: Modules, facts: TokenFacts
) -> dict[str, Tensor]:
    """Stack over layers, (layer, head, …), with NaN for heads and weights that a layer lacks."""
    with_weights = [of_layer for of_layer in taken if of_layer]
    stacked = {}
    for name in with_weights[0]:
        values = [of_layer[name] for of_layer in with_weights]
        heads = max(map(len, values))
        whole = values[0].new_full((len(taken), heads, *values[0].shape[1:]), torch.nan)
        for row, of_layer in zip(whole, taken):
            if of_layer:
                row[: len(of_layer[name])] = of_layer[name]
        stacked[name] = whole
    return stacked
