"""Continuations of prompts under schedules, for tasks that generate text."""

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robustness.reordered.many import Writer
from robustness.runs.portions import Piece, Work
from robustness.tasks.preparation import PreparedTasks
from robustness.tasks.prompts import Prompt

WRITERS = 64
"""Maximum number of models in other orders that are kept for the next batch."""


def writing(prepared: PreparedTasks, begin: int) -> Work[dict[str, NDArray[Any]]]:
    """Return how a batch of prompts is continued.

    Parameters
    ----------
    prepared : PreparedTasks
        Result of `prepare_tasks`.
    begin : int
        Number that the run gives to the first prompt, after the continuations that it scores.
    """

    # A model in another order has modules of its own, though no tensors.
    @lru_cache(maxsize=WRITERS)
    def writer(number: int) -> Writer:
        return Writer(prepared.model, prepared.schedules[number])

    def measure(piece: Piece) -> dict[str, NDArray[Any]]:
        rows = slice(piece.rows.start - begin, piece.rows.stop - begin)
        prompts, written = prepared.prompts[rows], []
        for number in range(piece.group.start, piece.group.stop):
            written.append(_write(prepared, writer(number), prompts))
        return {"written": np.stack(written)}

    def tokens(rows: slice) -> int:
        lengths = prepared.prompts.lengths[rows.start - begin : rows.stop - begin]
        return len(lengths) * lengths[-1]

    return Work(measure, tokens, division=prepared.division, requests=prepared.chosen.requests)


def _write(prepared: PreparedTasks, writer: Writer, prompts: list[Prompt]) -> NDArray[np.int32]:
    """Return the tokens that continue some prompts, (token, prompt), and -1 after them."""
    decode = prepared.model.tokenizer.decode

    def ended(row: int, new: Any) -> bool:
        text = decode(new, skip_special_tokens=False)
        return any(stop in text for stop in prompts[row].stops)

    contexts, most = [prompt.context for prompt in prompts], [prompt.tokens for prompt in prompts]
    written = np.full((prepared.prompts.most, len(prompts)), -1, np.int32)
    for column, ids in enumerate(writer.write(contexts, most, ended)):
        written[: len(ids), column] = ids
    return written
