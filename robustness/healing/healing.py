"""Healing: schedules in which every removed span has a fitted scale or map in its place."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from robustness.errors import Refusal
from robustness.healing.capture import StreamPlace
from robustness.healing.cuts import cuts
from robustness.healing.fitting import Fitting, fit_at, join, place_of
from robustness.healing.least_squares import RIDGES
from robustness.models import block_structure
from robustness.models.maps import Fitted, Maps
from robustness.models.model import Model
from robustness.schedules import (
    Attention,
    Mapped,
    Mlp,
    Schedule,
    StreamMap,
    StreamScale,
    check,
)
from robustness.text.corpus import Corpus

HEALINGS = ("scale", "map", "fold")
"""Kinds of healing: one factor of the stream, a map of the stream, and a map of what the MLP, or
the parallel block, before the cut adds, which an export folds into its output matrix."""


@dataclass(frozen=True, eq=False)
class Healed:
    """Healed schedules, and what was fitted for them."""

    schedules: Mapping[str, Schedule]
    """Schedule by kind of healing."""
    impossible: Mapping[str, str]
    """Reason why there is none, by kind of healing."""
    maps: Maps
    """Maps of all schedules: `model.with_maps(healed.maps)` runs them."""


def heal(  # noqa: PLR0913 - its keywords are the settings
    model: Model,
    schedule: Schedule | str,
    corpus: Corpus,
    healings: Sequence[str] = HEALINGS,
    *,
    ridges: Sequence[float] = RIDGES,
    batch_tokens: int | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> Healed:
    """Put something fitted in the place of every span of blocks that a schedule lacks.

    Each span is fitted on the stream that really enters it, behind what was put in the place of
    the spans before it, and towards the clean model's stream behind the span. It takes a pass over
    the text for every span.

    Parameters
    ----------
    model : Model
        An opened model with its weights on this machine.
    schedule : tuple of int, or str
        Some of the blocks in their order, as `0..3-8..`.
    corpus : Corpus
        Token sequences to fit to, of two documents at least.
    healings : sequence of str
        Some of `HEALINGS`.
    ridges, batch_tokens, progress
        As for `fit`.

    Returns
    -------
    Healed
        For `0..3-8..`: `0..3-*1.05-8..` as `scale`, `0..3-~4..7-8..` as `map`, and as `fold`
        `0..2-a3-m3~4..7-8..`, or `0..2-3~4..7-8..` where blocks are parallel.

    Raises
    ------
    Refusal
        If the schedule is none from which whole blocks were removed, a kind of healing is none of
        `HEALINGS`, the model is on a server, or the text has a single sequence.
    """
    checked = check(schedule, model.layers)
    spans = cuts(checked, model.layers)
    unknown = [name for name in healings if name not in HEALINGS]
    if unknown:
        raise Refusal(f"no healing {unknown[0]!r}; there are: {', '.join(HEALINGS)}")
    impossible = {name: _impossible(model, name, spans) for name in healings}
    possible = [name for name in healings if not impossible[name]]
    settings = Fitting(ridges, batch_tokens)
    schedules: dict[str, Schedule] = dict.fromkeys(possible, ())
    maps, following = Maps({}), 0
    for number, (first, last) in enumerate(spans if possible else ()):
        befores: dict[str, Schedule] = {}
        steps: dict[str, Fitted] = {}
        for name in possible:
            befores[name] = schedules[name] + tuple(range(following, first))
            if name != "scale":
                befores[name], steps[name] = _map_for(model, name, befores[name], (first, last))
        following = last + 1
        places = {step: place_of(step, befores[name]) for name, step in steps.items()}
        scale = StreamPlace(befores["scale"], None, following) if "scale" in possible else None
        told = replace(settings, progress=_part(progress, number, len(spans)))
        carrying = model.with_maps(maps) if maps.matrices else model
        fitted, factor = fit_at(carrying, corpus, places, told, scale)
        maps = join(maps, fitted)
        for name, before in befores.items():
            schedules[name] = (*before, steps.get(name, StreamScale(factor)))
    for name in possible:
        schedules[name] += tuple(range(following, model.layers))
    reasons = {name: reason for name, reason in impossible.items() if reason}
    return Healed(schedules, reasons, maps)


def _part(
    progress: Callable[[int, int], object] | None, number: int, passes: int
) -> Callable[[int, int], object]:
    """Return a callback for the progress of one of several passes."""

    def tell(done: int, total: int) -> None:
        if progress is not None:
            progress(number * total + done, passes * total)

    return tell


def _map_for(
    model: Model, name: str, steps: Schedule, span: tuple[int, int]
) -> tuple[Schedule, Fitted]:
    """Return the steps before a map, and the map of a span of blocks."""
    first, last = span
    if name == "map":
        return steps, StreamMap(first, last)
    before, block = steps[:-1], first - 1
    if block_structure.examine(model).parallel:
        return before, Mapped(block, first, last)
    return (*before, Attention(block)), Mapped(Mlp(block), first, last)


def _impossible(model: Model, name: str, spans: Sequence[tuple[int, int]]) -> str:
    """Return why spans cannot be healed in one way, or nothing."""
    if name != "fold":
        return ""
    first, last = spans[0]
    if not first:
        return f"no block comes before block 0, and blocks 0 to {last} are removed"
    missing = block_structure.examine(model).missing
    for need in block_structure.SUBLAYERS:
        if need in missing:
            return missing[need]
    return ""
