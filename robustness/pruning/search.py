"""Search for the units that a model can lose, in rounds of candidates that are measured and raced."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from robustness.errors import Refusal
from robustness.files import changes, output
from robustness.files.kinds.searches import READ
from robustness.files.labels import blank_dataset
from robustness.files.metrics import CLEAN_READOUTS
from robustness.files.output import Output
from robustness.files.precision_floor import FLOOR
from robustness.files.provenance import file_attributes
from robustness.models.model import Model
from robustness.pruning import methods, outcome
from robustness.pruning.clean_pass import measure_redundancy
from robustness.pruning.measuring import Measurer
from robustness.pruning.methods import Problem
from robustness.pruning.parts import Parts, divide
from robustness.pruning.racing import Cut, Round, race
from robustness.pruning.record import CLEAN_LOSS, Record
from robustness.pruning.settings import PruningSettings
from robustness.pruning.sizes import size_of
from robustness.pruning.units import Unit, names, units_of, without
from robustness.runs.heap import kept_heap
from robustness.runs.settings import RunOptions
from robustness.schedules import Schedule
from robustness.sweeps.precision_floor import measure_floor
from robustness.text.corpus import Corpus

KIND = "search"


def prune(
    model: Model,
    corpora: Sequence[Corpus],
    settings: PruningSettings,
    options: RunOptions | None = None,
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
        continues from there.

    Returns
    -------
    Dataset
        `kl`, `agreement` and `loss` (candidate, sequence), what each method chose (method, step),
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
        place = Output(options.out, KIND)
        stack.callback(place.release)
        return _run(search, place, options)


@dataclass(frozen=True, eq=False)
class Search:
    """A search before any of it is run."""

    model: Model
    parts: Parts
    settings: PruningSettings
    units: tuple[Unit, ...]
    last: int
    """Number of removed units after which it ends, if known, and otherwise the largest possible."""
    methods: tuple[str, ...]
    measurer: Measurer
    batches: list[slice]
    """Sequences of every batch; those of the searched part come first."""
    searched: int
    """Number of batches of the searched part."""
    blank: xr.Dataset
    """The dataset without candidates."""

    def schedule(self, cut: Cut) -> Schedule:
        """Return the schedule without some units."""
        return without(self.model.layers, cut)


def prepare(
    model: Model, corpora: Sequence[Corpus], settings: PruningSettings, options: RunOptions
) -> Search:
    """Check that a search is possible, and return what it is to do; see `prune`."""
    layers = range(model.layers) if settings.layers is None else sorted(set(settings.layers))
    units = units_of(settings.units, layers)
    last = _last(model, settings, units)
    parts = divide(corpora, settings.holdout)
    if options.out is not None and not options.fresh:
        # Batches stay those that the search began with, whatever memory is free now.
        began = changes.began_with(output.resumed_attributes(options.out))
        options = replace(options, batch_tokens=began or options.batch_tokens)
    measurer = Measurer(model, parts.corpus, options)
    searched, held_out = parts.batches(measurer.batch_tokens)
    chosen = methods.chosen(settings, len(units))
    attributes = {
        "measurement": KIND,
        **model.identity,
        **model.execution,
        **parts.corpus.settings(),
        "units": settings.units,
        "target": settings.target,
        "objective": settings.objective,
        "methods": ", ".join(chosen),
        "layers": None if settings.layers is None else ", ".join(map(str, layers)),
        "holdout": settings.holdout,
        "level": settings.level,
        "beam": settings.beam,
        "finalists": settings.finalists,
        "batch_tokens": measurer.batch_tokens,
        "state_cap": measurer.state_cap,
    }
    clean = next(metric for metric in CLEAN_READOUTS if metric.name == CLEAN_LOSS)
    coords = {
        "sequence": np.arange(len(parts.source)),
        "document": ("sequence", parts.corpus.document),
        "part": ("sequence", parts.part),
        "source": ("sequence", parts.source),
    }
    blank = blank_dataset(
        {CLEAN_LOSS: (clean, ("sequence",))},
        coords,
        file_attributes(attributes, options.command),
        model.precision,
    )
    batches = [*searched, *held_out]
    return Search(
        model, parts, settings, units, last, chosen, measurer, batches, len(searched), blank
    )


def _last(model: Model, settings: PruningSettings, units: Sequence[Unit]) -> int:
    """Return after how many removed units a search ends, or how many can be removed at most."""
    count = len(units)
    # A schedule executes at least one block or sublayer.
    whole = model.layers * (1 if settings.units in ("block", "attention", "mlp") else 2)
    most = count - (count == whole and settings.units in ("block", "sublayer"))
    wanted = settings.remove
    if settings.keep is not None:
        wanted = count - settings.keep
        if wanted < 1:
            raise Refusal(
                f"`keep` {settings.keep} leaves nothing to remove: of {count} {_kind(settings)}, "
                f"keep {count - 1} or fewer"
            )
    if wanted is not None and wanted > most:
        raise Refusal(
            f"{wanted} {_kind(settings)} cannot be removed: {most} of {model.layers} layers' can"
            if settings.layers is None
            else f"{wanted} {_kind(settings)} cannot be removed: `layers` has {most} that can"
        )
    if settings.to_parameters is not None:
        _check_parameters(model, settings, units[:most])
    return wanted or most


def _kind(settings: PruningSettings) -> str:
    names_of = {"block": "blocks", "attention": "attentions", "mlp": "MLPs"}
    return names_of.get(settings.units, "attentions and MLPs")


def target_parameters(model: Model, settings: PruningSettings) -> int:
    """Return the number of parameters that a search comes down to."""
    wanted = settings.to_parameters or 0.0
    whole = size_of(model, tuple(range(model.layers))).parameters
    return int(wanted * whole if wanted < 1 else wanted)


def _check_parameters(model: Model, settings: PruningSettings, units: Sequence[Unit]) -> None:
    """Refuse a number of parameters that removing all units would not reach."""
    wanted = target_parameters(model, settings)
    least = size_of(model, without(model.layers, units)).parameters
    whole = size_of(model, tuple(range(model.layers))).parameters
    if not least <= wanted < whole:
        raise Refusal(
            f"{wanted:,} parameters cannot be reached: {model.name} has {whole:,}, and {least:,} "
            f"without all {_kind(settings)} that can be removed"
        )


def _run(search: Search, place: Output, options: RunOptions) -> xr.Dataset:
    """Run a search, or what is left of it."""
    record = Record(search.blank, search.batches, place, search.model.layers)
    finished = None if options.fresh else record.resume()
    if finished is not None:
        place.forget()
        return finished
    if not record.candidates:
        place.try_out(search.blank)
    running = _Running(search, record, options)
    try:
        with kept_heap(search.model.device):
            if FLOOR not in record.attrs:
                corpus = search.parts.corpus
                record.attrs |= measure_floor(search.model, corpus, options.tell)
            rounds = {name: running.follow(name) for name in search.methods}
            running.judge(rounds)
    except BaseException as error:
        # What was measured is kept; a failing save must not hide why the search ended.
        with output.last_words(type(error)):
            record.save()
        raise
    dataset = outcome.complete(record, search, rounds, running.predicted)
    place.complete(dataset)
    place.forget()
    return dataset


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
        """Record in the file where memory runs out."""
        self.search.measurer.on_lost(self._note_lost)

    def follow(self, name: str) -> list[Round]:
        """Run a method until the target is reached, and return its rounds."""
        search, settings = self.search, self.search.settings
        problem = Problem(
            search.units,
            settings,
            search.last,
            self.weigh,
            self.means,
            cache(self._observe),
            self._note_predictions,
        )
        rounds: list[Round] = []
        for found in self._rounds(methods.BY_NAME[name](problem)):
            score = float(self.means([found.best])[0])
            self._tell(name, len(rounds) + 1, found, score)
            if settings.until_kl is not None and not score <= settings.until_kl:
                break
            rounds.append(found)
            if self._is_small_enough(found.best):
                break
        if not rounds:
            raise Refusal(
                f"removing {names(found.best)}, which costs least by {name}, already has a score "
                f"of {score:.3g}: ask for more than `until_kl` {settings.until_kl:g}"
            )
        return rounds

    def judge(self, rounds: dict[str, list[Round]]) -> None:
        """Measure what methods have chosen on the held-out part."""
        chosen: dict[Schedule, None] = {}
        for of_method in rounds.values():
            for found in of_method:
                chosen[self.search.schedule(found.best)] = None
        batches = range(self.search.searched, len(self.search.batches))
        self._begin(len(chosen) * len(batches))
        for batch in batches:
            self.measure(list(chosen), batch)

    def measure(self, schedules: Sequence[Schedule], batch: int) -> None:
        """Measure those of some candidates on a batch that are not measured on it yet."""
        missing = self.record.missing(schedules, batch)
        if missing:
            rows = self.search.batches[batch]
            self.record.add(missing, batch, self.search.measurer.measure(missing, rows))
        self.done += len(schedules)
        self.options.show(self.done, self.begun)

    def weigh(
        self, candidates: Sequence[Cut], *, keep: int = 1, share: float | None = None
    ) -> Round:
        """Race candidates, or measure all of them on a share; see `methods.Weigh`."""
        candidates = [cut for cut in candidates if self.search.schedule(cut)]
        batches = self.search.searched
        if share is not None:
            batches, keep = self._batches_of(share), 0
        done = self.done
        self._begin(len(candidates) * batches)
        ranking, standing, measured = race(
            candidates,
            batches,
            self._scores_after,
            self._documents,
            keep if share is None else len(candidates) + 1,
            self.search.settings.level,
        )
        self.done = done + len(candidates) * batches
        by_cut = dict(zip(ranking, standing, strict=True))
        return Round(
            tuple(candidates),
            tuple(by_cut.get(cut, 0) for cut in candidates),
            tuple(ranking),
            *self._costs(candidates, measured),
        )
