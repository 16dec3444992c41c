"""Interventions: edits of the clean schedule at every layer, or every pair of layers, that fits."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from robustness.errors import Refusal
from robustness.schedules.notation import excerpt
from robustness.schedules.schedule import (
    Schedule,
    check_length,
    clean,
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
from robustness.schedules.validation import check

Place = tuple[str, *tuple[int, ...]]
"""Place of a schedule in a sweep: the intervention, and the layer or the two layers."""

FORMS = {
    "drop": "leave the block out",
    "swap": "exchange it with the next block",
    "swap-D": "exchange it with the block D later",
    "attention-drop": "leave out its attention, and keep its MLP",
    "mlp-drop": "leave out its MLP, and keep its attention",
    "skip-B": "leave out B blocks from it on",
    "repeat-B": "execute each of B blocks twice in a row (4-4-5-5)",
    "repeat-B-contiguous": "execute the span of B blocks twice (4-5-4-5)",
    "middle-repeat-B": "execute the middle one of B blocks in the place of each (5-5-5)",
    "reverse-B": "execute B blocks in reverse order",
    "shuffle-B": "execute B blocks in a random order, the same at every run",
    "parallel-B": "execute B blocks on one input, and average what leaves them",
    "looped-parallel-BxK": "the same, K times over",
    "repeat-BxK": "execute each of B blocks K times more",
}
"""Forms of the names of interventions, with numbers from 1, and what each does at a layer."""

PAIRS = {
    "drop-pair": "leave out both blocks; of a block and itself, that block",
    "swap-pair": "exchange the two blocks",
    "skip-span": "leave out all blocks from the one to the other",
    "repeat-span": "execute the span from the one to the other twice (4-5-4-5)",
}
"""Interventions at every pair of layers, the second not before the first."""

LARGEST_TOTAL = 5_000_000
"""Maximum number of blocks that all schedules of a sweep execute together.

All of `PAIRS` at every pair of 126 layers, as the deepest models have, execute 4 million. Their
plan takes half a minute and 1.3 GB, and grows with the number of blocks.
"""


@dataclass(frozen=True)
class Intervention:
    """An edit of the clean schedule, made at every layer, or every pair of layers, where it fits.

    User-defined interventions are the same record as built-in ones:

    >>> def rotate(schedule, layer):
    ...     return (*schedule[:layer], schedule[layer + 1], schedule[layer], *schedule[layer + 2 :])
    >>> Intervention("rotate-2", 2, rotate, "move the block behind the next").schedules(3)
    {(0,): (1, 0, 2), (1,): (0, 2, 1)}
    """

    name: str
    """Name in files, tables and figures."""
    span: int
    """Number of blocks, from the layer on, that the edit changes; for a pair, the minimum from the
    first layer to the second. Blocks outside are executed as in the clean schedule."""
    edit: Callable[..., Schedule]
    """Function from the clean schedule and the layer, or both layers, to a schedule."""
    long_name: str = ""
    """What the edit does at a layer, in a few words."""
    pair: bool = False
    """Whether the edit is made at every pair of layers."""
    added: int = 0
    """Maximum number of blocks that the edit executes besides those of the model."""

    def __post_init__(self) -> None:
        """Refuse a record from which no schedules can be made."""
        if not self.name.strip() or "," in self.name or not self.name.isprintable():
            raise Refusal(f"{self.name!r} is no name of an intervention: leave out commas")
        if self.span < 1:
            raise Refusal(f"{self.name} has a span of {self.span} blocks; it takes 1 or more")

    def places(self, layers: int, chosen: Sequence[int] | None = None) -> list[tuple[int, ...]]:
        """Return the layers, or pairs of layers, of a model at which the edit fits.

        With `chosen`, only these layers are returned. The blocks that the edit changes from there
        on may be others.
        """
        fitting = range(layers - self.span + 1)
        if not fitting:
            raise Refusal(f"{self.name} takes {self.span} blocks, and the model has {layers}")
        check_length(layers + self.added, self.name)
        allowed = range(layers) if chosen is None else sorted(set(chosen))
        first = [layer for layer in allowed if layer in fitting]
        if not self.pair:
            return [(layer,) for layer in first]
        pairs: list[tuple[int, ...]] = []
        for start in first:
            ends = [layer for layer in allowed if layer >= start + self.span - 1]
            pairs += [(start, end) for end in ends]
        return pairs

    def schedules(
        self, layers: int, chosen: Sequence[int] | None = None
    ) -> dict[tuple[int, ...], Schedule]:
        """Return the schedule for every layer, or pair of layers, at which the edit fits.

        Raises
        ------
        Refusal
            If the edit leaves nothing to execute, returns no schedule, or changes blocks outside
            its span.
        """
        whole, places = clean(layers), self.places(layers, chosen)
        made = {place: self._edit(whole, place) for place in places}
        if self.pair:
            # A pair may leave nothing to execute, such as a span from the first layer to the last.
            made = {place: schedule for place, schedule in made.items() if schedule}
        if places and (not made or () in made.values()):
            raise Refusal(f"{self.name} leaves nothing to execute on {layers} block(s)")
        return made

    def _edit(self, whole: Schedule, place: tuple[int, ...]) -> Schedule:
        """Return the schedule at a place, after a check that it changes the edit's span alone."""
        where = f"{self.name} at layer {' and '.join(map(str, place))}"
        first = place[0]
        end = place[1] + 1 if self.pair else first + self.span
        try:
            edited = tuple(self.edit(whole, *place))
            # A sweep may have millions of steps, most of which are blocks of the model: only
            # schedules with other steps take the slow check.
            if edited and not set(edited) <= set(whole):
                edited = check(edited, len(whole))
        except (Refusal, IndexError, TypeError, ValueError) as error:
            raise Refusal(
                f"{where} makes no schedule ({error}): mend its edit, or its span of {self.span}"
            ) from error
        before, after = whole[:first], whole[end:]
        rest = edited[len(before) :]
        if edited[: len(before)] != before or (after and rest[-len(after) :] != after):
            raise Refusal(
                f"{where} changes blocks outside its span, {first} to {end - 1}: the span of "
                f"{self.name} is larger than {self.span}, or its edit is wrong"
            )
        return edited


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


_PAIRS = {
    "drop-pair": Intervention("drop-pair", 1, _drop_pair, PAIRS["drop-pair"], pair=True),
    "swap-pair": Intervention("swap-pair", 2, _swap_pair, PAIRS["swap-pair"], pair=True),
    "skip-span": Intervention("skip-span", 1, _skip_between, PAIRS["skip-span"], pair=True),
    "repeat-span": Intervention("repeat-span", 1, _repeat_between, PAIRS["repeat-span"], pair=True),
}

# Nine digits at most: Python refuses to convert thousands of digits to a number.
_SIZE, _TIMES = r"(?P<size>[1-9][0-9]{0,8})", r"(?P<times>[1-9][0-9]{0,8})"

_FORMS = {**FORMS, "repeat-BxK-contiguous": "execute the span of B blocks K times more"}

_PATTERNS = {
    form: re.compile(re.sub("(?<=-)[DB]", _SIZE, form).replace("xK", f"x{_TIMES}"))
    for form in _FORMS
}
"""Patterns of the names of interventions, by form."""


def _of_form(form: str, name: str, size: int, times: int) -> Intervention:
    """Return the intervention of a form and its numbers."""
    records: dict[str, tuple[int, Callable[..., Schedule], int]] = {
        # Span, edit, and number of added blocks. Numbers that a form lacks are 1, and unused.
        "drop": (1, drop, 0),
        "swap": (2, swap, 0),
        "swap-D": (size + 1, partial(swap, distance=size), 0),
        "attention-drop": (1, drop_attention, 0),
        "mlp-drop": (1, drop_mlp, 0),
        "skip-B": (size, partial(skip_span, length=size), 0),
        "repeat-B": (size, partial(repeat, length=size), size),
        "repeat-B-contiguous": (size, partial(repeat, length=size, contiguous=True), size),
        "middle-repeat-B": (size, partial(repeat_middle, length=size), 0),
        "reverse-B": (size, partial(reverse, length=size), 0),
        "shuffle-B": (size, partial(_shuffle_at, length=size), 0),
        "parallel-B": (size, partial(parallel, length=size), 0),
        "looped-parallel-BxK": (
            size,
            partial(parallel, length=size, times=times),
            size * (times - 1),
        ),
        "repeat-BxK": (size, partial(repeat, length=size, times=times), size * times),
        "repeat-BxK-contiguous": (
            size,
            partial(repeat, length=size, times=times, contiguous=True),
            size * times,
        ),
    }
    span, edit, added = records[form]
    return Intervention(name, span, edit, _FORMS[form], added=added)


def intervention(name: str) -> Intervention:
    """Return the intervention of a name, formed as in `FORMS` or one of `PAIRS`.

    >>> intervention("repeat-2").edit(clean(4), 1)
    (0, 1, 1, 2, 2, 3)
    """
    if name in _PAIRS:
        return _PAIRS[name]
    for form, pattern in _PATTERNS.items():
        match = pattern.fullmatch(name)
        if match is not None:
            numbers = {group: int(digits) for group, digits in match.groupdict().items()}
            return _of_form(form, name, numbers.get("size", 1), numbers.get("times", 1))
    raise Refusal(
        f"no intervention {excerpt(name)!r}; there are: {', '.join((*FORMS, *PAIRS))}, with whole "
        "numbers from 1"
    )


def resolve(interventions: Sequence[str | Intervention]) -> list[Intervention]:
    """Return the record of every intervention, which is given by its name or as a record.

    Raises
    ------
    Refusal
        If none is given, one is unknown or given twice, or some are made at pairs of layers and
        others at single ones.
    """
    if isinstance(interventions, str):
        raise Refusal(f"interventions are a list of names: [{interventions!r}]")
    if not interventions:
        raise Refusal(f"no intervention was asked for; there are: {', '.join((*FORMS, *PAIRS))}")
    records = []
    for given in interventions:
        records.append(intervention(given) if isinstance(given, str) else given)
    names = [record.name for record in records]
    for name in names:
        if names.count(name) > 1:
            raise Refusal(f"intervention {name!r} was asked for twice")
    # Results over pairs have one dimension more than those over layers.
    pairs = [record.name for record in records if record.pair]
    if 0 < len(pairs) < len(names):
        single = next(name for name in names if name not in pairs)
        raise Refusal(
            f"{pairs[0]} is made at every two layers and {single} at every one: run them apart"
        )
    return records


def schedules(
    interventions: Sequence[str | Intervention], layers: int, chosen: Sequence[int] | None = None
) -> dict[Place, Schedule]:
    """Return every schedule of some interventions, by intervention and layer or pair of layers.

    With `chosen`, only the schedules at these layers are returned.

    >>> schedules(["swap"], 3)
    {('swap', 0): (1, 0, 2), ('swap', 1): (0, 2, 1)}
    >>> schedules(["skip-span"], 2)
    {('skip-span', 0, 0): (1,), ('skip-span', 1, 1): (0,)}
    """
    records = resolve(interventions)
    for layer in chosen or ():
        if not 0 <= layer < layers:
            raise Refusal(f"there is no layer {layer}: the model has layers 0 to {layers - 1}")
    _check_total(records, layers, chosen)
    made: dict[Place, Schedule] = {}
    for record in records:
        for place, schedule in record.schedules(layers, chosen).items():
            made[record.name, *place] = schedule
    if not made:
        names = ", ".join(record.name for record in records)
        raise Refusal(f"{names} fits at none of the layers that were asked for")
    return made


def check_total(count: int, what: str, remedy: str) -> None:
    """Refuse schedules that together execute more blocks than a plan can hold."""
    if count > LARGEST_TOTAL:
        raise Refusal(
            f"{what} execute about {count:,} blocks, and {LARGEST_TOTAL:,} are the most: {remedy}"
        )


def _check_total(
    records: Sequence[Intervention], layers: int, chosen: Sequence[int] | None
) -> None:
    """Refuse too many schedules before any of them is built: they may not fit into memory."""
    counts = {record.name: len(record.places(layers, chosen)) for record in records}
    total = sum(counts[record.name] * (layers + record.added) for record in records)
    check_total(
        total,
        f"the {sum(counts.values()):,} schedules of {', '.join(counts)}",
        "ask for some `layers`, or for fewer interventions at a time",
    )
