"""Scores continuations under every schedule of a plan: only their tokens are unembedded.

Trace bodies reach this module, so it keeps to plain functions of tensors: it travels as source.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from robustness.trace import block_calls, interpreter, readout


def score(
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
    """Run a plan and score the tokens of continuations.

    Parameters
    ----------
    rows, schedules, states, final, contexts, grows, parts, norms, head, matrix
        As for `comparison.measure`.
    text : dict
        `targets`, the tokens of all continuations one after another; `item` and `query`, the
        sequence and the position that predicts each; `vocabulary`, the number of logits.

    Returns
    -------
    dict of str to tensor of shape (schedule, token)
        `loss`, in nats, and `hit`, whether the token is the most likely one.
    """
    text = block_calls.move(text, final.device)

    def finish(hidden: Tensor) -> Tensor:
        hidden = hidden.to(final.device)[text["item"], text["query"]][None]
        for norm in norms:
            hidden = norm(hidden)
        return hidden[0]

    clean = readout.reference(finish(final), text["targets"], head, text["vocabulary"], *matrix)
    losses: list[Any] = [None] * schedules
    hits: list[Any] = [None] * schedules

    def read(finals: list[Tensor], ends: Sequence[Any]) -> None:
        values = readout.compare(torch.stack([finish(state) for state in finals]), clean, ())
        for position, indices in enumerate(ends):
            for index in indices:
                losses[index] = values["loss"][position]
                hits[index] = values["accuracy"][position]

    interpreter.run(rows, states, contexts, grows, parts, read)
    return {"loss": torch.stack(losses).cpu(), "hit": torch.stack(hits).cpu()}
