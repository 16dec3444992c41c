"""Where attention looks: weight by distance, weight on the first token, and how spread out it is.

Not every block has attention weights (linear attention keeps a state instead), and not every block
has as many heads: what an attention hands over is held against what weights are.

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
        As they are compared with keys: after rotary embeddings.
    keys : tensor of shape (sequence, group, key, feature)
        A group of heads shares its keys (grouped-query attention).
    mask : tensor of shape (1 or sequence, 1 or head, query, key), optional
        True where a key is seen, or what is added to the scores; without one, keys up to the query.
    scaling : float, optional
        One over the root of the features without it.

    Returns
    -------
    tensor of shape (sequence, head, query, key)
        In float32, or wider if the queries are.
    """
    queries, keys = numerics.precise(queries), numerics.precise(keys)
    scale = queries.shape[-1] ** -0.5 if scaling is None else scaling
    keys = keys.repeat_interleave(queries.shape[1] // keys.shape[1], 1)
    # Not under a server's autocast, which would round the factors.
    with torch.autocast(queries.device.type, enabled=False):
        scores = queries @ keys.transpose(-1, -2) * scale
    if mask is None:
        shape = scores.shape[-2:]
        mask = torch.ones(shape, dtype=torch.bool, device=scores.device).tril(shape[1] - shape[0])
    if mask.dtype == torch.bool:
        scores = scores.masked_fill(~mask, -torch.inf)
    else:
        scores = scores + mask
    return scores.softmax(-1)


NAMES = ("module", "query", "key", "value", "attention_mask")
"""How transformers' attention interface calls what it is given by place."""


def read(part: Any, eager: bool) -> Any:
    """Wait for an attention of the clean run, and return its weights, or what stands for them.

    Parameters
    ----------
    part : Envoy
        The attention of a block.
    eager : bool
        Whether it hands its weights over; else they are computed from queries and keys.
    """
    if eager:
        return _handed(part.output)
    return _computed(_given(part.source.attention_interface_1.inputs))


def inspect(part: Any, eager: bool, shape: Sequence[int], tolerance: float) -> tuple[int, str]:
    """Wait for an attention, and return how many heads it has and why it has no weights, if so.

    Weights are not negative, add up to one at most (less where a sink takes some), and are 0 for
    later tokens. Where they are computed, they must make of the values what the model makes.

    Parameters
    ----------
    part, eager
        As for `read`.
    shape : sequence of int
        Sequences and tokens of the text.
    tolerance : float
        By how much numbers may be off.
    """
    if eager:
        found = _handed(part.output)
        reason = _flaw(found, shape, tolerance)
        return (0 if reason else found.shape[1]), reason
    call = part.source.attention_interface_1
    given, made = _given(call.inputs), block_calls.first(call.output)
    try:
        found = _computed(given)
        reason = _flaw(found, shape, tolerance) or _missed(found, given["value"], made, tolerance)
        return (0 if reason else found.shape[1]), reason
    except (TypeError, ValueError, RuntimeError, LookupError, AttributeError):
        return 0, "it does not call transformers' attention interface as others do"


def _given(inputs: Any) -> dict[str, Any]:
    """Return by name what transformers' attention interface was called with."""
    args, kwargs = inputs
    return {"attention_mask": None, **dict(zip(NAMES, args)), **kwargs}


def _handed(out: Any) -> Any:
    """Return what an attention hands over besides what it writes, or None."""
    return out[1] if isinstance(out, tuple) and len(out) > 1 else None


def _computed(given: dict[str, Any]) -> Tensor:
    """Return the weights that what the attention interface was called with makes."""
    return weights(given["query"], given["key"], given["attention_mask"], given.get("scaling"))


def _flaw(found: Any, shape: Sequence[int], tolerance: float) -> str:
    """Return why something is no attention weights of a text, or nothing."""
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
    if not (low >= 0 and high <= 1 + tolerance and later <= tolerance):
        return (
            f"what it hands over is no weights: the least is {low:.2g}, they add up to as much as "
            f"{high:.2g}, and a later token has {later:.2g}"
        )
    return ""


def _missed(found: Tensor, values: Tensor, made: Tensor, tolerance: float) -> str:
    """Return by how much weights miss what an attention made of its values, if they do."""
    values = numerics.precise(values)
    values = values.repeat_interleave(found.shape[1] // values.shape[1], 1)
    with torch.autocast(found.device.type, enabled=False):
        ours = (found @ values).transpose(1, 2)
    made = numerics.precise(made).view_as(ours)
    # An attention may write nothing at all.
    off = float((ours - made).norm() / made.norm().clamp(min=torch.finfo(made.dtype).tiny))
    if off <= tolerance:
        return ""
    return f"weights of its queries and keys miss what it makes of its values (off by {off:.2g})"


def profile(captured: Captured, facts: TokenFacts) -> dict[str, Tensor]:
    """Reduce a pattern to what its queries have in common, over those with enough tokens before.

    Queries are those from `offsets` + 1 on, so that every offset is there for each of them and none
    of the offsets is the first token.

    Parameters
    ----------
    captured : Captured
        `pattern` (sequence, head, query, key), or nothing where a block has no weights.
    facts : TokenFacts
        `offsets`, the largest offset; `lengths` (sequence).

    Returns
    -------
    dict of str to tensor
        `profile` (head, offset, sequence), the mean weight on the token that far back, 0 being the
        query's own; `first_token` (head, sequence), the mean weight on the first; `entropy` (head,
        sequence) of the weights, in nats. Nothing without a pattern.
    """
    if "pattern" not in captured:
        return {}
    pattern, first = captured["pattern"], facts["offsets"] + 1
    length = pattern.shape[-1]
    rows = pattern[:, :, first:]
    real = torch.arange(first, length, device=pattern.device) < facts["lengths"][:, None]

    def mean(values: Tensor) -> Tensor:
        return (values * real[:, None]).sum(-1) / real.sum(-1)[:, None]

    back = [
        mean(pattern.diagonal(-offset, -2, -1)[..., first - offset :]) for offset in range(first)
    ]
    return {
        "profile": torch.stack(back).permute(2, 0, 1),
        "first_token": mean(rows[..., 0]).T,
        "entropy": mean(torch.special.entr(rows).sum(-1)).T,
    }


def finish(
    taken: Sequence[dict[str, Tensor]], modules: Modules, facts: TokenFacts
) -> dict[str, Tensor]:
    """Stack over layers, (layer, head, …); NaN where a layer has no such head or no weights."""
    found = {}
    for name in next(kept for kept in taken if kept):
        there = [kept[name] for kept in taken if kept]
        heads = max(len(value) for value in there)
        full = there[0].new_full((len(taken), heads, *there[0].shape[1:]), torch.nan)
        for row, kept in zip(full, taken):
            if kept:
                row[: len(kept[name])] = kept[name]
        found[name] = full
    return found
