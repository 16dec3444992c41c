"""Norms of the outputs of blocks and sublayers, and the angles by which the residual stream turns.

Trace bodies reach this module, so it keeps to plain functions of tensors: it travels as source.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from robustness.trace import capture, numerics

if TYPE_CHECKING:
    from robustness.trace.types import Captured, Modules, TokenFacts


def measure(captured: Captured, facts: TokenFacts) -> dict[str, Tensor]:
    """Norms of what the sublayers of a layer write, and of the residual stream at every depth.

    Returns
    -------
    dict of str to tensor
        `residual_norm`, and at a layer `attention_norm`, `mlp_norm`, their token-wise
        `attention_mlp_ratio`, and for sequential blocks `middle_norm`, of the stream between
        attention and MLP, and `mlp_middle_ratio`, all (processing, statistic, sequence);
        `block_influence` (sequence); `last`, the stream at the last token (sequence, width).
        Processing 0 is raw. Processing 1 has the mean over features subtracted, and exists where
        the final norm centres. Statistics are the mean and the median over the tokens that count,
        and the first token.
    """
    residual = numerics.precise(captured["residual"])
    measured = {
        "residual_norm": _statistics(_norm(residual, facts), facts),
        "last": capture.at_last_token(residual, facts),
    }
    if "output" not in captured:
        return measured
    attention, mlp = numerics.precise(captured["attention"]), numerics.precise(captured["mlp"])
    output = numerics.precise(captured["output"])
    written = {"attention": _norm(attention, facts), "mlp": _norm(mlp, facts)}
    measured["attention_norm"] = _statistics(written["attention"], facts)
    measured["mlp_norm"] = _statistics(written["mlp"], facts)
    measured["attention_mlp_ratio"] = _statistics(written["attention"] / written["mlp"], facts)
    # In a parallel block, attention and MLP read one stream: there is none between them.
    if not facts["parallel"]:
        middle = _norm(residual + attention, facts)
        measured["middle_norm"] = _statistics(middle, facts)
        measured["mlp_middle_ratio"] = _statistics(written["mlp"] / middle, facts)
    cosine = torch.nn.functional.cosine_similarity(residual, output, dim=-1)
    measured["block_influence"] = capture.token_mean(1 - cosine, facts)
    return measured


def finish(
    taken: Sequence[dict[str, Tensor]], modules: Modules, facts: TokenFacts
) -> dict[str, Tensor]:
    """Stack over layers, and add `angular_distance` (layer, span, sequence).

    The distance over a span of n blocks is arccos(cos(x_l, x_{l+n})) / π at the last token, and NaN
    if the model ends before.
    """
    # In float64: near 1, arccos turns a rounding error of the cosine into its square root.
    last = torch.stack([of_depth["last"] for of_depth in taken]).cpu().double()
    last = last / last.norm(dim=-1, keepdim=True)
    cosines = torch.einsum("isf,jsf->ijs", last, last).clamp(-1, 1)
    layers = len(taken) - 1
    angles = torch.full((layers, layers, last.shape[1]), torch.nan, dtype=torch.float64)
    for layer in range(layers):
        angles[layer, : layers - layer] = cosines[layer, layer + 1 :].arccos() / torch.pi
    stacked = capture.stack(taken)
    del stacked["last"]
    stacked["angular_distance"] = angles.to(taken[0]["last"].dtype)
    return stacked


def _norm(values: Tensor, facts: TokenFacts) -> Tensor:
    """Norms over features, (processing, sequence, token)."""
    kinds = [values.norm(dim=-1)]
    if facts["centres"]:
        kinds.append((values - values.mean(-1, keepdim=True)).norm(dim=-1))
    return torch.stack(kinds)


def _statistics(values: Tensor, facts: TokenFacts) -> Tensor:
    """Return (processing, statistic, sequence) of values (processing, sequence, token)."""
    statistics = [capture.token_mean(values, facts), capture.token_median(values, facts).cpu()]
    return torch.stack([*statistics, values[..., 0].cpu()], 1)
