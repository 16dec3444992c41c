"""What a batch of text yields: a plan run from the clean pass, every final state read and reduced.

Trace bodies reach this module, so it keeps to plain functions of tensors: it travels as source.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from robustness import interpreter, readout


def measure(
    rows: Sequence[Any],
    schedules: int,
    states: dict[int, Tensor],
    final: Tensor,
    contexts: Sequence[interpreter.Context],
    blocks: Sequence[Callable[..., Any]],
    norms: Sequence[Callable[..., Any]],
    head: Callable[..., Any],
    text: dict[str, Any],
    matrix: tuple[Tensor | None, Tensor | None],
) -> dict[str, Tensor]:
    """Run a plan and reduce every readout to one number per sequence.

    Parameters
    ----------
    rows : sequence of tuple
        The plan's rows.
    schedules : int
        How many schedules the plan reads.
    states : dict of int to tensor of shape (sequence, token, width)
        The clean states that the plan starts from; emptied on the way.
    final : tensor of shape (sequence, token, width)
        What the clean run hands to the final norm.
    contexts, blocks
        As for `interpreter.run`.
    norms, head : callable
        What follows the last block.
    text : dict
        `targets`, the tokens to predict (sequence, query); `first` and `last`, the range of query
        positions; `compared` and `predicted`, which of them count (sequence, query): for KL,
        agreement and entropy, and for loss and accuracy; `vocabulary`, the number of logits.
    matrix : tuple
        The head's matrix and bias, or None for each.

    Returns
    -------
    dict of str to tensor
        Per schedule `kl`, `agreement`, `loss`, `entropy`, `accuracy`, `nonfinite` (schedule,
        sequence) and `top`, the most likely tokens (schedule, sequence, query), -1 where none
        counts; and `clean_loss`, `clean_entropy`, `clean_accuracy` (sequence).
    """
    shape = text["targets"].shape

    def finish(hidden: Tensor) -> Tensor:
        hidden = hidden[:, text["first"] : text["last"]]
        for norm in norms:
            hidden = norm(hidden)
        return hidden.flatten(0, 1)

    clean = readout.reference(
        finish(final), text["targets"].flatten(), head, text["vocabulary"], *matrix
    )
    out = _reduce({name: part[None] for name, part in clean["readout"].items()}, text, shape)
    measured = {
        "clean_loss": out["loss"][0],
        "clean_entropy": out["entropy"][0],
        "clean_accuracy": out["accuracy"][0],
    }
    collected: list[Any] = [None] * schedules

    def read(finals: list[Tensor], ends: Sequence[Any]) -> None:
        hidden = torch.stack([finish(state) for state in finals])
        reduced = _reduce(readout.compare(hidden, clean), text, shape)
        for position, indices in enumerate(ends):
            for index in indices:
                collected[index] = {name: value[position] for name, value in reduced.items()}

    interpreter.run(rows, states, contexts, blocks, read)
    for name in collected[0]:
        measured[name] = torch.stack([part[name] for part in collected])
    return {name: value.cpu() for name, value in measured.items()}


def _reduce(
    values: dict[str, Tensor], text: dict[str, Any], shape: tuple[int, int]
) -> dict[str, Tensor]:
    """Means over the tokens that count, taken in float64, for values of shape (state, token)."""
    reduced = {}
    total = torch.zeros_like(values["loss"])
    for name, value in values.items():
        if name == "top":
            continue
        mask = text["predicted"] if name in ("loss", "accuracy") else text["compared"]
        grid = value.unflatten(-1, shape)
        kept = torch.where(mask, grid, torch.zeros_like(grid)).double().sum(-1)
        reduced[name] = (kept / mask.sum(-1)).to(value.dtype)
        total = total + value
    counted = text["compared"] | text["predicted"]
    bad = ~torch.isfinite(total).unflatten(-1, shape) & counted
    reduced["nonfinite"] = bad.sum(-1).to(torch.int32)
    top = values["top"].unflatten(-1, shape)
    reduced["top"] = torch.where(text["compared"], top, torch.full_like(top, -1)).to(torch.int32)
    return reduced
