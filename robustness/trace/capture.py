"""Walks the clean run and hands what every block reads and writes to measurements, layer by layer.

A measurement is a function that is called once per layer with what was captured there, and reduces
it at once: whatever it does not return is gone when the next block runs. What needs all layers
together is left to a second function, called when the clean run has ended.

Trace bodies reach this module, so it keeps to plain functions of tensors: it travels as source.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from robustness.trace import attention, block_calls, numerics, sublayers

Captured = dict[str, Any]
"""What is captured at a depth, by name.

`residual`, the stream that enters the block (sequence, token, width), and `layer`, its index; and
if it is needed `attention` and `mlp`, what these add to the stream, and `output`, the stream that
leaves the block, of the same shape; `pattern`, the attention weights (sequence, head, query, key),
of blocks that have them;
`neurons`, what the last matrix of the MLP reads (sequence, token, neuron); `context`, what the
attention is called with besides its input."""


def walk(
    measurements: Sequence[Any], needs: Sequence[str], parts: dict[str, Any], text: dict[str, Any]
) -> list[dict[str, Tensor]]:
    """Run measurements on a clean pass that is about to start.

    Parameters
    ----------
    measurements : sequence of tuple
        `(measure, finish, final)`: `measure(captured, text)` returns tensors by name, at every
        layer and, if `final`, once more with the last residual stream alone;
        `finish(taken, parts, text)`, or None, makes of the list of these the tensors by name that
        are wanted.
    needs : sequence of str
        What is captured besides the residual stream.
    parts : dict
        `blocks`, `attentions`, `sublayers`, `norms`, `head` of the model; `factors`, as
        `sublayers.factors` found them; `heads`, of how many heads each has weights; `eager`,
        whether its attention hands them over.
    text : dict
        What is known of the tokens; see `observation`.

    Returns
    -------
    list of dict of str to tensor
        Of every measurement its tensors, on the CPU; without `finish` stacked (depth, …).
    """
    taken: list[list[dict[str, Any]]] = [[] for _ in measurements]
    for layer in range(len(parts["blocks"])):
        captured = _capture(layer, needs, parts)
        for (measure, _, _), kept in zip(measurements, taken):
            # Blocks may be on several devices.
            kept.append(measure(captured, block_calls.move(text, captured["residual"].device)))
        del captured
    last = parts["norms"][0].input if parts["norms"] else parts["head"].input
    block_calls.pass_over(parts["head"])
    text, results = block_calls.move(text, last.device), []
    for (measure, finish, final), kept in zip(measurements, taken):
        if final:
            kept.append(measure({"residual": last}, text))
        # All of them, because what reduces in float64 leaves it on the CPU.
        kept = [block_calls.move(each, last.device) for each in kept]
        found = stack(kept) if finish is None else finish(kept, parts, text)
        results.append({name: value.cpu() for name, value in found.items()})
    return results


def stack(taken: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Stack what was taken at each depth, for every name over the depths that have it."""
    names = [name for kept in taken for name in kept]
    return {name: torch.stack([kept[name] for kept in taken if name in kept]) for name in names}


def _capture(layer: int, needs: Sequence[str], parts: dict[str, Any]) -> Captured:
    """Read what a block reads and writes, in the order in which it does."""
    block = parts["blocks"][layer]
    residual, _ = block_calls.split_inputs(block.inputs)
    captured: Captured = {"residual": residual, "layer": layer}
    if "context" in needs:
        _, captured["context"] = block_calls.split_inputs(parts["attentions"][layer].inputs)
    if "pattern" in needs and parts["heads"][layer]:
        weights = attention.read(parts["attentions"][layer], parts["eager"])
        captured["pattern"] = numerics.precise(weights)
    if "attention" in needs:
        stream = sublayers.handed(layer, sublayers.ATTENTION, residual, parts)
        captured["attention"] = sublayers.seen(layer, sublayers.ATTENTION, stream, residual, parts)
    between = None
    if "mlp" in needs:
        between = sublayers.handed(layer, sublayers.MLP, residual, parts)
    if "neurons" in needs:
        neurons = parts["writers"][layer].input
        captured["neurons"] = neurons.view(*residual.shape[:2], -1)
    if "mlp" in needs:
        captured["mlp"] = sublayers.seen(layer, sublayers.MLP, between, residual, parts)
    if "output" in needs:
        captured["output"] = block_calls.first(block.output)
    # Sublayers of a block may be on several devices.
    return block_calls.move(captured, residual.device)


def token_mean(values: Tensor, text: dict[str, Any]) -> Tensor:
    """Mean over the tokens that count, (…, sequence) of values (…, sequence, token).

    Sums are taken in float64, on the CPU, because not every device has it.
    """
    counted = text["counted"].cpu()
    kept = torch.where(counted, values.cpu().double(), torch.zeros(()).double())
    return (kept.sum(-1) / counted.sum(-1)).to(torch.promote_types(values.dtype, torch.float32))


def token_median(values: Tensor, text: dict[str, Any]) -> Tensor:
    """Median over the tokens that count, (…, sequence) of values (…, sequence, token)."""
    return values.masked_fill(~text["counted"], torch.nan).nanquantile(0.5, dim=-1)


def at_last_token(values: Tensor, text: dict[str, Any]) -> Tensor:
    """Values (sequence, width) at the last token of every sequence of (sequence, token, width)."""
    return values[torch.arange(len(values), device=values.device), text["lengths"] - 1]
