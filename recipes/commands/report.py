"""Commands on measured files: stages of a model, a report, and a comparison of models."""

from pathlib import Path

import click

from recipes.commands.command_line import command_line
from recipes.commands.errors import REMEDY
from recipes.commands.opening import OUTPUTS
from recipes.commands.options import SEEDS
from recipes.commands.parameters import Place
from recipes.commands.progress import advise, advise_reading, progress, quiet_option, quoted, tell
from recipes.commands.show import say_table
from recipes.commands.tables import table_options
from recipes.terminal import say
from robustness.errors import reading

figures_option = click.option(
    "--figures", type=Place(), help="Directory for the figures, as .svg files beside the page."
)


@click.command()
@click.argument("directory", type=Place())
@click.option(
    "--seed",
    type=SEEDS,
    default=0,
    show_default=True,
    help="Seed of the documents drawn by the bootstrap.",
)
@click.option(
    "--out", type=Place(), help="Path of the file to write.  [default: DIRECTORY/stages.nc]"
)
@quiet_option
def segment(directory: Path, seed: int, out: Path | None) -> None:
    """Divide a model's layers into stages, from the files in DIRECTORY.

    The files are those of sweep and observe. Boundaries lie where the signatures of stages change,
    for as many segments as a criterion chooses (perhaps one) and for four, with intervals over
    documents. The command prints the path of the file.

    \b
    stages segment outputs/builtin
    """
    tell(f"reading {directory}")
    from recipes.evidence.stages import stages as run

    path = out or directory / "stages.nc"
    with reading(f"a file in {directory}", REMEDY):
        run(directory, seed=seed, out=path, command=command_line())
    say(path)
    advise(f"plot {quoted(path)}")


@click.command()
@click.argument("directory", type=Place())
@click.option(
    "--out", type=Place(), help="Path of the page to write.  [default: DIRECTORY/report.html]"
)
@figures_option
@quiet_option
def report(directory: Path, out: Path | None, figures: Path | None) -> None:
    """Judge the paper's claims on the files in DIRECTORY, draw its figures, and write a page.

    The files are those of reproduce, sweep, observe, probe, tasks and segment; the page names the
    ones that have not been measured yet. Verdicts are saved beside it in claims.nc.

    \b
    stages report outputs/builtin
    """
    tell(f"reading {directory}")
    from recipes.evidence.files import Files
    from recipes.report.page import ReportFiles
    from recipes.report.page import report as run

    page = out or directory / "report.html"
    with (
        reading(f"a file in {directory}", REMEDY),
        progress(None, "figure") as show,
    ):
        run(
            [Files(directory)],
            ReportFiles(page, page.parent / "claims.nc", figures),
            command=command_line(),
            progress=show,
        )
    say(page)
    advise(f"show {quoted(page.parent / 'claims.nc')}")


@click.command()
@click.argument("directories", nargs=-1, required=True, type=Place(), metavar="DIRECTORY...")
@click.option(
    "--out",
    type=Place(),
    default=OUTPUTS / "compare.nc",
    show_default=True,
    help="Path of the file of numbers; the page is written beside it.",
)
@figures_option
@quiet_option
@table_options
def compare(directories: tuple[Path, ...], out: Path, figures: Path | None) -> None:
    """Compare the models of several DIRECTORIES: a table, a file of numbers, and a page.

    Figures are drawn over relative depth, and claims about several models are judged.

    \b
    stages compare outputs/builtin outputs/builtin-parallel
    """
    tell(f"reading {len(directories)} directories")
    from recipes.evidence.files import side_by_side
    from recipes.judging.compare import KIND
    from recipes.judging.compare import compare as run
    from recipes.report.page import ReportFiles
    from recipes.report.page import report as write
    from robustness.files import ownership
    from robustness.files.netcdf import save_with_lock

    if out.suffix != ".nc":
        raise click.UsageError("--out is the file of numbers, and ends in .nc")
    page = out.with_suffix(".html")
    # Before any file is read, so that a path that is refused costs no time.
    ownership.check(out, KIND)
    files = ReportFiles(page, figures=figures)
    files.check()
    what = f"a file in {' or '.join(map(str, directories))}"
    with reading(what, REMEDY):
        dataset = run(side_by_side(directories), command_line())
    # Outside the catch of damaged input: an output that cannot be written is no fault of it.
    save_with_lock(dataset, out)
    with reading(what, REMEDY), progress(None, "figure") as show:
        write(
            side_by_side(directories),
            files,
            comparison=dataset,
            command=command_line(),
            progress=show,
        )
    say_table(out, dataset, {"numbers": out, "report": page})
    advise_reading(page)
