"""States of the residual stream that healings are fitted to, batch by batch."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import nnsight
import numpy as np
from torch import Tensor

from robustness.errors import Refusal
from robustness.models import sublayer_calls
from robustness.models.model import Model
from robustness.runs import batching, sizes
from robustness.runs.ahead import tokens_of
from robustness.schedules import Schedule, Step, plain
from robustness.text.corpus import Corpus
from robustness.trace import block_calls, interpreter

HELD_OUT = 4
"""One of so many documents chooses the ridge, and the others are fitted to."""


@dataclass(frozen=True)
class StreamPlace:
    """A place in a schedule at which something is fitted."""

    before: Schedule
    """Steps that are executed before it."""
    inner: Step | None
    """The step of which what it adds is the input; without it, the stream is."""
    target: int
    """Depth of the clean stream that is to leave the place: the number of blocks before it."""


@dataclass(frozen=True)
class Captured:
    """States of one place in a batch."""

    entering: Tensor
    """Stream that enters the place (token, width), float64."""
    added: Tensor | None
    """What the inner step adds to it."""
    target: Tensor
    """Clean stream that is to leave the place."""


def states(
    model: Model,
    corpus: Corpus,
    places: Sequence[StreamPlace],
    batch_tokens: int | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> Iterator[tuple[int, list[Captured]]]:
    """Run a text once, and yield the states of every sequence at some places.

    Parameters
    ----------
    model : Model
        An opened model with its weights on this machine.
    corpus : Corpus
        Token sequences.
    places : sequence of StreamPlace
        Places in schedules.
    batch_tokens : int, optional
        Tokens of text in one trace; by default what suits the device.
    progress : callable, optional
        Callback for the number of sequences that are done, and of all.

    Yields
    ------
    tuple
        Index of a sequence, and its states at every place, without its filling.
    """
    if model.request:
        raise Refusal(f"maps are fitted on this machine: open {model.name} without `remote`")
    batching.check_corpus(model, corpus)
    called = [(*place.before, *_inner(place)) for place in places]
    sublayer_calls.check_schedules(model, [steps for steps in called if steps])
    alive = model.layers + 3 * len(places)
    size = batch_tokens or sizes.choose(model, lambda: alive, corpus.context).text
    done, total = 0, len(corpus.tokens)
    for rows in corpus.batches(size):
        captured = _capture(model, tokens_of(model, corpus, rows), places)
        for sequence in range(rows.start, rows.stop):
            length = int(corpus.lengths[sequence])
            yield (
                sequence,
                [_of_sequence(at, sequence - rows.start, length) for at in captured],
            )
        done += rows.stop - rows.start
        if progress is not None:
            progress(done, total)


def held_out(corpus: Corpus) -> list[bool]:
    """Return for every sequence whether its document chooses the ridge: every fourth one.

    A text of fewer than two documents is divided by sequences.
    """
    documents, number = np.unique(corpus.document, return_inverse=True)
    if len(documents) < 2:
        number = np.arange(len(corpus.document))
    every = min(HELD_OUT, max(2, int(number.max()) + 1))
    return [bool(at % every == every - 1) for at in number]


def _inner(place: StreamPlace) -> Schedule:
    return () if place.inner is None else (place.inner,)


def _capture(
    model: Model, tokens: Tensor, places: Sequence[StreamPlace]
) -> list[tuple[Tensor, Tensor | None, Tensor]]:
    """Run a batch, and return the entering, leaving and clean states of every place."""
    rows = [_plain_place(place, model.layers) for place in places]
    needed: set[Any] = set()
    for _, steps, inner, _ in rows:
        needed |= {*steps, *inner}
    modules, attentions = sublayer_calls.called_parts(model, needed)
    blocks, norms, head = model.blocks, model.norms, model.head
    with model.computing(), model.traced.trace(tokens, use_cache=False):
        entering, contexts = interpreter.enter(blocks, attentions)
        entering.append(norms[0].input if norms else head.input)
        block_calls.pass_over(head)
        found = []
        for depth, steps, inner, target in rows:
            hidden, leaving = entering[depth], None
            for step in steps:
                hidden = interpreter.execute(step, hidden, contexts, modules)
            for step in inner:
                leaving = interpreter.execute(step, hidden, contexts, modules)
            found.append((hidden, leaving, entering[target]))
        captured = nnsight.save(found)
    made: list[tuple[Tensor, Tensor | None, Tensor]] = captured
    return made


def _plain_place(place: StreamPlace, layers: int) -> tuple[int, list[Any], list[Any], int]:
    """Return the clean depth from which a place is reached, and its steps as they travel."""
    depth = 0
    while depth < min(len(place.before), layers) and place.before[depth] == depth:
        depth += 1
    steps = [plain(step) for step in place.before[depth:]]
    return depth, steps, [plain(step) for step in _inner(place)], place.target


def _of_sequence(batch: tuple[Tensor, Tensor | None, Tensor], row: int, length: int) -> Captured:
    """Return the states of one sequence of a batch, without its filling."""
    entering, leaving, target = batch
    # Not every device has float64.
    hidden = _wide(entering[row, :length])
    added = None if leaving is None else _wide(leaving[row, :length]) - hidden
    return Captured(hidden, added, _wide(target[row, :length]))


def _wide(states: Tensor) -> Tensor:
    return states.cpu().double() if states.device.type == "mps" else states.double()
