"""Compares schedules with the clean run: runs a plan on a batch, reads and reduces final states.

Trace bodies reach this module, so it keeps to plain functions of tensors: it travels as source.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from robustness.trace import block_calls, interpreter, readout


def measure(
    rows: Sequence[Any],
    schedules: int,
    states: dict[int, Tensor],
    final: Tensor,
    contexts: dict[str, Any],
    grows: dict[str, Any],
    parts: dict[str, Any],
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
    contexts, grows, parts
        As for `steps.execute`.
    norms, head : callable
        What follows the last block.
    text : dict
        `targets`, the tokens to predict (sequence, query); `first` and `last`, the range of query
        positions; `compared` and `predicted`, which of them count (sequence, query): for KL,
        agreement and entropy, and for loss and accuracy; `vocabulary`, the number of logits;
        `divergences`, as for `readout.compare`; `per_token`, whether single tokens are wanted.
    matrix : tuple
        The head's matrix and bias, or None for each.

    Returns
    -------
    dict of str to tensor
        Per schedule the divergences, `agreement`, `loss`, `entropy`, `accuracy`, `nonfinite`
        (schedule, sequence) and `top`, the most likely tokens (schedule, sequence, query), -1 where
        none counts or is known; and `clean_loss`, `clean_entropy`, `clean_accuracy` (sequence).
        Where single tokens are wanted, of each readout `token_NAME` too (…, sequence, query), NaN
        where none counts or is known.
    """
    text = block_calls.move(text, final.device)

    def finish(hidden: Tensor) -> Tensor:
        hidden = hidden.to(final.device)[:, text["first"] : text["last"]]
        for norm in norms:
            hidden = norm(hidden)
        return hidden.flatten(0, 1)

    clean = readout.reference(
        finish(final), text["targets"].flatten(), head, text["vocabulary"], *matrix
    )
    collected: list[Any] = [None] * schedules

    def read(finals: list[Tensor], ends: Sequence[Any]) -> None:
        states = torch.stack([finish(state) for state in finals])
        values = readout.compare(states, clean, text["divergences"])
        for position, indices in enumerate(ends):
            for index in indices:
                collected[index] = {name: value[position] for name, value in values.items()}

    interpreter.run(rows, states, contexts, grows, parts, read)
    measured = reduce(collected, text)
    unchanged = reduce([clean["readout"]], text)
    for name in ("loss", "entropy", "accuracy"):
        measured[f"clean_{name}"] = unchanged[name][0]
        if text.get("per_token"):
            measured[f"token_clean_{name}"] = unchanged[f"token_{name}"][0]
    return measured


def reduce(readouts: Sequence[dict[str, Tensor]], text: dict[str, Any]) -> dict[str, Tensor]:
    """Means over the tokens that count, and what else is kept of a sequence, on the CPU.

    Sums are taken in float64, which not every device has.
    """
    shape = text["targets"].shape
    compared, predicted = text["compared"].cpu(), text["predicted"].cpu()
    values = {
        name: torch.stack([one[name] for one in readouts]).cpu().unflatten(-1, shape)
        for name in readouts[0]
    }
    top = values.pop("top")
    finite = torch.stack([torch.isfinite(value) for value in values.values()]).all(0)
    reduced = {}
    for name, value in values.items():
        mask = predicted if name in ("loss", "accuracy") else compared
        # A token with a bad logit has a top-1 prediction too, which must not pass for a number.
        known = torch.where(finite, value, torch.full_like(value, torch.nan))
        kept = torch.where(mask, known, torch.zeros_like(value)).double().sum(-1)
        reduced[name] = (kept / mask.sum(-1)).to(value.dtype)
        if text.get("per_token"):
            reduced[f"token_{name}"] = torch.where(mask, known, torch.full_like(value, torch.nan))
    reduced["nonfinite"] = (~finite & (compared | predicted)).sum(-1).to(torch.int32)
    counted = compared & finite
    reduced["top"] = torch.where(counted, top, torch.full_like(top, -1)).to(torch.int32)
    return reduced
