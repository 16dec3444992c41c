"""The labelled schedules of interventions, one at every layer where it fits."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from robustness.errors import Refusal
from robustness.schedules.schedule import (
    Schedule,
    check_length,
    clean,
    drop,
    drop_attention,
    drop_mlp,
    excerpt,
    parallel,
    repeat,
    repeat_middle,
    reverse,
    shuffle,
    skip_span,
    swap,
)

Place = tuple[str, *tuple[int, ...]]
"""Where a schedule of a sweep is: the intervention, and the layer or the two layers."""

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
"""How an intervention's name is formed, with numbers from 1, and what it does at a layer."""

PAIRS = {
    "drop-pair": "leave out both blocks; of a block and itself, that block",
    "swap-pair": "exchange the two blocks",
    "skip-span": "leave out all blocks from the one to the other",
    "repeat-span": "execute the span from the one to the other twice (4-5-4-5)",
}
"""Interventions that are made at every two layers, the second not before the first."""

_NAME = re.compile(
    r"(?P<family>drop|swap|attention-drop|mlp-drop|skip|repeat|middle-repeat|reverse|shuffle"
    r"|parallel|looped-parallel)"
    r"(-(?P<size>[1-9][0-9]{0,8})(x(?P<times>[1-9][0-9]{0,8}))?(?P<contiguous>-contiguous)?)?"
)

MOST = 5_000_000
"""The most blocks that all schedules of a sweep execute together.

All of `PAIRS` at every two of 126 layers, as the deepest models have, are 4 million. The plan of so
many takes half a minute and 1.3 GB, and grows with them.
"""


@dataclass(frozen=True)
class Intervention:
    """A named edit that can be made at a layer, or at two."""

    name: str
    span: int
    """How many blocks it takes hold of at least; the layer is the first of them."""
    edit: Callable[..., Schedule]
    """Given the clean schedule and the layer, or the first and the last."""
    pair: bool = False
    """Whether it is made at every two layers."""
    added: int = 0
    """How many blocks it executes at most besides those of the model."""

    def places(self, layers: int, chosen: Sequence[int] | None = None) -> list[tuple[int, ...]]:
        """Return the layers, or every two of them, of a model at which there is room for it.

        Those of its blocks that it is made at are among `chosen`.
        """
        room = range(layers - self.span + 1)
        if not room:
            raise Refusal(f"{self.name} takes {self.span} blocks, and the model has {layers}")
        check_length(layers + self.added, self.name)
        allowed = range(layers) if chosen is None else sorted(set(chosen))
        first = [layer for layer in allowed if layer in room]
        if not self.pair:
            return [(layer,) for layer in first]
        return [(i, j) for i in first for j in allowed if j >= i + self.span - 1]

    def schedules(
        self, layers: int, chosen: Sequence[int] | None = None
    ) -> dict[tuple[int, ...], Schedule]:
        """Return the schedule for every layer, or two, of a model at which it fits."""
        whole, places = clean(layers), self.places(layers, chosen)
        found = {place: self.edit(whole, *place) for place in places}
        if self.pair:
            # Where nothing would be left, it does not fit.
            found = {place: schedule for place, schedule in found.items() if schedule}
        if places and (not found or () in found.values()):
            raise Refusal(f"{self.name} leaves nothing to execute on {layers} block(s)")
        return found


def intervention(name: str) -> Intervention:
    """Return the intervention of a name, formed as in `FORMS` or one of `PAIRS`.

    >>> intervention("repeat-2").edit(clean(4), 1)
    (0, 1, 1, 2, 2, 3)
    """
    if name in PAIRS:
        span = 2 if name == "swap-pair" else 1
        return Intervention(name, span, _PAIR_EDITS[name], pair=True)
    match = _NAME.fullmatch(name)
    if match is None or not _well_formed(match):
        raise Refusal(
            f"no intervention {excerpt(name)!r}; there are: {', '.join((*FORMS, *PAIRS))}, with "
            "whole numbers from 1"
        )
    size = int(match["size"] or 1)
    times = int(match["times"] or 1)
    whole = match["contiguous"] is not None
    edits: dict[str, Callable[[Schedule, int], Schedule]] = {
        "drop": drop,
        "swap": lambda schedule, layer: swap(schedule, layer, size),
        "attention-drop": drop_attention,
        "mlp-drop": drop_mlp,
        "skip": lambda schedule, layer: skip_span(schedule, layer, size),
        "repeat": lambda s, layer: repeat(s, layer, size, times=times, contiguous=whole),
        "middle-repeat": lambda schedule, layer: repeat_middle(schedule, layer, size),
        "reverse": lambda schedule, layer: reverse(schedule, layer, size),
        "shuffle": lambda schedule, layer: shuffle(schedule, layer, size, seed=layer),
        "parallel": lambda schedule, layer: parallel(schedule, layer, size),
        "looped-parallel": lambda s, layer: parallel(s, layer, size, times=times),
    }
    family = match["family"]
    added = {"repeat": size * times, "looped-parallel": size * (times - 1)}.get(family, 0)
    span = size + 1 if family == "swap" else size
    return Intervention(name, span, edits[family], added=added)


def schedules(
    names: Sequence[str], layers: int, chosen: Sequence[int] | None = None
) -> dict[Place, Schedule]:
    """Return every schedule of the named interventions by intervention and layer, or layers.

    With `chosen`, only those at some of the layers.

    >>> schedules(["swap"], 3)
    {('swap', 0): (1, 0, 2), ('swap', 1): (0, 2, 1)}
    >>> schedules(["skip-span"], 2)
    {('skip-span', 0, 0): (1,), ('skip-span', 1, 1): (0,)}
    """
    if isinstance(names, str):
        raise Refusal(f"interventions are a list of names: [{names!r}]")
    if not names:
        raise Refusal(f"no intervention was asked for; there are: {', '.join((*FORMS, *PAIRS))}")
    for name in names:
        if names.count(name) > 1:
            raise Refusal(f"intervention {name!r} was asked for twice")
    for layer in chosen or ():
        if not 0 <= layer < layers:
            raise Refusal(f"there is no layer {layer}: the model has layers 0 to {layers - 1}")
    wanted = [intervention(name) for name in names]
    pairs = [each.name for each in wanted if each.pair]
    if 0 < len(pairs) < len(names):
        single = next(name for name in names if name not in pairs)
        raise Refusal(
            f"{pairs[0]} is made at every two layers and {single} at every one: run them apart"
        )
    _check_total(wanted, layers, chosen)
    found: dict[Place, Schedule] = {}
    for each in wanted:
        at = each.schedules(layers, chosen)
        found |= {(each.name, *place): schedule for place, schedule in at.items()}
    if not found:
        raise Refusal(f"{', '.join(names)} fits at none of the layers that were asked for")
    return found


def check_total(count: int, what: str, remedy: str) -> None:
    """Refuse schedules that together execute more blocks than a plan is made of in time."""
    if count > MOST:
        raise Refusal(f"{what} execute about {count:,} blocks, and {MOST:,} are the most: {remedy}")


def _check_total(wanted: Sequence[Intervention], layers: int, chosen: Sequence[int] | None) -> None:
    """Refuse more than a plan can be made of, before any schedule is built."""
    counts = {each.name: len(each.places(layers, chosen)) for each in wanted}
    check_total(
        sum(counts[each.name] * (layers + each.added) for each in wanted),
        f"the {sum(counts.values()):,} schedules of {', '.join(counts)}",
        "ask for some --layers, or for fewer interventions at a time",
    )


_PAIR_EDITS: dict[str, Callable[[Schedule, int, int], Schedule]] = {
    "drop-pair": lambda s, i, j: tuple(step for at, step in enumerate(s) if at not in {i, j}),
    "swap-pair": lambda s, i, j: swap(s, i, j - i),
    "skip-span": lambda s, i, j: skip_span(s, i, j - i + 1),
    "repeat-span": lambda s, i, j: repeat(s, i, j - i + 1, contiguous=True),
}


def _well_formed(match: re.Match[str]) -> bool:
    family = match["family"]
    if match["size"] is None:
        return family in {"drop", "swap", "attention-drop", "mlp-drop"}
    if match["contiguous"]:
        return family == "repeat"
    if match["times"]:
        return family in {"repeat", "looped-parallel"}
    return family not in {"drop", "attention-drop", "mlp-drop", "looped-parallel"}
