"""What a sublayer writes when its block is swapped with the next, compared with the clean run.

With a(j) what a sublayer of block j writes in the clean run, and b(j) what it writes when blocks l
and l + 1 are exchanged, both at the same token, the cosines are

    adjacent        a(l)     · a(l + 1)    no intervention
    self_first      b(l)     · a(l)        the block that is moved later
    self_second     b(l + 1) · a(l + 1)    the block that is moved earlier
    index_early     b(l + 1) · a(l)        it, and the block whose place it takes
    index_late      b(l)     · a(l + 1)    the other, and the block whose place it takes

Trace bodies reach this module, so it keeps to plain functions of tensors: it travels as source.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from robustness.trace import capture, numerics, sublayers

if TYPE_CHECKING:
    from robustness.trace.types import Captured, Modules, TokenFacts

COMPARISONS = ("adjacent", "self_first", "self_second", "index_early", "index_late")
COMPONENTS = ("attention", "mlp")


def written(captured: Captured, facts: TokenFacts) -> dict[str, Any]:
    """Keep what a block reads, and what its sublayers write."""
    return {
        "residual": captured["residual"],
        "context": captured["context"],
        "attention": captured["attention"],
        "mlp": captured["mlp"],
    }


def compare(
    taken: Sequence[dict[str, Any]], modules: Modules, facts: TokenFacts
) -> dict[str, Tensor]:
    """Swap every adjacent pair of blocks, two block applications each, and compare.

    Returns
    -------
    dict of str to tensor
        `cosine` (comparison, component, processing, layer, sequence); NaN at the last layer.
    """
    layers = []
    for first, kept in enumerate(taken[:-1]):
        after = taken[first + 1]
        hidden = kept["residual"]
        hidden, *second = sublayers.apply(first + 1, hidden, after["context"], modules)
        _, *moved = sublayers.apply(first, hidden, kept["context"], modules)
        components = []
        for index, name in enumerate(COMPONENTS):
            pairs = (
                (kept[name], after[name]),
                (moved[index], kept[name]),
                (second[index], after[name]),
                (second[index], kept[name]),
                (moved[index], after[name]),
            )
            components.append(torch.stack([_cosine(a, b, facts) for a, b in pairs]))
        layers.append(torch.stack(components, 1))
    shape = (len(COMPARISONS), len(COMPONENTS), 1 + facts["centres"], len(taken[0]["residual"]))
    layers.append(torch.full(shape, torch.nan, dtype=numerics.precise(taken[0]["mlp"]).dtype))
    return {"cosine": torch.stack(layers, 3)}


def _cosine(a: Tensor, b: Tensor, facts: TokenFacts) -> Tensor:
    """Mean cosine over the tokens that count, (processing, sequence)."""
    a, b = numerics.precise(a), numerics.precise(b).to(a.device)
    kinds = [(a, b)]
    if facts["centres"]:
        kinds.append((a - a.mean(-1, keepdim=True), b - b.mean(-1, keepdim=True)))
    cosine = torch.nn.functional.cosine_similarity
    return capture.token_mean(torch.stack([cosine(x, y, dim=-1) for x, y in kinds]), facts)
