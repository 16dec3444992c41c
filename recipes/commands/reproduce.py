"""Commands that run the paper's experiments: on any model, or on a built-in one as a demo."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import click

from recipes.commands.gathering import Values, gather
from recipes.commands.opening import OUTPUTS, directory_of, silence_libraries
from recipes.commands.options import (
    batch_option,
    cap_option,
    compile_option,
    limit_option,
    model_argument,
    model_options,
    run_options,
    run_settings,
    task_data_option,
    text_options,
)
from recipes.commands.parameters import Named, Place
from recipes.commands.progress import advise, progress, quiet_option, quoted, tell
from recipes.commands.show import say_table
from recipes.commands.tables import chosen_form, say_rows, table_options
from recipes.terminal import say

if TYPE_CHECKING:
    from recipes.recipe import Recipe
    from recipes.reproduce import ReproduceSettings
    from robustness.models.settings import ModelSettings
    from robustness.runs.settings import RunOptions
    from robustness.text.settings import TextSettings

DEMONSTRATED = ("E1", "E2", "E3", "E5", "E7", "E10")
"""Names of the experiments that `stages demo` runs, which take seconds."""

EXPERIMENT_COLUMNS = (
    "name", "title", "question", "figures", "claims", "cost", "models", "data",
)  # fmt: skip
"""Columns of the list of experiments."""


class Items(TypedDict):
    """Sources of the items of probes and tasks."""

    wic_data: str
    task_data: Path | None
    limit: int | None


def items(values: Values) -> Items:
    """Return the sources of items."""
    return Items(**values)  # type: ignore[typeddict-item]


@click.command()
@model_argument(required=False)
@click.argument("experiments", nargs=-1, metavar="[EXPERIMENT]...")
@click.option("--list", "listed", is_flag=True, help="Print the experiments, and run nothing.")
@gather(
    "items",
    items,
    click.option(
        "--wic-data",
        type=Named(),
        default="builtin",
        show_default=True,
        help="Data of word-in-context pairs, as for stages probe MODEL wic.",
    ),
    task_data_option,
    limit_option,
)
@text_options
@model_options
@compile_option
@run_options("Directory for all files.  [default: outputs/MODEL]", batch_option, cap_option)
@table_options
def reproduce(
    model: "ModelSettings | None",
    experiments: tuple[str, ...],
    listed: bool,
    items: Items,
    text: "TextSettings",
    run: "RunOptions",
) -> None:
    """Run the paper's EXPERIMENTs on MODEL: files, figures, verdicts on its claims, and a report.

    Without EXPERIMENTs, all that the model and the data allow are run. Existing files are reused,
    and an interrupted command continues when it is given again. Built-in models need no network.
    The command prints the path of the report.

    \b
    stages reproduce --list
    stages reproduce builtin
    stages reproduce openai-community/gpt2 E1 E3 --data my.jsonl --tokens 1000000
    """
    if listed:
        _say_experiments()
        return
    if model is None:
        raise click.UsageError("give a MODEL, or --list")
    tell(f"running experiments on {model.source}")
    from recipes.reproduce import ReproduceSettings

    page = _reproduce(ReproduceSettings(model, text, experiments, **items), run)
    say(page)
    advise(f"show {quoted(page.parent / 'claims.nc')}")


@click.command()
@click.option(
    "--out",
    type=Place(),
    default=OUTPUTS,
    show_default=True,
    help="Directory in which a directory builtin is made.",
)
@quiet_option
@table_options
def demo(out: Path) -> None:
    """Drop and swap every block of the built-in model, look inside, and write a report, offline.

    \b
    stages demo --out outputs
    """
    tell("running experiments on builtin")
    from recipes.reproduce import ReproduceSettings
    from recipes.views import draw
    from robustness.files import ownership
    from robustness.files.figures import save_figure
    from robustness.files.netcdf import load
    from robustness.models.settings import ModelSettings

    directory = out / "builtin"
    path, figure = directory / "sweep.nc", directory / "sweep.png"
    # The figure is drawn last, but must not be refused after a minute of measurements.
    ownership.check(figure, ownership.FIGURE)
    run = run_settings({"out": directory, "resume": True})
    settings = ReproduceSettings(ModelSettings("builtin"), experiments=DEMONSTRATED)
    page = _reproduce(settings, run)
    dataset = load(path)
    save_figure(draw(dataset), figure)
    say_table(path, dataset, {"numbers": path, "figure": figure, "report": page})
    advise(f"show {quoted(directory)}")


def _say_experiments() -> None:
    from recipes.experiments.catalogue import RECIPES

    rows = [_experiment(recipe) for recipe in RECIPES]
    # Readers get a list, since a table of these sentences fits no terminal.
    if chosen_form() is not None:
        say_rows(EXPERIMENT_COLUMNS, rows)
        return
    for name, title, question, figures, claims, cost, models, data in rows:
        say(f"{name:4} {title}. {question}")
        say(f"     figures {figures}; claims {claims}")
        say(f"     cost: {cost}")
        say(f"     in the paper: {models}; {data or 'amount of text not given'}")


def _experiment(recipe: "Recipe") -> tuple[str, ...]:
    """Return an experiment as a row of EXPERIMENT_COLUMNS."""
    from recipes.paper_models import PAPER

    figure_names: list[str] = []
    for picture in recipe.pictures:
        figure_names += picture.names
    claims = ", ".join(claim.name for claim in recipe.claims)
    names = ", ".join(model.name.rpartition("/")[2] for model in recipe.models)
    models = "all sixteen models" if recipe.models == PAPER else names
    described = (recipe.name, recipe.title, recipe.question)
    return (*described, ", ".join(figure_names), claims, recipe.cost, models, recipe.data)


def _reproduce(settings: "ReproduceSettings", run: "RunOptions") -> Path:
    """Measure what experiments need, judge and draw, and return the path of the report."""
    from recipes.reproduce import reproduce as measure_and_report
    from robustness.models.checkpoint import resolve

    silence_libraries()
    directory = run.out or directory_of(resolve(settings.model.source)[0])
    return measure_and_report(settings, Path(directory), run, _watch)


def _watch(names: str, unit: str) -> AbstractContextManager[Callable[[int, int], object]]:
    """Print the names of the measurements that begin, and show their progress."""
    tell("writing the report" if unit == "figure" else f"measuring {names}")
    return progress(None, unit)
