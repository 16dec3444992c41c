"""Interventions: the record of an edit, and its schedules at all layers where it fits."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from robustness.errors import Refusal
from robustness.schedules.schedule import Schedule, check_length, clean
from robustness.schedules.validation import check


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
        kinds = isinstance(self.name, str) and isinstance(self.span, int) and callable(self.edit)
        if not kinds:
            raise Refusal(
                "an intervention is Intervention(name, span, edit), a text, a whole number and a "
                f"function, not {self.name!r:.50}, {self.span!r:.50} and {self.edit!r:.50}"
            )
        if not self.name.strip():
            raise Refusal("an intervention needs a name, under which files and tables hold it")
        if "," in self.name or not self.name.isprintable():
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
            plain = set(edited) <= set(whole) and set(map(type, edited)) == {int}
            if edited and not plain:
                edited = check(edited, len(whole))
        except (Refusal, IndexError, TypeError, ValueError) as error:
            takes = "two layers" if self.pair else "one layer; with `pair`, it takes two"
            raise Refusal(
                f"{where} makes no schedule ({error}): mend its edit, which takes {takes}, or its "
                f"span of {self.span}"
            ) from error
        before, after = whole[:first], whole[end:]
        rest = edited[len(before) :]
        if edited[: len(before)] != before or (after and rest[-len(after) :] != after):
            raise Refusal(
                f"{where} changes blocks outside its span, {first} to {end - 1}: the span of "
                f"{self.name} is larger than {self.span}, or its edit is wrong"
            )
        return edited
