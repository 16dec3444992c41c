"""The labelled schedules of interventions, one at every layer where it fits."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from robustness.refusal import Refusal
from robustness.schedule import (
    Schedule,
    clean,
    drop,
    repeat,
    reverse,
    shuffle,
    skip_span,
    swap,
)

FORMS = {
    "drop": "leave the block out",
    "swap": "exchange it with the next block",
    "swap-D": "exchange it with the block D later",
    "skip-B": "leave out B blocks from it on",
    "repeat-B": "execute each of B blocks twice in a row (4-4-5-5)",
    "repeat-B-contiguous": "execute the span of B blocks twice (4-5-4-5)",
    "reverse-B": "execute B blocks in reverse order",
    "shuffle-B": "execute B blocks in a random order, the same at every run",
}
"""How an intervention's name is formed, and what it does at a layer. `repeat-BxK` adds K times."""

_NAME = re.compile(
    r"(?P<family>drop|swap|skip|repeat|reverse|shuffle)"
    r"(-(?P<size>[1-9]\d*)(x(?P<times>[1-9]\d*))?(?P<contiguous>-contiguous)?)?"
)


@dataclass(frozen=True)
class Intervention:
    """A named edit that can be made at a layer."""

    name: str
    span: int
    """How many blocks it takes hold of; the layer is the first of them."""
    edit: Callable[[Schedule, int], Schedule]

    def schedules(self, layers: int) -> dict[int, Schedule]:
        """Return the schedule for every layer of a model at which the intervention fits."""
        whole = clean(layers)
        found = {layer: self.edit(whole, layer) for layer in range(layers - self.span + 1)}
        if not found or () in found.values():
            raise Refusal(f"{self.name} leaves nothing to execute on {layers} block(s)")
        return found


def intervention(name: str) -> Intervention:
    """Return the intervention of a name, formed as in `FORMS`.

    >>> intervention("repeat-2").edit(clean(4), 1)
    (0, 1, 1, 2, 2, 3)
    """
    match = _NAME.fullmatch(name)
    if match is None or not _well_formed(match):
        raise Refusal(f"no intervention {name!r}; there are: {', '.join(FORMS)}")
    size = int(match["size"] or 1)
    times = int(match["times"] or 1)
    whole = match["contiguous"] is not None
    edits: dict[str, Callable[[Schedule, int], Schedule]] = {
        "drop": drop,
        "swap": lambda schedule, layer: swap(schedule, layer, size),
        "skip": lambda schedule, layer: skip_span(schedule, layer, size),
        "repeat": lambda s, layer: repeat(s, layer, size, times=times, contiguous=whole),
        "reverse": lambda schedule, layer: reverse(schedule, layer, size),
        "shuffle": lambda schedule, layer: shuffle(schedule, layer, size, seed=layer),
    }
    family = match["family"]
    return Intervention(name, size + 1 if family == "swap" else size, edits[family])


def schedules(
    names: Sequence[str], layers: int, chosen: Sequence[int] | None = None
) -> dict[tuple[str, int], Schedule]:
    """Return every schedule of the named interventions by intervention and layer.

    With `chosen`, only those at some of the layers.

    >>> schedules(["swap"], 3)
    {('swap', 0): (1, 0, 2), ('swap', 1): (0, 2, 1)}
    """
    if not names:
        raise Refusal(f"no intervention was asked for; there are: {', '.join(FORMS)}")
    for name in names:
        if names.count(name) > 1:
            raise Refusal(f"intervention {name!r} was asked for twice")
    for layer in chosen or ():
        if not 0 <= layer < layers:
            raise Refusal(f"there is no layer {layer}: the model has layers 0 to {layers - 1}")
    found = {
        (name, layer): schedule
        for name in names
        for layer, schedule in intervention(name).schedules(layers).items()
        if chosen is None or layer in chosen
    }
    if not found:
        raise Refusal(f"{', '.join(names)} fits at none of the layers that were asked for")
    return found


def _well_formed(match: re.Match[str]) -> bool:
    family = match["family"]
    if match["size"] is None:
        return family in {"drop", "swap"}
    if match["times"] or match["contiguous"]:
        return family == "repeat"
    return family != "drop"
