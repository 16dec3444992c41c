"""Built-in interventions: forms of names with numbers, and interventions at pairs of layers."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from robustness.errors import Refusal
from robustness.schedules.intervention import Intervention
from robustness.schedules.notation import excerpt
from robustness.schedules.schedule import (
    Schedule,
    drop,
    drop_attention,
    drop_mlp,
    parallel,
    repeat,
    repeat_middle,
    reverse,
    shuffle,
    skip_span,
    swap,
)


def _drop_pair(schedule: Schedule, first: int, last: int) -> Schedule:
    return tuple(step for at, step in enumerate(schedule) if at not in (first, last))


def _swap_pair(schedule: Schedule, first: int, last: int) -> Schedule:
    return swap(schedule, first, last - first)


def _skip_between(schedule: Schedule, first: int, last: int) -> Schedule:
    return skip_span(schedule, first, last - first + 1)


def _repeat_between(schedule: Schedule, first: int, last: int) -> Schedule:
    return repeat(schedule, first, last - first + 1, contiguous=True)


def _shuffle_at(schedule: Schedule, layer: int, length: int) -> Schedule:
    # Seeded by the layer, so that the order is the same at every run and differs between layers.
    return shuffle(schedule, layer, length, seed=layer)


# Nine digits at most: Python refuses to convert thousands of digits to a number.
_NUMBER = "([1-9][0-9]{0,8})"

_ARGUMENTS = {"B": "length", "D": "distance", "K": "times"}
"""Argument of an edit that a letter in the name of a form stands for."""


@dataclass(frozen=True)
class Form:
    """Interventions whose names differ in numbers alone, such as `reverse-2` and `reverse-3`.

    >>> Form("reverse-B", "execute B blocks in reverse order", reverse).read("reverse-3").span
    3
    """

    name: str
    """Name with letters for its numbers: the edit's `length` B, `distance` D and `times` K."""
    long_name: str
    """What the edit does at a layer, in a few words."""
    edit: Callable[..., Schedule]
    """Function from the clean schedule, the layer and the numbers to a schedule."""
    span: Callable[..., int] = lambda length=1: length
    """Function from the numbers to the number of blocks that the edit changes."""
    added: Callable[..., int] = lambda **_: 0
    """Function from the numbers to the number of blocks that are executed besides the model's."""

    def read(self, name: str) -> Intervention | None:
        """Return the intervention of a name, or None if the name is not of this form."""
        letters = re.findall("(?<=[-x])[BDK]", self.name)
        match = re.fullmatch(re.sub("(?<=[-x])[BDK]", _NUMBER, self.name), name)
        if match is None:
            return None
        numbers = {_ARGUMENTS[each]: int(at) for each, at in zip(letters, match.groups())}
        extent = dict(numbers)
        extent.pop("times", None)
        return Intervention(
            name,
            self.span(**extent),
            partial(self.edit, **numbers) if numbers else self.edit,
            self.long_name,
            added=self.added(**numbers),
        )


def _copies(length: int, times: int = 1) -> int:
    return length * times


_repeat_contiguous = partial(repeat, contiguous=True)

_FORMS = (
    Form("drop", "leave the block out", drop),
    Form("swap", "exchange it with the next block", swap, lambda: 2),
    Form("swap-D", "exchange it with the block D later", swap, lambda distance: distance + 1),
    Form("attention-drop", "leave out its attention, and keep its MLP", drop_attention),
    Form("mlp-drop", "leave out its MLP, and keep its attention", drop_mlp),
    Form("skip-B", "leave out B blocks from it on", skip_span),
    Form("repeat-B", "execute each of B blocks twice in a row (4-4-5-5)", repeat, added=_copies),
    Form(
        "repeat-B-contiguous",
        "execute the span of B blocks twice (4-5-4-5)",
        _repeat_contiguous,
        added=_copies,
    ),
    Form(
        "middle-repeat-B",
        "execute the middle one of B blocks in the place of each (5-5-5)",
        repeat_middle,
    ),
    Form("reverse-B", "execute B blocks in reverse order", reverse),
    Form("shuffle-B", "execute B blocks in a random order, the same at every run", _shuffle_at),
    Form("parallel-B", "execute B blocks on one input, and average what leaves them", parallel),
    Form(
        "looped-parallel-BxK",
        "the same, K times over",
        parallel,
        added=lambda length, times: length * (times - 1),
    ),
    Form("repeat-BxK", "execute each of B blocks K times more", repeat, added=_copies),
    Form(
        "repeat-BxK-contiguous",
        "execute the span of B blocks K times more",
        _repeat_contiguous,
        added=_copies,
    ),
)

FORMS = {form.name: form for form in _FORMS}
"""Forms of the names of interventions at a layer, with numbers from 1."""

_PAIRS = (
    Intervention(
        "drop-pair",
        1,
        _drop_pair,
        "leave out both blocks; of a block and itself, that block",
        pair=True,
    ),
    Intervention("swap-pair", 2, _swap_pair, "exchange the two blocks", pair=True),
    Intervention(
        "skip-span", 1, _skip_between, "leave out all blocks from the one to the other", pair=True
    ),
    Intervention(
        "repeat-span",
        1,
        _repeat_between,
        "execute the span from the one to the other twice (4-5-4-5)",
        pair=True,
    ),
)

PAIRS = {record.name: record for record in _PAIRS}
"""Interventions at every pair of layers, the second not before the first."""


def intervention(name: str) -> Intervention:
    """Return the intervention of a name, formed as in `FORMS` or one of `PAIRS`.

    >>> intervention("repeat-2").schedules(3)
    {(0,): (0, 0, 1, 1, 2), (1,): (0, 1, 1, 2, 2)}
    """
    if name in PAIRS:
        return PAIRS[name]
    for form in FORMS.values():
        record = form.read(name)
        if record is not None:
            return record
    raise Refusal(
        f"no intervention {excerpt(name)!r}; there are: {', '.join((*FORMS, *PAIRS))}, with whole "
        "numbers from 1"
    )
