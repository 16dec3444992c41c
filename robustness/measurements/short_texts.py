"""Measurements of single short texts: windows, sentences, words in context."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, cast

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from robustness.errors import Refusal
from robustness.files import changes, resumable
from robustness.measurements.clean_pass import Reading, outputs_of, run_clean, trace_parts
from robustness.measurements.requirements import check_needs
from robustness.models.block_structure import examine
from robustness.models.model import Model
from robustness.ndif import answer
from robustness.runs import remote_traffic, request_cost, server_sizes, sizes
from robustness.runs.announcement import announce
from robustness.runs.batching import batches
from robustness.runs.budget import pace_of
from robustness.runs.foresight import Foresight
from robustness.runs.portions import Piece, Portions, Work
from robustness.runs.request_cost import Text
from robustness.runs.settings import RunOptions
from robustness.trace.types import TokenFacts

REMEDY = "`dtype` bfloat16, or another `device`"
"""Advice if not even one short text fits into memory."""


@dataclass(frozen=True, eq=False)
class ShortTexts:
    """Texts that are measured one by one, several in a batch."""

    tokens: Sequence[Sequence[int]]
    """Token ids of every text; batches have least padding if texts are in order of length."""
    details: Mapping[str, Sequence[NDArray[Any]]] = field(default_factory=dict)
    """Further arrays of every text, by name, of any length; measurements see them padded with 0,
    (text, …)."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Further facts that are the same for all texts, by name."""
    fewer: str = "fewer texts"
    """Advice for less traffic through the socket of a sandboxed server."""

    @cached_property
    def lengths(self) -> list[int]:
        """Number of tokens of every text."""
        return list(map(len, self.tokens))

    def filled_up(self, rows: slice) -> int:
        """Return the number of tokens of some of the texts, with padding."""
        return (rows.stop - rows.start) * max(self.lengths[rows])


def scan(
    model: Model,
    texts: ShortTexts,
    reading: Reading,
    *,
    options: RunOptions | None = None,
    run: resumable.Run | None = None,
    portions: Portions | None = None,
) -> Iterator[tuple[slice, dict[str, Tensor]]]:
    """Measure short texts, a batch of them in each trace.

    Shorter texts are padded on the right, where no token of a causal model sees the padding.

    Parameters
    ----------
    model : Model
        An opened model.
    texts : ShortTexts
        The texts.
    reading : Reading
        The measurement.
    options : RunOptions, optional
        `batch_tokens`, `foresee` and `tell` are used.
    run : Run, optional
        Run that the results fill. Texts that it has already are skipped, and a server may send its
        variables only.
    portions : Portions, optional
        Portions of a batch that fit into memory.

    Yields
    ------
    rows : slice
        Positions of the texts.
    tensors : dict of str to tensor
        Results, with the text as their last dimension.

    Raises
    ------
    Refusal
        If the model does not allow the captures, or a text is too long for it.
    """
    structure = examine(model, reading.needs)
    check_needs("this", reading.needs, structure)
    parts = trace_parts(model, structure)
    widest = max(texts.lengths)
    if model.context is not None and widest > model.context:
        raise Refusal(f"a text of {widest} tokens is longer than {model.name} takes")
    done = 0 if run is None else run.done
    options = options or RunOptions()
    numbers = answer.size({} if run is None else outputs_of(run.dataset, 1))
    left = divide(model, texts, reading, options, done, numbers)
    announce(foresee(model, texts, reading, left, numbers), options, texts.fewer)

    def measure(piece: Piece) -> dict[str, Tensor]:
        rows = piece.rows
        tokens = _pad(texts.tokens[rows], model)
        wanted = None if run is None else outputs_of(run.dataset, rows.stop - rows.start)
        text = _describe(model, texts, rows)
        (taken,) = run_clean(model, tokens, [reading], parts, text, [wanted])
        return taken

    def describe(piece: Piece) -> str:
        return request_cost.describe(_cost(model, texts, reading, piece.rows, numbers))

    portions = portions or Portions(pace=pace_of(model, options.tell))
    work = Work(measure, texts.filled_up, describe=describe)
    for rows in left:
        for portion, (taken,) in portions.each(rows, work):
            yield portion, taken


def fill(
    run: resumable.Run, model: Model, texts: ShortTexts, reading: Reading, options: RunOptions
) -> xr.Dataset:
    """Fill the rest of a run over short texts, and return its finished dataset.

    Parameters
    ----------
    run : Run
        Run whose variables are the tensors of `reading`.
    model, texts, reading
        As for `scan`.
    options : RunOptions
        All but its path, which the run has already, and `state_cap` are used.
    """
    portions = Portions(run.lost, options.tell, REMEDY, pace_of(model, options.tell))
    total = len(texts.tokens)
    with run:
        portions.begin(changes.lowered(run.dataset.attrs))
        options.show(run.done, total)
        if run.done < total:
            scanned = scan(model, texts, reading, options=options, run=run, portions=portions)
            for rows, tensors in scanned:
                run.add(rows, {name: _as_array(tensor) for name, tensor in tensors.items()})
                options.show(run.done, total)
        return run.finish()


def _as_array(tensor: Tensor) -> NDArray[Any]:
    """Return a tensor as an array; NumPy has no bfloat16."""
    array: NDArray[Any] = (
        tensor.numpy() if tensor.dtype != torch.bfloat16 else tensor.float().numpy()
    )
    return array


def divide(
    model: Model,
    texts: ShortTexts,
    reading: Reading,
    options: RunOptions,
    done: int = 0,
    numbers: int = 0,
) -> list[slice]:
    """Return the batches of texts that are left after a number of texts.

    Parameters
    ----------
    model, texts, reading, options
        As for `scan`.
    done : int
        Number of texts that are measured.
    numbers : int
        Number of numbers that a trace returns for a text.
    """
    batch_tokens = options.batch_tokens or _usual_tokens(model, texts, reading, numbers)
    return batches(texts.lengths, batch_tokens, done, model.bends)


def _usual_tokens(model: Model, texts: ShortTexts, reading: Reading, numbers: int) -> int:
    """Return the tokens of a trace that suit a measurement of texts."""
    widest = max(texts.lengths)
    if not model.request:
        return sizes.of_clean_run(model, widest)
    queries = int("prediction" in reading.needs)
    return server_sizes.of_clean_run(model, reading.needs, widest, queries, numbers)


def foresee(
    model: Model, texts: ShortTexts, reading: Reading, left: Sequence[slice], numbers: int
) -> Foresight:
    """Return what measuring some texts is about to do.

    Parameters
    ----------
    model, texts, reading
        As for `scan`.
    left : sequence of slice
        Batches of texts.
    numbers : int
        Number of numbers that a trace returns for a text.
    """
    costs, crossings, read = [], [], 0
    for rows in left:
        count, lengths = rows.stop - rows.start, texts.lengths[rows]
        predicted = count if "prediction" in reading.needs else 0
        costs.append(_cost(model, texts, reading, rows, numbers))
        tokens = texts.filled_up(rows)
        crossings.append(remote_traffic.of_walk(model, reading.needs, tokens, predicted))
        read += sum(lengths)
    return Foresight(model, sum(rows.stop - rows.start for rows in left), read, costs, crossings)


def _cost(
    model: Model, texts: ShortTexts, reading: Reading, rows: slice, numbers: int
) -> request_cost.RequestCost:
    """Return what a trace takes that returns a number of numbers for each of some texts."""
    count = rows.stop - rows.start
    predicted = count if "prediction" in reading.needs else 0
    text = Text(count, max(texts.lengths[rows]), predicted)
    numbers = numbers * count // (2 if reading.half else 1)
    return request_cost.of_walk(model, reading.needs, text, numbers)


def _describe(model: Model, texts: ShortTexts, rows: slice) -> TokenFacts:
    """Return the facts about some texts that a trace needs besides their tokens."""
    text: dict[str, Any] = {"lengths": torch.tensor(texts.lengths[rows], device=model.device)}
    for name, values in texts.details.items():
        text[name] = _pad(values[rows], model)
    return cast(TokenFacts, text | dict(texts.settings))


def _pad(rows: Sequence[NDArray[Any] | Sequence[int]], model: Model) -> Tensor:
    """Stack arrays of different length, padded with 0 on the right."""
    tensors = [torch.from_numpy(np.asarray(row)) for row in rows]
    return pad_sequence(tensors, batch_first=True).to(model.device)
