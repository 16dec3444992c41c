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
from robustness.runs import remote_traffic, sizes
from robustness.runs.batching import batches
from robustness.runs.out_of_memory import Portions
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
    batch_tokens: int | None = None,
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
    batch_tokens : int, optional
        Maximum number of tokens in a trace.
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
    batch_tokens = batch_tokens or sizes.of_clean_run(model, widest)
    left = batches(texts.lengths, batch_tokens, done, model.bends)
    remote_traffic.allow(model, _crossings(model, texts, reading, left), texts.fewer)

    def measure(rows: slice, _: int | None) -> dict[str, Tensor]:
        tokens = _pad(texts.tokens[rows], model)
        wanted = None if run is None else outputs_of(run.dataset, rows.stop - rows.start)
        text = _describe(model, texts, rows)
        (taken,) = run_clean(model, tokens, [reading], parts, text, [wanted])
        return taken

    portions = portions or Portions()
    for rows in left:
        yield from portions.each(rows, measure, texts.filled_up)


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
        `batch_tokens`, `progress` and `tell` are used; the run has its path already.
    """
    portions = Portions(run.lost, options.tell, REMEDY)
    total = len(texts.tokens)
    with run:
        portions.begin(changes.lowered(run.dataset.attrs))
        options.show(run.done, total)
        if run.done < total:
            batch_tokens = options.batch_tokens
            scanned = scan(
                model, texts, reading, batch_tokens=batch_tokens, run=run, portions=portions
            )
            for rows, tensors in scanned:
                run.add(rows, {name: tensor.numpy() for name, tensor in tensors.items()})
                options.show(run.done, total)
        return run.finish()


def _crossings(
    model: Model, texts: ShortTexts, reading: Reading, left: Sequence[slice]
) -> list[remote_traffic.Crossing]:
    """Estimate the traffic of every batch."""
    crossings = []
    for rows in left:
        predicted = rows.stop - rows.start if "prediction" in reading.needs else 0
        width = texts.filled_up(rows)
        crossings.append(remote_traffic.of_walk(model, reading.needs, width, predicted))
    return crossings


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
