"""Capture: a walk along the clean run that gives measurements the tensors of one layer at a time.

A measurement is a function that is called once per layer with the tensors captured there, and
reduces them at once: they are freed before the next block runs. Results that need all layers are
computed by a second function, which is called when the clean run has ended.

Trace bodies reach this module, so it keeps to plain functions of tensors: it travels as source.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from robustness.trace import (
    attention,
    block_calls,
    numerics,
    sublayers,
    transfer,
    unembedding,
)

if TYPE_CHECKING:
    from robustness.trace.types import Captured, Modules, TokenFacts


def walk(
    measurements: Sequence[Any], needs: Sequence[str], modules: Modules, facts: TokenFacts
) -> list[dict[str, Tensor]]:
    """Run measurements on a clean pass that is about to start.

    Parameters
    ----------
    measurements : sequence of tuple
        Tuples `(measure, finish, final)`. `measure(captured, facts)` returns tensors by name, at
        every layer and, if `final`, once more with the last residual stream alone.
        `finish(taken, modules, facts)`, or None, turns the list of these into the results by name.
    needs : sequence of str
        Names of the tensors to capture besides the residual stream.
    modules : Modules
        Modules of the model, with the facts that the measurements need.
    facts : TokenFacts
        Facts about the tokens.

    Returns
    -------
    list of dict of str to tensor
        Tensors of every measurement, on the CPU; without `finish` stacked (depth, …).
    """
    taken: list[list[dict[str, Any]]] = [[] for _ in measurements]
    # Blocks may be on several devices.
    there: dict[torch.device, TokenFacts] = {}
    for layer in range(len(modules["blocks"])):
        captured = _capture(layer, needs, modules)
        place = captured["residual"].device
        if place not in there:
            there[place] = block_calls.move(facts, place)
        for (measure, _, _), of_layers in zip(measurements, taken):
            of_layers.append(measure(captured, there[place]))
        # Freed before the next block runs, since it may hold an attention pattern.
        del captured
    last = modules["norms"][0].input if modules["norms"] else modules["head"].input
    block_calls.pass_over(modules["head"])
    if modules.get("there"):
        matrix = unembedding.matrix_there(modules["head"], modules["there"])
        modules = {**modules, "matrix": matrix}
    facts = there.get(last.device) or block_calls.move(facts, last.device)
    results: dict[Any, Tensor] = {}
    for index, (measure, finish, final) in enumerate(measurements):
        of_layers = taken[index]
        if final:
            of_layers.append(measure({"residual": last}, facts))
        of_layers = [block_calls.move(tensors, last.device) for tensors in of_layers]
        finished = stack(of_layers) if finish is None else finish(of_layers, modules, facts)
        results |= {(index, name): value for name, value in finished.items()}
    of_measurements: list[dict[str, Tensor]] = [{} for _ in measurements]
    for (index, name), value in transfer.together(results, transfer.HOST).items():
        of_measurements[index][name] = value
    return of_measurements


def stack(taken: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Stack the tensors of every name over the depths that have it."""
    columns: dict[str, list[Tensor]] = {}
    for of_depth in taken:
        for name, tensor in of_depth.items():
            columns.setdefault(name, []).append(tensor)
    return {name: torch.stack(column) for name, column in columns.items()}


def _capture(layer: int, needs: Sequence[str], modules: Modules) -> Captured:
    """Read the inputs and outputs of a block and of its sublayers.

    A trace serves values in the order in which the model computes them, and so reads them here.
    """
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
    """Mean over the tokens that count, (…, sequence) of values (…, sequence, token)."""
    # In float64, so that long sums keep their digits.
    place = transfer.place_of_sums(values.device)
    counted, wide = facts["counted"].to(place), values.to(place).double()
    # Not a product with the mask, in which a NaN of a padding token would stay.
    summed = torch.where(counted, wide, torch.zeros_like(wide[..., :1])).sum(-1)
    mean = (summed / counted.sum(-1)).to(torch.promote_types(values.dtype, torch.float32))
    return mean.to(values.device)


def token_median(values: Tensor, facts: TokenFacts) -> Tensor:
    """Median over the tokens that count, (…, sequence) of values (…, sequence, token)."""
    return values.masked_fill(~facts["counted"], torch.nan).nanquantile(0.5, dim=-1)


def at_last_token(values: Tensor, facts: TokenFacts) -> Tensor:
    """Values (sequence, width) at the last token of every sequence of (sequence, token, width)."""
    return values[torch.arange(len(values), device=values.device), facts["lengths"] - 1]
