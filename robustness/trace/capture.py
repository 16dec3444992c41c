"""Walks the clean run and hands what every block reads and writes to measurements, layer by layer.

A measurement is a function that is called once per layer with what was captured there, and reduces
it at once: whatever it does not return is gone when the next block runs. What needs all layers
together is left to a second function, called when the clean run has ended.

Trace bodies reach this module, so it keeps to plain functions of tensors: it travels as source.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from robustness.trace import attention, block_calls, numerics, sublayers

if TYPE_CHECKING:
    from robustness.trace.types import Captured, Modules, TokenFacts


def walk(
    measurements: Sequence[Any], needs: Sequence[str], modules: Modules, facts: TokenFacts
) -> list[dict[str, Tensor]]:
    """Run measurements on a clean pass that is about to start.

    Parameters
    ----------
    measurements : sequence of tuple
        `(measure, finish, final)`: `measure(captured, facts)` returns tensors by name, at every
        layer and, if `final`, once more with the last residual stream alone;
        `finish(taken, modules, facts)`, or None, makes of the list of these the tensors by name
        that are wanted.
    needs : sequence of str
        Names of what is captured besides the residual stream.
    modules : Modules
        Modules of the model, with the facts that the measurements need.
    facts : TokenFacts
        What is known of the tokens.

    Returns
    -------
    list of dict of str to tensor
        Tensors of every measurement, on the CPU; without `finish` stacked (depth, …).
    """
    taken: list[list[dict[str, Any]]] = [[] for _ in measurements]
    for layer in range(len(modules["blocks"])):
        captured = _capture(layer, needs, modules)
        for (measure, _, _), kept in zip(measurements, taken):
            # Blocks may be on several devices.
            kept.append(measure(captured, block_calls.move(facts, captured["residual"].device)))
        # Freed before the next block runs, since it may hold an attention pattern.
        del captured
    last = modules["norms"][0].input if modules["norms"] else modules["head"].input
    block_calls.pass_over(modules["head"])
    facts, results = block_calls.move(facts, last.device), []
    for (measure, finish, final), kept in zip(measurements, taken):
        if final:
            kept.append(measure({"residual": last}, facts))
        # All of them, because what reduces in float64 leaves it on the CPU.
        kept = [block_calls.move(each, last.device) for each in kept]
        finished = stack(kept) if finish is None else finish(kept, modules, facts)
        results.append({name: value.cpu() for name, value in finished.items()})
    return results


def stack(taken: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Stack what was taken at each depth, for every name over the depths that have it."""
    names = [name for kept in taken for name in kept]
    return {name: torch.stack([kept[name] for kept in taken if name in kept]) for name in names}


def _capture(layer: int, needs: Sequence[str], modules: Modules) -> Captured:
    """Read what a block reads and writes, in the order in which it does."""
    block = modules["blocks"][layer]
    residual, _ = block_calls.split_inputs(block.inputs)
    captured: Captured = {"residual": residual, "layer": layer}
    if "context" in needs:
        _, captured["context"] = block_calls.split_inputs(modules["attentions"][layer].inputs)
    if "pattern" in needs and modules["heads"][layer]:
        weights = attention.read(modules["attentions"][layer], modules["eager"])
        captured["pattern"] = numerics.precise(weights)
    if "attention" in needs:
        which = sublayers.ATTENTION
        stream = sublayers.handed(layer, which, residual, modules)
        captured["attention"] = sublayers.seen(layer, which, stream, residual, modules)
    between = None
    if "mlp" in needs:
        between = sublayers.handed(layer, sublayers.MLP, residual, modules)
    if "neurons" in needs:
        neurons = modules["writers"][layer].input
        captured["neurons"] = neurons.view(*residual.shape[:2], -1)
    if "mlp" in needs:
        captured["mlp"] = sublayers.seen(layer, sublayers.MLP, between, residual, modules)
    if "output" in needs:
        captured["output"] = block_calls.first(block.output)
    # Sublayers of a block may be on several devices.
    moved: Captured = block_calls.move(captured, residual.device)
    return moved


def token_mean(values: Tensor, facts: TokenFacts) -> Tensor:
    """Mean over the tokens that count, (…, sequence) of values (…, sequence, token).

    Sums are taken in float64, on the CPU, because not every device has it.
    """
    counted = facts["counted"].cpu()
    kept = torch.where(counted, values.cpu().double(), torch.zeros(()).double())
    return (kept.sum(-1) / counted.sum(-1)).to(torch.promote_types(values.dtype, torch.float32))


def token_median(values: Tensor, facts: TokenFacts) -> Tensor:
    """Median over the tokens that count, (…, sequence) of values (…, sequence, token)."""
    return values.masked_fill(~facts["counted"], torch.nan).nanquantile(0.5, dim=-1)


def at_last_token(values: Tensor, facts: TokenFacts) -> Tensor:
    """Values (sequence, width) at the last token of every sequence of (sequence, token, width)."""
    return values[torch.arange(len(values), device=values.device), facts["lengths"] - 1]
