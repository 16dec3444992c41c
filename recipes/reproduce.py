"""Measures what recipes are read from, file by file, and goes on from what is there."""

import stat
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from probes.settings import SubjoinerSettings, SuffixSettings, WicSettings
from probes.subjoiner import probe_subjoiner
from probes.suffix import probe_suffix
from probes.wic import probe_wic
from recipes.evidence.files import Files
from recipes.evidence.stages import stages
from recipes.recipe import SOURCES, STAGES, SUBJOINER, SUFFIX, SWEEP, WIC, Recipe, Source
from recipes.report.page import check_places, places, report
from robustness.errors import InUse, OtherSettings, Refusal, Unwritable, reading
from robustness.files import netcdf
from robustness.files.atomic import remove_leftovers_with_lock
from robustness.files.provenance import file_digest, project_version, value_digest
from robustness.measurements.observation import observe
from robustness.measurements.prediction_neurons import neurons
from robustness.measurements.requirements import unfit
from robustness.models import checkpoint
from robustness.models.model import Model
from robustness.models.settings import ModelSettings
from robustness.runs.settings import RunOptions
from robustness.schedules.interventions import intervention
from robustness.sweeps import sweep
from robustness.tasks import TaskSettings, evaluate_tasks
from robustness.text.corpus import Corpus
from robustness.text.local_file import expanded, file_kind

Watch = Callable[[str, str], AbstractContextManager[Callable[[int, int], object]]]
"""Given what is measured and its unit, shows progress while that lasts."""


@dataclass(frozen=True)
class Inputs:
    """What is measured on what, and how."""

    model: Model
    corpus: Corpus
    """What sweeps and measurements read."""
    text: str
    """What windows and words are taken from."""
    pairs: str = "builtin"
    """What word-in-context pairs are taken from."""
    task_data: Path | None = None
    """Where the items of tasks are; without it, on the hub."""
    limit: int | None = None
    """Items of each task."""
    reading: Mapping[str, Any] = field(default_factory=dict)
    """`field` and `split` of the text."""
    loading: Mapping[str, Any] = field(default_factory=dict)
    """`revision` and `trust_remote_code` of the model."""
    batch_tokens: int | None = None
    cap: int | None = None
    seed: int = 0


@dataclass(frozen=True)
class Task:
    """What stays the same over all that is measured."""

    name: str
    """What the model was opened from."""
    inputs: Inputs
    directory: Path
    fresh: bool
    command: str
    tell: Callable[[str], object]
    """Told of what the user should know on the way."""

    def path(self, source: Source) -> Path:
        """Where a file is left."""
        return self.directory / f"{source.file}.nc"

    def common(self, progress: Any) -> dict[str, Any]:
        """Return the arguments that everything that is measured takes."""
        return {
            "batch_tokens": self.inputs.batch_tokens,
            "fresh": self.fresh,
            "command": self.command,
            "progress": progress,
            "tell": self.tell,
        }


def reproduce(
    name: str,
    recipes: Sequence[Recipe],
    directory: Path,
    prepare: Callable[[], Inputs],
    *,
    settings: Mapping[str, Any],
    strict: bool = False,
    fresh: bool = False,
    command: str = "",
    watch: Watch,
    tell: Callable[[str], object],
) -> Path:
    """Measure what recipes are read from, divide into stages, judge, draw, and report.

    What is there is not made again: measured files are gone on with, and verdicts, figures and
    report are made anew only where a file has changed.

    Parameters
    ----------
    name : str
        What the model is opened from.
    recipes : sequence of Recipe
        The experiments.
    directory : path
        Where all is left.
    prepare : callable
        Opens model and text; not called where nothing is to be done.
    settings : mapping
        What tells this request from another.
    strict : bool
        Whether it is an error, at the end, if something was left out.
    fresh : bool
        Whether to throw away what is there.
    command : str
        The command line, for the record.
    watch, tell : callable
        Show progress, and say something on the way.

    Returns
    -------
    path
        The report.

    Raises
    ------
    Refusal
        If nothing could be measured, something was left out and `strict` asked for all, or files of
        other settings are in the way.
    """
    sources = sources_of(recipes)
    page, claims, figures = (directory / name for name in ("report.html", "claims.nc", "figures"))
    check_places(page, claims, figures)
    for path, _ in places(page, claims, figures):
        remove_leftovers_with_lock(path)
    left_out = _unavailable(name, sources, settings.get("task_data"))
    for file, reason in left_out.items():
        tell(f"{file} is left out: {reason}")
    wanted = _asked(name, {**settings, "experiments": [recipe.name for recipe in recipes]})
    if not fresh and _is_done(directory, wanted, left_out):
        tell("all of it is there: nothing to do")
        return page
    unavailable = dict(left_out)
    task = Task(name, prepare(), directory, fresh, command, tell)
    fitting = [source for source in sources if source.file not in left_out]
    _check_model(task, fitting if fresh else [])
    documents, least = len(set(task.inputs.corpus.document.tolist())), SWEEP.least
    if documents < least and any(source.unit == "documents" for source in fitting):
        tell(
            f"the text has {documents} document(s): with fewer than {least} what is measured on it "
            "is neither drawn nor judged (a line <|endoftext|> divides the documents of a .txt)"
        )
    left_out |= _measure(task, fitting, watch, tell)
    for file, reason in left_out.items():
        if len(left_out) == len(sources):
            raise Refusal(f"nothing could be measured; {file}: {reason}")
    what, again = f"a file in {directory.name}", "run the same command with --fresh"
    with reading(what, again):
        _divide(directory, left_out, command)
        files = Files(directory, left_out)
    if fresh or not _is_done(directory, wanted, left_out):
        with reading(what, again), watch("report", "figure") as progress:
            report(
                [directory],
                page,
                claims=claims,
                figures=figures,
                left_out=files.left_out,
                settings={"asked": wanted},
                command=command,
                progress=progress,
            )
    for file, reason in left_out.items():
        if strict and file not in {STAGES.file, *unavailable}:
            raise Refusal(f"{file} was left out, the rest is in {page}: {reason}")
    return page


def _check_model(task: Task, replaced: Sequence[Source]) -> None:
    """Refuse a directory with files of another model before anything is measured.

    Those that are measured anew do not count.
    """
    for source in SOURCES:
        path = task.path(source)
        if source == STAGES or source in replaced or not path.exists():
            continue
        attrs = netcdf.load(path).attrs
        for key in ("model", "weights_sha256"):
            ours = task.inputs.model.identity.get(key)
            if key in attrs and ours and attrs[key] != ours:
                raise OtherSettings(
                    f"{path.name} in {task.directory.name} is of another model ({attrs['model']}, "
                    f"not {task.inputs.model.name}, or other weights): choose another --out, or "
                    + ("remove it" if replaced else "--fresh to replace it")
                )


def _is_done(directory: Path, wanted: str, left_out: Mapping[str, str]) -> bool:
    """Whether the report was made for this very request from these very files."""
    page, claims = directory / "report.html", directory / "claims.nc"
    try:
        attrs, files = netcdf.load(claims).attrs, Files(directory)
    except Refusal:  # none yet, or damaged
        return False
    tried = {file: reason for file, reason in files.left_out.items() if file != STAGES.file}
    there = page.exists() and page.stat().st_size and (directory / "figures").is_dir()
    return bool(there) and (attrs.get("asked"), attrs.get("sources"), tried) == (
        wanted,
        files.stamp(),
        {file: reason for file, reason in left_out.items() if file != STAGES.file},
    )


def _divide(directory: Path, left_out: dict[str, str], command: str) -> None:
    """Divide into stages, if that is not done from these very files."""
    path = directory / f"{STAGES.file}.nc"
    if not Files(directory, left_out).missing(STAGES):
        return
    try:
        stages(directory, out=path, command=command)
    except (InUse, Unwritable):
        raise
    except Refusal as error:
        left_out[STAGES.file] = str(error)


def sources_of(recipes: Sequence[Recipe]) -> list[Source]:
    """Return what recipes are read from, in the order in which it is measured."""
    wanted = {source for recipe in recipes for source in recipe.sources}
    return [source for source in SOURCES if source in wanted and source != STAGES]


def _unavailable(name: str, sources: Sequence[Source], task_data: Path | None) -> dict[str, str]:
    """Return what cannot be measured for want of data, and why: built-in models stay offline."""
    if name not in checkpoint.BUILTIN or task_data is not None:
        return {}
    reason = "the items of benchmark tasks are on the hub: give --task-data with the files"
    return {source.file: reason for source in sources if source.command == "tasks"}


DATA = ("data", "wic_data", "task_data")
"""Settings that may name files."""


def _asked(name: str, settings: Mapping[str, Any]) -> str:
    """Return what tells two requests apart without opening a model: settings, weights and data.

    Local files count by what is in them; a hub id by its name.
    """
    _, place = checkpoint.resolve(name)
    weights = checkpoint.hash_directory(Path(place)) if Path(place).is_dir() else ""
    told = {key: str(value) for key, value in settings.items()}
    for key in DATA:
        told[key] = str([file_digest(path) for path in _files(settings[key])] or told[key])
    return value_digest((project_version(), name, weights, sorted(told.items())))


def _measure(
    task: Task, sources: Sequence[Source], watch: Watch, tell: Callable[[str], object]
) -> dict[str, str]:
    """Measure what is not there yet.

    What the model or the data do not allow is left out, and the rest is measured.

    Returns
    -------
    dict of str to str
        Of every file that was left out, why.

    Raises
    ------
    OtherSettings
        If a file of other settings stands where one would be left.
    """
    left_out: dict[str, str] = {}

    def leave_out(source: Source, error: Refusal | str) -> None:
        left_out[source.file] = str(error)
        tell(f"{source.file} is left out: {error}")

    observed = [source for source in sources if source.command == "observe"]
    reasons = unfit(task.inputs.model, task.inputs.corpus, [source.file for source in observed])
    for source in observed:
        if source.file in reasons:
            leave_out(source, reasons[source.file])
    observed = [source for source in observed if source.file not in reasons]
    rest = [source for source in sources if source.command != "observe"]
    groups = ([observed] if observed else []) + [[source] for source in rest]
    for group in sorted(groups, key=lambda group: SOURCES.index(group[0])):
        names, unit = ", ".join(source.file for source in group), UNITS[group[0].command]
        try:
            with watch(names, unit) as progress:
                MEASURES[group[0].command](task, group, progress)
        except (InUse, OtherSettings, Unwritable):
            raise
        except Refusal as error:
            for source in group:
                leave_out(source, error)
    return left_out


def _sweep(task: Task, group: Sequence[Source], progress: Any) -> None:
    (source,) = group
    sweep(
        task.inputs.model,
        task.inputs.corpus,
        _fitting(source.arguments, task.inputs.model.layers),
        state_cap=task.inputs.cap,
        out=task.path(source),
        **task.common(progress),
    )


def _observe(task: Task, group: Sequence[Source], progress: Any) -> None:
    names = [source.file for source in group]
    options = RunOptions(out=task.directory, **task.common(progress))
    observe(task.inputs.model, task.inputs.corpus, names, options)


def _neurons(task: Task, group: Sequence[Source], progress: Any) -> None:
    options = RunOptions(out=task.path(group[0]), **task.common(progress))
    neurons(task.name, options=options, **task.inputs.loading)


def _probe(task: Task, group: Sequence[Source], progress: Any) -> None:
    (source,) = group
    inputs, options = task.inputs, RunOptions(out=task.path(source), **task.common(progress))
    if source == WIC:
        probe_wic(inputs.model, WicSettings(inputs.pairs, inputs.seed), options)
    elif source == SUFFIX:
        suffix = SuffixSettings(inputs.text, seed=inputs.seed, **inputs.reading)
        probe_suffix(inputs.model, ModelSettings(task.name, **inputs.loading), suffix, options)
    elif source == SUBJOINER:
        subjoiner = SubjoinerSettings(inputs.text, seed=inputs.seed, **inputs.reading)
        probe_subjoiner(inputs.model, subjoiner, options)


def _tasks(task: Task, group: Sequence[Source], progress: Any) -> None:
    (source,) = group
    settings = TaskSettings(
        source.arguments,
        _fitting(source.interventions, task.inputs.model.layers),
        data=task.inputs.task_data,
        limit=task.inputs.limit,
    )
    options = RunOptions(out=task.path(source), state_cap=task.inputs.cap, **task.common(progress))
    evaluate_tasks(task.inputs.model, settings, options)


MEASURES: Mapping[str, Callable[[Task, Sequence[Source], Any], None]] = {
    "sweep": _sweep,
    "observe": _observe,
    "neurons": _neurons,
    "probe": _probe,
    "tasks": _tasks,
}
"""What is done for the command of a source."""

UNITS = {"sweep": "seq", "observe": "seq", "neurons": "layer", "probe": "text", "tasks": "text"}


def _fitting(names: Sequence[str], layers: int) -> list[str]:
    """Return the interventions that fit at one layer at least."""
    fitting = [name for name in names if intervention(name).span <= layers]
    if not fitting:
        raise Refusal(f"none of {', '.join(names)} fits a model of {layers} layers")
    return fitting


def _files(value: Any) -> list[Path]:
    """Return the files that a setting names, if it names any."""
    if not isinstance(value, (str, Path)):
        return []
    path = expanded(value)
    found = file_kind(path)
    if found == stat.S_IFDIR:
        return sorted(each for each in path.iterdir() if file_kind(each) == stat.S_IFREG)
    # What is no file is refused where it is read; a pipe would wait here for a writer.
    return [path] if found == stat.S_IFREG else []
