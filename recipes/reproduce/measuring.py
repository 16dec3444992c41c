"""Measurement of the files that recipes need, one after the other."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from probes.settings import SubjoinerSettings, SuffixSettings, WicSettings
from probes.subjoiner import probe_subjoiner
from probes.suffix import probe_suffix
from probes.wic import probe_wic
from recipes.recipe import SOURCES, SUBJOINER, SUFFIX, WIC, Source
from recipes.reproduce.settings import ReproduceSettings
from robustness.errors import InUse, OtherSettings, Refusal, Unanswered, Unwritable
from robustness.measurements import neurons, observe, unfit
from robustness.models.model import Model
from robustness.runs.settings import Progress, RunOptions
from robustness.schedules.built_in import intervention
from robustness.sweeps import SweepSettings, run_sweep
from robustness.tasks import TaskSettings, evaluate_tasks
from robustness.text.corpus import Corpus


class Watch(Protocol):
    """Shows progress while something is measured."""

    def __call__(self, names: str, unit: str) -> AbstractContextManager[Progress | None]:
        """Return a context that hands over a callback for progress.

        Parameters
        ----------
        names : str
            Names of what is measured.
        unit : str
            Unit in which progress is counted.
        """


@contextmanager
def unwatched(names: str, unit: str) -> Iterator[None]:
    """Show nothing."""
    yield


@dataclass(frozen=True, eq=False)
class Session:
    """Model, text and options that all measurements of a reproduction share."""

    settings: ReproduceSettings
    """Settings of the reproduction."""
    model: Model
    """Model, opened."""
    corpus: Corpus
    """Text for sweeps and observations."""
    directory: Path
    """Path of the directory of all files."""
    options: RunOptions
    """Options of every run, but for its path and its progress."""
    watch: Watch
    """Function that shows progress."""

    def path(self, source: Source) -> Path:
        """Path of the file of a source."""
        return self.directory / f"{source.file}.nc"


Measure = Callable[[Session, Sequence[Source], RunOptions], object]
"""Function that measures sources which share a pass, with options that lack only the path."""


def measure_sources(session: Session, sources: Sequence[Source]) -> dict[str, str]:
    """Measure sources, except those that exist, and those that model or data do not allow.

    Parameters
    ----------
    session : Session
        Model, text and options.
    sources : sequence of Source
        Sources to measure.

    Returns
    -------
    dict of str to str
        Reasons why files were left out, by their names.

    Raises
    ------
    OtherSettings
        If there is a file that was measured with other settings.
    """
    left_out: dict[str, str] = {}

    def leave_out(source: Source, reason: str) -> None:
        left_out[source.file] = reason
        session.options.tell(f"{source.file} is left out: {reason}")

    observed = [source for source in sources if source.command == "observe"]
    reasons = unfit(session.model, session.corpus, [source.file for source in observed])
    for source in observed:
        if source.file in reasons:
            leave_out(source, reasons[source.file])
    for group in _groups([source for source in sources if source.file not in reasons]):
        try:
            _measure_group(session, group)
        # These concern the directory or the server, not one file: going on would fail again or mix
        # settings.
        except (InUse, OtherSettings, Unanswered, Unwritable):
            raise
        except Refusal as error:
            for source in group:
                leave_out(source, str(error))
    return left_out


def _groups(sources: Sequence[Source]) -> list[list[Source]]:
    """Return groups of sources in the order of measurement; observations share one pass."""
    groups: dict[str, list[Source]] = {}
    for source in sorted(sources, key=SOURCES.index):
        name = "observe" if source.command == "observe" else source.file
        groups.setdefault(name, []).append(source)
    return list(groups.values())


def _measure_group(session: Session, group: Sequence[Source]) -> None:
    command = group[0].command
    names = ", ".join(source.file for source in group)
    with session.watch(names, UNITS[command]) as progress:
        MEASURES[command](session, group, replace(session.options, progress=progress))


def _sweep(session: Session, group: Sequence[Source], options: RunOptions) -> None:
    (source,) = group
    settings = SweepSettings(_fitting(source.arguments, session.model.layers))
    run_sweep(session.model, session.corpus, settings, replace(options, out=session.path(source)))


def _observe(session: Session, group: Sequence[Source], options: RunOptions) -> None:
    names = [source.file for source in group]
    observe(session.model, session.corpus, names, replace(options, out=session.directory))


def _neurons(session: Session, group: Sequence[Source], options: RunOptions) -> None:
    (source,) = group
    model = session.settings.model
    neurons(
        model.source,
        options=replace(options, out=session.path(source)),
        revision=model.revision,
        trust_remote_code=model.trust_remote_code,
    )


def _probe(session: Session, group: Sequence[Source], options: RunOptions) -> None:
    (source,) = group
    options = replace(options, out=session.path(source))
    settings = session.settings
    text, read, seed = settings.text, settings.probed_text, settings.text.seed
    if source == WIC:
        probe_wic(session.model, WicSettings(settings.wic_data, seed), options)
    elif source == SUFFIX:
        suffix = SuffixSettings(read, text.field, text.split, seed)
        probe_suffix(session.model, settings.model, suffix, options)
    elif source == SUBJOINER:
        subjoiner = SubjoinerSettings(read, text.field, text.split, seed)
        probe_subjoiner(session.model, subjoiner, options)


def _tasks(session: Session, group: Sequence[Source], options: RunOptions) -> None:
    (source,) = group
    settings = TaskSettings(
        source.arguments,
        _fitting(source.interventions, session.model.layers),
        data=session.settings.task_data,
        limit=session.settings.limit,
    )
    evaluate_tasks(session.model, settings, replace(options, out=session.path(source)))


MEASURES: Mapping[str, Measure] = {
    "sweep": _sweep,
    "observe": _observe,
    "neurons": _neurons,
    "probe": _probe,
    "tasks": _tasks,
}
"""Functions that measure a source, by its command."""

UNITS = {
    "sweep": "sequence",
    "observe": "sequence",
    "neurons": "layer",
    "probe": "text",
    "tasks": "text",
}
"""Units of progress by the command of a source."""


def _fitting(names: Sequence[str], layers: int) -> list[str]:
    """Return the interventions that fit at least one layer of a model."""
    fitting = [name for name in names if intervention(name).span <= layers]
    if not fitting:
        raise Refusal(f"none of {', '.join(names)} fits a model of {layers} layers")
    return fitting
