"""Norms of the outputs of blocks and sublayers, and the angles by which the residual stream turns.

Trace bodies reach this module, so it keeps to plain functions of tensors: it travels as source.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from robustness.trace import capture, numerics, redundancy

if TYPE_CHECKING:
    from robustness.trace.types import Captured, Modules, TokenFacts


def measure(captured: Captured, facts: TokenFacts) -> dict[str, Tensor]:
    """Norms of what the sublayers of a layer write, and of the residual stream at every depth.

    Returns
    -------
    dict of str to tensor
        `residual_norm`, and at a layer `attention_norm`, `mlp_norm`, their
        `attention_mlp_ratio`, and for sequential blocks `middle_norm`, of the stream between
        attention and MLP, and `mlp_middle_ratio`, all (processing, sequence, token);
        `block_influence` (1, sequence, token); `last`, the stream at the last token (sequence,
        width). Processing 0 is raw. Processing 1 has the mean over features subtracted, and exists
        where the final norm centres.
    """
    residual = numerics.precise(captured["residual"])
    measured = redundancy.measure(captured, facts)
    measured["residual_norm"] = _norm(residual, facts)
    if "output" not in captured:
        return measured
    attention, mlp = numerics.precise(captured["attention"]), numerics.precise(captured["mlp"])
    measured["attention_norm"], measured["mlp_norm"] = _norm(attention, facts), _norm(mlp, facts)
    measured["attention_mlp_ratio"] = measured["attention_norm"] / measured["mlp_norm"]
    # In a parallel block, attention and MLP read one stream: there is none between them.
    if not facts["parallel"]:
        measured["middle_norm"] = _norm(residual + attention, facts)
        measured["mlp_middle_ratio"] = measured["mlp_norm"] / measured["middle_norm"]
    return measured


def finish(
    taken: Sequence[dict[str, Tensor]], modules: Modules, facts: TokenFacts
) -> dict[str, Tensor]:
    """Reduce over tokens, and add `angular_distance` (layer, span, sequence).

    Norms become (depth, processing, statistic, sequence), where the statistics are the mean and the
    median over the tokens that count, and the first token; `block_influence` becomes its mean
    (layer, sequence). The distance over a span of n blocks is arccos(cos(x_l, x_{l+n})) / π at the
    last token, and NaN if the model ends before.
    """
    stacked = capture.stack(taken)
    last = stacked.pop("last")
    # All layers at once: each reduction and each move is one for the batch.
    rows = torch.cat([values.flatten(0, 1) for values in stacked.values()])
    means, medians = capture.token_mean(rows, facts), capture.token_median(rows, facts)
    statistics = torch.stack([means, medians, rows[..., 0]], 1)
    shapes = {name: values.shape[:2] for name, values in stacked.items()}
    finished = {}
    for name, part in zip(shapes, statistics.split([shape.numel() for shape in shapes.values()])):
        finished[name] = part.unflatten(0, shapes[name])
    finished["block_influence"] = finished["block_influence"][:, 0, 0]
    finished["angular_distance"] = redundancy.angles(last)
    return finished


def _norm(values: Tensor, facts: TokenFacts) -> Tensor:
    """Norms over features, (processing, sequence, token)."""
    kinds = [values.norm(dim=-1)]
    if facts["centres"]:
        kinds.append((values - values.mean(-1, keepdim=True)).norm(dim=-1))
    return torch.stack(kinds)
