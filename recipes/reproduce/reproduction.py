"""Steps of a reproduction: measure, divide into stages, judge, draw, and report."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from recipes.evidence.files import Files
from recipes.evidence.stages import stages
from recipes.recipe import SOURCES, STAGES, SWEEP, Recipe, Source
from recipes.report.page import ReportFiles, report
from recipes.reproduce.measuring import Session, Watch, measure_sources, unwatched
from recipes.reproduce.settings import ReproduceSettings
from robustness.errors import InUse, OtherSettings, Refusal, Unwritable, reading
from robustness.files import netcdf
from robustness.files.atomic import remove_leftovers_with_lock
from robustness.files.lock import Lock
from robustness.models import checkpoint
from robustness.models.opening import open_settings
from robustness.runs.settings import RunOptions
from robustness.text.corpus import read_text

AGAIN = "run the same command with `fresh`"
"""Advice about a damaged file."""


@dataclass(frozen=True)
class Outputs:
    """Paths of the report, the verdicts and the figures of a directory."""

    directory: Path

    @property
    def page(self) -> Path:
        """Path of the report."""
        return self.directory / "report.html"

    @property
    def claims(self) -> Path:
        """Path of the verdicts."""
        return self.directory / "claims.nc"

    @property
    def figures(self) -> Path:
        """Path of the directory of figures."""
        return self.directory / "figures"

    @property
    def of_report(self) -> ReportFiles:
        """Paths of all files that the report writes."""
        return ReportFiles(self.page, self.claims, self.figures)

    def check(self) -> None:
        """Refuse paths that hold other files, and remove temporary files of interrupted runs."""
        self.of_report.check()
        for path, _ in self.of_report.kinds():
            remove_leftovers_with_lock(path)

    def are_of(self, fingerprint: str, left_out: Mapping[str, str]) -> bool:
        """Whether the report was made with the same settings from the present files."""
        try:
            attrs, files = netcdf.load(self.claims).attrs, Files(self.directory)
        except Refusal:  # none yet, or damaged
            return False
        if not self.page.exists() or not self.page.stat().st_size or not self.figures.is_dir():
            return False
        recorded = (attrs.get("asked"), attrs.get("sources"), _without_stages(files.left_out))
        return recorded == (fingerprint, files.stamp(), _without_stages(left_out))


def reproduce(
    settings: ReproduceSettings,
    directory: Path,
    options: RunOptions | None = None,
    watch: Watch = unwatched,
) -> Path:
    """Measure the files of recipes, divide layers into stages, judge claims, draw, and report.

    Existing files are reused, and unfinished ones are continued. Verdicts, figures and report are
    made again only if a file has changed.

    Parameters
    ----------
    settings : ReproduceSettings
        Experiments, model and data.
    directory : path
        Path of the directory of all files.
    options : RunOptions, optional
        Options of every run; `out` and `progress` are ignored.
    watch : callable, optional
        Function that shows progress.

    Returns
    -------
    path
        Path of the report.

    Raises
    ------
    Refusal
        If nothing could be measured, a named experiment is incomplete, or the directory holds files
        of other settings.
    """
    # Held to the end: two reproductions in one directory would replace each other's report.
    with Lock(Outputs(directory).page):
        return _reproduce(settings, Outputs(directory), options or RunOptions(), watch)


def _reproduce(
    settings: ReproduceSettings, outputs: Outputs, options: RunOptions, watch: Watch
) -> Path:
    """Reproduce, with the lock on the directory's report held."""
    sources = sources_of(settings.recipes)
    # Before anything is measured: the report is written hours later.
    outputs.check()
    unavailable = _unavailable(settings, sources)
    for file, reason in unavailable.items():
        options.tell(f"{file} is left out: {reason}")
    fingerprint = settings.fingerprint(options)
    # Known without opening the model, which may take minutes.
    if not options.fresh and outputs.are_of(fingerprint, unavailable):
        options.tell("all files are up to date: nothing to do")
        return outputs.page
    fitting = [source for source in sources if source.file not in unavailable]
    session = _open(settings, outputs.directory, options, watch)
    _check_model(session, fitting if options.fresh else [])
    _warn_of_few_documents(session, fitting)
    left_out = unavailable | measure_sources(session, fitting)
    if len(left_out) == len(sources):
        file, reason = next(iter(left_out.items()))
        raise Refusal(f"nothing could be measured; {file}: {reason}")
    _divide(outputs, left_out, options.command)
    if options.fresh or not outputs.are_of(fingerprint, left_out):
        _report(outputs, left_out, fingerprint, options, watch)
    if settings.experiments:
        _check_complete(outputs, left_out, unavailable)
    return outputs.page


def sources_of(recipes: Sequence[Recipe]) -> list[Source]:
    """Return the sources that recipes need, in the order of measurement, without the stages."""
    needed: set[Source] = set()
    for recipe in recipes:
        needed.update(recipe.sources)
    # Stages are not measured on the model, but made of the other files.
    return [source for source in SOURCES if source in needed and source != STAGES]


def _unavailable(settings: ReproduceSettings, sources: Sequence[Source]) -> dict[str, str]:
    """Return the files that lack their data, with the reason."""
    # A built-in model promises to need no network.
    if settings.model.source not in checkpoint.BUILTIN or settings.task_data is not None:
        return {}
    reason = "the items of benchmark tasks are on the hub: give `task_data` with the files"
    return {source.file: reason for source in sources if source.command == "tasks"}


def _open(
    settings: ReproduceSettings, directory: Path, options: RunOptions, watch: Watch
) -> Session:
    """Open the model and read the text."""
    model = open_settings(settings.model, options.tell)
    return Session(settings, model, read_text(settings.text, model), directory, options, watch)


def _check_model(session: Session, replaced: Sequence[Source]) -> None:
    """Refuse a directory with files of another model, except files that will be replaced."""
    for source in SOURCES:
        path = session.path(source)
        if source == STAGES or source in replaced or not path.exists():
            continue
        attrs = netcdf.load(path).attrs
        for key in ("model", "weights_sha256"):
            ours = session.model.identity.get(key)
            if key in attrs and ours and attrs[key] != ours:
                raise OtherSettings(
                    f"{path.name} in {session.directory.name} is of another model "
                    f"({attrs['model']}, not {session.model.name}, or other weights): choose "
                    f"another `out`, or {'remove it' if replaced else '`fresh` to replace it'}"
                )


def _warn_of_few_documents(session: Session, sources: Sequence[Source]) -> None:
    """Warn if the text has too few documents for figures and claims."""
    documents = len(set(session.corpus.document.tolist()))
    if documents < SWEEP.least and any(source.unit == "documents" for source in sources):
        session.options.tell(
            f"the text has {documents} document(s): with fewer than {SWEEP.least}, its "
            "measurements are neither drawn nor judged (a line <|endoftext|> divides the documents "
            "of a .txt)"
        )


def _divide(outputs: Outputs, left_out: dict[str, str], command: str) -> None:
    """Divide layers into stages, unless `stages.nc` was made from the present files."""
    with reading(f"a file in {outputs.directory.name}", AGAIN):
        if not Files(outputs.directory, left_out).missing(STAGES):
            return
        try:
            stages(outputs.directory, out=outputs.directory / f"{STAGES.file}.nc", command=command)
        except (InUse, Unwritable):
            raise
        except Refusal as error:
            left_out[STAGES.file] = str(error)


def _report(
    outputs: Outputs,
    left_out: dict[str, str],
    fingerprint: str,
    options: RunOptions,
    watch: Watch,
) -> None:
    """Judge claims, draw figures, and write the page."""
    with (
        reading(f"a file in {outputs.directory.name}", AGAIN),
        watch("report", "figure") as progress,
    ):
        report(
            [Files(outputs.directory, left_out)],
            outputs.of_report,
            settings={"asked": fingerprint},
            command=options.command,
            progress=progress,
        )


def _check_complete(
    outputs: Outputs, left_out: Mapping[str, str], unavailable: Mapping[str, str]
) -> None:
    """Refuse named experiments that are incomplete, after all others have been measured."""
    for file, reason in _without_stages(left_out).items():
        if file not in unavailable:
            raise Refusal(f"{file} was left out, the rest is in {outputs.page}: {reason}")


def _without_stages(left_out: Mapping[str, str]) -> dict[str, str]:
    """Return the reasons without that of the stages, which follows from the other files."""
    return {file: reason for file, reason in left_out.items() if file != STAGES.file}
