"""Similarity of the outputs of sublayers before and after their block is swapped with the next.

Let a(j) be the output of a sublayer of block j in the clean run, and b(j) its output when blocks l
and l + 1 are exchanged, both at the same token. The cosines are

    adjacent        a(l)     · a(l + 1)    no intervention
    self_first      b(l)     · a(l)        the block that moves to the later place
    self_second     b(l + 1) · a(l + 1)    the block that moves to the earlier place
    index_early     b(l + 1) · a(l)        both blocks at the earlier place
    index_late      b(l)     · a(l + 1)    both blocks at the later place

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
"""Names of the cosines, in the order of the results."""

COMPONENTS = ("attention", "mlp")
"""Names of the sublayers, in the order of `sublayers.ATTENTION` and `MLP`."""


def written(captured: Captured, facts: TokenFacts) -> dict[str, Any]:
    """Keep the input of a block, the context of its attention, and the outputs of its sublayers."""
    return {
        "residual": captured["residual"],
        "context": captured["context"],
        "attention": captured["attention"],
        "mlp": captured["mlp"],
    }


def compare(
    taken: Sequence[dict[str, Any]], modules: Modules, facts: TokenFacts
) -> dict[str, Tensor]:
    """Swap every adjacent pair of blocks, at two block applications each, and compare the outputs.

    Returns
    -------
    dict of str to tensor
        `cosine` (comparison, component, processing, layer, sequence); NaN at the last layer.
    """
    place, layers = taken[-1]["residual"].device, []
    for layer, first in enumerate(taken[:-1]):
        second = taken[layer + 1]
        # Each context follows its block, as in every schedule.
        hidden, *earlier = sublayers.apply(layer + 1, first["residual"], second["context"], modules)
        _, *later = sublayers.apply(layer, hidden, first["context"], modules)
        components = []
        for index, name in enumerate(COMPONENTS):
            pairs = (
                (first[name], second[name]),
                (later[index], first[name]),
                (earlier[index], second[name]),
                (earlier[index], first[name]),
                (later[index], second[name]),
            )
            # Blocks may be on several devices.
            components.append(torch.stack([_cosine(a, b, facts).to(place) for a, b in pairs]))
        layers.append(torch.stack(components, 1))
    cosines = capture.token_mean(torch.stack(layers, 3), facts)
    last = torch.full_like(cosines[..., :1, :], torch.nan)
    return {"cosine": torch.cat([cosines, last], 3)}


def _cosine(a: Tensor, b: Tensor, facts: TokenFacts) -> Tensor:
    """Cosines (processing, sequence, token)."""
    a, b = numerics.precise(a), numerics.precise(b).to(a.device)
    cosines = [torch.nn.functional.cosine_similarity(a, b, dim=-1)]
    # A final norm that centres never lets the mean over features reach the predictions.
    if facts["centres"]:
        a, b = a - a.mean(-1, keepdim=True), b - b.mean(-1, keepdim=True)
        cosines.append(torch.nn.functional.cosine_similarity(a, b, dim=-1))
    return torch.stack(cosines)
