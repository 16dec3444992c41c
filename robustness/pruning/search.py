"""Search for the units that a model can lose, in rounds of candidates that are raced."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from robustness.errors import Refusal
from robustness.files import changes, output
from robustness.files.kinds.searches import DROPPED, SEARCH, TIED
from robustness.files.output import Output
from robustness.files.precision_floor import FLOOR
from robustness.healing import save_maps
from robustness.models.model import Model
from robustness.pruning import methods, outcome, speed
from robustness.pruning.choice import maps_path
from robustness.pruning.clean_pass import measure_redundancy
from robustness.pruning.healed import measure_healed
from robustness.pruning.known import take_known
from robustness.pruning.methods import Problem, sketched
from robustness.pruning.preparation import (
    Search,
    prepare,
)
from robustness.pruning.racing import Cut, Round, race
from robustness.pruning.record import Record
from robustness.pruning.rehearsal import foresee_first
from robustness.pruning.settings import PruningSettings
from robustness.pruning.units import names
from robustness.runs.announcement import announce
from robustness.runs.attempts import Lacking
from robustness.runs.heap import kept_heap
from robustness.runs.settings import RunOptions
from robustness.schedules import Schedule, to_text
from robustness.sweeps.execution import LESS_TRAFFIC
from robustness.sweeps.precision_floor import measure_floor
from robustness.text.corpus import Corpus


def prune(
    model: Model,
    corpora: Sequence[Corpus],
    settings: PruningSettings,
    options: RunOptions | None = None,
    *,
    timed: bool = False,
) -> xr.Dataset:
    """Search for the units of a model that cost least to remove, and judge them on other documents.

    Parameters
    ----------
    model : Model
        An opened model.
    corpora : sequence of Corpus
        Texts; of each, the last documents are held out.
    settings : PruningSettings
        What is looked for.
    options : RunOptions, optional
        How the run proceeds. With `out`, measured numbers are kept beside it, and the same call
        continues from there. Fitted maps of a search that heals are written to
        `NAME.maps.safetensors`.
    timed : bool
        Whether the time for a token is measured too, before and after.

    Returns
    -------
    Dataset
        `kl`, `agreement` and `loss` (candidate, sequence), what each method chose (strategy, step),
        and how certain that is; see docs/files.md.

    Raises
    ------
    Refusal
        If there is nothing to remove, the text is too short to hold some of it out, or `out` holds
        another search.
    """
    options = options or RunOptions()
    search = prepare(model, corpora, settings, options)
    with ExitStack() as stack:
        place = Output(options.out, SEARCH)
        stack.callback(place.release)
        return _run(search, place, options, timed)


def _run(search: Search, place: Output, options: RunOptions, timed: bool) -> xr.Dataset:
    """Run a search, or what is left of it."""
    record = Record(search.blank, search.batches, place, search.model.layers)
    finished = None if options.fresh else record.resume()
    if finished is not None:
        place.forget()
        if search.settings.heal and not maps_path(place.path or Path()).exists():
            options.tell("the fitted maps beside the file are gone: `fresh` fits them again")
        return finished
    if not record.candidates:
        place.try_out(search.blank)
    known = take_known(record, search.settings.measured, search.model.layers)
    if known:
        options.tell(f"{known:,} schedules are measured already")
    if search.model.request or options.foresee is not None:
        announce(foresee_first(search), options, LESS_TRAFFIC)
    running = _Running(search, record, options)
    try:
        with kept_heap(search.model.device):
            if FLOOR not in record.attrs:
                corpus = search.parts.corpus
                record.attrs |= measure_floor(search.model, corpus, options.tell)
            rounds = {name: running.follow(name) for name in search.methods}
            running.judge(rounds)
            healings = None
            if search.settings.heal:
                healings = measure_healed(search, record, _chosen(search, rounds), options)
    except BaseException as error:
        # What was measured is kept; a failing save must not hide why the search ended.
        with output.last_words(type(error)):
            record.save()
        raise
    dataset = outcome.complete(record, search, rounds, running.predicted, healings)
    if timed:
        dataset = dataset.assign(_speed(search, rounds, options))
    if healings is not None and healings.model.maps is not None and options.out is not None:
        save_maps(healings.model.maps, maps_path(options.out))
    place.complete(dataset)
    place.forget()
    return dataset


def _speed(
    search: Search, rounds: dict[str, list[Round]], options: RunOptions
) -> dict[str, xr.DataArray]:
    """Measure the time for a token before and after what the first method chose last."""
    try:
        return {"milliseconds": speed.measure(search.model, _chosen(search, rounds))}
    except Refusal as error:
        options.tell(f"the time for a token is not measured: {error}")
        return {}


def _chosen(search: Search, rounds: dict[str, list[Round]]) -> Schedule:
    """Return what the first method that chose anything has chosen in the end."""
    return search.schedule(next(filter(None, rounds.values()))[-1].best)


@dataclass(eq=False)
class _Running:
    """A search that runs: the measuring that methods ask for."""

    search: Search
    record: Record
    options: RunOptions
    predicted: dict[Schedule, float] = field(default_factory=dict)
    """What the quadratic model predicts, by candidate."""
    begun: int = 0
    """Number of measurings of a candidate on a batch that rounds so far would take in full."""
    done: int = 0
    """Number of these that were done, or need not be done any more."""

    def __post_init__(self) -> None:
        """Go on with the portions to which memory has forced an earlier call."""
        self._at = 0
        # What a method has measured, by batch: its rounds may weigh a candidate again.
        self._counted = set[tuple[int, Cut]]()
        self._found = False
        self.search.measurer.begin(changes.lowered(self.record.attrs), self._note_lost)

    def follow(self, name: str) -> list[Round]:
        """Run a method until the target is reached, and return its rounds."""
        search, settings = self.search, self.search.settings
        self._counted.clear()
        observe = cache(self._observe)
        problem = Problem(
            search.units, settings, search.last, self.weigh, observe, self._note_predictions
        )
        rounds: list[Round] = []
        for found in methods.BY_NAME[name](problem):
            self._tell(name, found)
            if settings.until_kl is not None and not found.means[0] <= settings.until_kl:
                break
            rounds.append(found)
            if search.is_reached(found.best):
                break
        # Another method may find something that costs less.
        if not rounds and name == search.methods[-1] and not self._found:
            raise Refusal(
                f"removing {names(found.best)}, which costs least by {name}, already has a score "
                f"of {found.means[0]:.3g}: ask for more than `until_kl` {settings.until_kl:g}"
            )
        self._found |= bool(rounds)
        return rounds

    def judge(self, rounds: dict[str, list[Round]]) -> None:
        """Measure what methods have chosen on the held-out part."""
        chosen: dict[Schedule, None] = {}
        for of_method in rounds.values():
            for found in of_method:
                chosen[self.search.schedule(found.best)] = None
        batches = range(self.search.searched, len(self.search.batches))
        self.begun += len(chosen) * len(batches)
        for batch in batches:
            self.measure(list(chosen), batch)
        self._warn_beyond(list(chosen))

    def _warn_beyond(self, chosen: Sequence[Schedule]) -> None:
        """Tell what costs more on the held-out part than was asked for."""
        bound, held_out = self.search.settings.until_kl, self.search.parts.held_out
        if bound is None or held_out.start == held_out.stop:
            return
        scores = self.record.scores(chosen, held_out, self.search.settings.objective).mean(1)
        for schedule, score in zip(chosen, scores.tolist(), strict=True):
            if score > bound:
                self.options.tell(
                    f"{to_text(schedule)} has a score of {score:.4g} on the held-out text, above "
                    f"`until_kl` {bound:g}"
                )

    def measure(self, schedules: Sequence[Schedule], batch: int) -> None:
        """Measure those of some candidates on a batch that are not measured on it yet."""
        missing = self.record.missing(schedules, batch)
        if missing:
            rows = self.search.batches[batch]
            self._at = rows.start
            self.record.add(missing, batch, self.search.measurer.measure(missing, rows))
        self.done += len(schedules)
        self.options.show(self.done, self.begun)

    def weigh(
        self, candidates: Sequence[Cut], *, keep: int = 1, share: float | None = None
    ) -> Round:
        """Race candidates, or measure all of them on a share; see `methods.Weigh`."""
        search = self.search
        batches = (
            search.searched if share is None else sketched(search.parts, search.batches, share)
        )
        done = self.done
        self.begun += len(candidates) * batches
        self.options.show(self.done, self.begun)
        finish = race(
            candidates,
            batches,
            self._scores_after,
            self._documents,
            keep if share is None else None,
            search.settings.level,
        )
        # Those that a race spared count as done.
        self.done = done + len(candidates) * batches
        standing = dict(zip(finish.ranking, finish.standing, strict=True))
        lengths, tokens, applications = search.parts.corpus.lengths, 0, 0
        added = sum((0, cut) not in self._counted for cut in candidates)
        for batch, alive in enumerate(finish.measured):
            rows = search.batches[batch]
            counted = [cut for cut in alive if (batch, cut) not in self._counted]
            self._counted |= {(batch, cut) for cut in counted}
            tokens += len(counted) * int(lengths[rows].sum())
            if counted:
                schedules = [search.schedule(cut) for cut in counted]
                applications += search.measurer.applications(schedules, rows)
        return Round(
            tuple(candidates),
            tuple(standing.get(cut, DROPPED) for cut in candidates),
            tuple(finish.ranking),
            tuple(finish.means),
            tokens,
            added * int(lengths[: search.parts.searched].sum()),
            applications,
        )

    def _scores_after(self, candidates: Sequence[Cut], batch: int) -> NDArray[np.float64]:
        """Measure candidates on a batch, and return their scores on all sequences so far."""
        schedules = [self.search.schedule(cut) for cut in candidates]
        self.measure(schedules, batch)
        rows = slice(0, self.search.batches[batch].stop)
        return self.record.scores(schedules, rows, self.search.settings.objective)

    def _documents(self, batch: int) -> NDArray[np.int64]:
        """Return the documents of all sequences up to a batch."""
        return self.search.parts.corpus.document[: self.search.batches[batch].stop]

    def _observe(self) -> xr.Dataset:
        """Measure how little blocks turn the residual stream, on the searched part."""
        corpus = self.search.parts.corpus.take(self.search.parts.searched)
        options = RunOptions(tell=self.options.tell)
        return measure_redundancy(self.search.model, corpus, options)

    def _note_predictions(self, cuts: Sequence[Cut], predicted: NDArray[np.float64]) -> None:
        for cut, value in zip(cuts, predicted.tolist(), strict=True):
            self.predicted[self.search.schedule(cut)] = value

    def _note_lost(self, sequence: int, text: str, lacking: Lacking) -> None:
        """Record in the file that memory or time ran out."""
        name = changes.LACKING[lacking]
        self.record.attrs |= changes.noted(self.record.attrs, name, self._at, text)

    def _tell(self, name: str, found: Round) -> None:
        """Tell what a method removes at a step."""
        tied = sum(value == TIED for value in found.standing)
        among = f", tied with {tied} of {found.raced}" if tied else ""
        self.options.tell(
            f"{name}: without {names(found.best)}, score {found.means[0]:.4g} nat{among}"
        )
