"""The command that searches for the blocks, attentions or MLPs that a model can lose."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from recipes.commands.dry_run import dry_run_option, say_nothing_was_run
from recipes.commands.gathering import Values, gather, misuse
from recipes.commands.opening import announce, directory_of, open_model
from recipes.commands.options import (
    batch_option,
    cap_option,
    compile_option,
    limit_option,
    model_argument,
    model_options,
    run_options,
    task_data_option,
    texts_options,
)
from recipes.commands.parameters import Finite, LazyChoice, Place
from recipes.commands.progress import advise, progress, quoted
from recipes.commands.tables import chosen_form, say_rows, say_tables, table_options

if TYPE_CHECKING:
    import xarray as xr

    from robustness.models.model import Model
    from robustness.models.settings import ModelSettings
    from robustness.pruning.preparation import Search
    from robustness.pruning.settings import PruningSettings
    from robustness.runs.settings import RunOptions
    from robustness.tasks.settings import TaskSettings
    from robustness.text.settings import TextSettings


@dataclass(frozen=True)
class TaskOptions:
    """Options that say on which tasks the smaller model is compared with the whole one."""

    names: tuple[str, ...]
    task_data: Path | None
    limit: int | None

    def settings(self, schedule: str) -> "TaskSettings":
        """Return the settings of the tasks under one schedule."""
        from robustness.tasks.settings import TaskSettings

        return TaskSettings(
            self.names, schedules=(schedule,), data=self.task_data, limit=self.limit
        )


def task_options(values: Values) -> TaskOptions:
    """Return the options of tasks."""
    options = TaskOptions(**values)
    if not options.names and (options.task_data or options.limit):
        raise click.UsageError("--task-data and --limit go with --eval")
    return options


@dataclass(frozen=True)
class SearchOptions:
    """Options that say what is removed, and how it is found."""

    values: Values
    layers: str | None

    def settings(self) -> "PruningSettings":
        """Return the settings of the search without its layers, whose range the model decides."""
        from robustness.pruning.settings import PruningSettings

        return PruningSettings(**self.values)

    def chosen_layers(self, count: int) -> tuple[int, ...] | None:
        """Return the layers whose units may be removed, or None for all."""
        from robustness.schedules import layers_from_text

        return None if self.layers is None else tuple(layers_from_text(self.layers, count))


def search_options(values: Values) -> SearchOptions:
    """Return the options of the search."""
    layers = values.pop("layers")
    return SearchOptions(values, layers)


def method_names() -> tuple[str, ...]:
    """Return the names of methods."""
    from robustness.pruning.settings import METHODS

    return METHODS


@click.command()
@model_argument()
@gather(
    "search",
    search_options,
    click.option("--remove", type=click.IntRange(1), help="Number of units to remove."),
    click.option("--keep", type=click.IntRange(0), help="Number of units to keep."),
    click.option(
        "--to-params",
        type=Finite(0, min_open=True),
        help="Number of parameters to come down to, or their share, as in 0.75.",
    ),
    click.option(
        "--until-kl",
        type=Finite(0, min_open=True),
        metavar="NAT",
        help="Largest score, KL from the clean model by default, up to which units are removed.",
    ),
    click.option(
        "--units",
        type=click.Choice(("block", "attention", "mlp", "sublayer")),
        default="block",
        show_default=True,
        help="Kind of units; sublayer is attentions and MLPs mixed.",
    ),
    click.option(
        "--method",
        "methods",
        type=LazyChoice(method_names),
        multiple=True,
        help="Method, may be given several times.  [default: pairwise, or greedy where pairs are "
        "too many]",
    ),
    click.option(
        "--objective",
        type=click.Choice(("kl", "loss")),
        default="kl",
        show_default=True,
        help="Score: KL from the clean model, or the rise of the loss.",
    ),
    click.option(
        "--beam",
        type=click.IntRange(1),
        default=4,
        show_default=True,
        help="Number of sets that the method beam follows.",
    ),
    click.option(
        "--finalists",
        type=click.IntRange(1),
        default=8,
        show_default=True,
        help="Number of sets that pairwise proposes in the end, and that are measured.",
    ),
    click.option(
        "--holdout",
        type=Finite(0, 0.9),
        default=0.25,
        show_default=True,
        help="Share of the text that nothing is chosen on.",
    ),
    click.option(
        "--level",
        type=Finite(0, 0.5, min_open=True, max_open=True),
        default=0.05,
        show_default=True,
        help="Probability with which a race drops a candidate as good as the leader, at one look.",
    ),
    click.option(
        "--heal",
        is_flag=True,
        help="Fit a scale and linear maps in the place of what is removed, and measure them.",
    ),
    click.option(
        "--measured",
        type=Place(),
        multiple=True,
        help="File of a sweep or search of MODEL on the same text, whose numbers are taken; may be "
        "given several times.",
    ),
    click.option(
        "--layers",
        metavar="TEXT",
        help='Layers whose units may be removed, as in "2..9".  [default: all]',
    ),
)
@gather(
    "tasks",
    task_options,
    click.option(
        "--eval",
        "names",
        metavar="TASK",
        multiple=True,
        help="Task of lm-eval that both models are run on in the end, item by item; may be given "
        "several times.",
    ),
    task_data_option,
    limit_option,
)
@texts_options
@model_options
@compile_option
@run_options(
    "Path of the file to write.  [default: outputs/MODEL/search.nc]", batch_option, cap_option
)
@dry_run_option
@table_options
def prune(
    model: "ModelSettings",
    search: SearchOptions,
    tasks: TaskOptions,
    texts: "tuple[TextSettings, ...]",
    run: "RunOptions",
    dry_run: bool,
) -> None:
    """Find the blocks that MODEL can lose, what that costs, and how sure it is.

    Candidates are raced: they are measured on more and more text, and dropped when they are clearly
    worse than the best. Those that are chosen are judged on documents that nothing was chosen on.
    The command prints what was removed at every step, draws the costs, and says how to export the
    smaller model. An interrupted search continues when the same command is given again.

    \b
    stages prune builtin --remove 4
    stages prune openai-community/gpt2 --to-params 0.75 --data my.jsonl --tokens 200000
    stages prune builtin --until-kl 0.5 --units sublayer --method greedy
    stages prune builtin --remove 3 --method pairwise --method greedy --method one-shot
    stages prune builtin --remove 4 --heal --eval arc_easy --limit 500
    stages prune builtin --remove 4 --dry-run
    """
    announce(model)
    from robustness.files import ownership
    from robustness.files.kinds.searches import SEARCH
    from robustness.pruning.preparation import prepare
    from robustness.pruning.search import prune as find
    from robustness.text.corpus import read_text

    # Before the model is opened, which may take minutes.
    with misuse():
        settings = search.settings()
    opened = open_model(replace(model, compile=model.compile and not dry_run))
    settings = replace(settings, layers=search.chosen_layers(opened.layers))
    if tasks.names:
        from robustness.tasks.preparation import prepare_tasks

        # Tasks that cannot be run are refused before the search, not after it.
        prepare_tasks(opened, tasks.settings(".."), run)
    corpora = [read_text(text, opened) for text in texts]
    if dry_run:
        say_rows(("what", "cost"), _costs(prepare(opened, corpora, settings, run)))
        say_nothing_was_run()
        return
    out = Path(run.out or directory_of(opened.name) / "search.nc")
    # What stands in the place of the figure is found before the search, not after it.
    ownership.check(out, SEARCH)
    ownership.check(out.with_suffix(".png"), ownership.FIGURE)
    with progress(None, "measurement") as show:
        found = find(
            opened,
            corpora,
            settings,
            replace(run, out=out, progress=show),
            timed=not opened.request,
        )
    _present(opened, out, found, tasks, run)
    _advise(out, model, found)


def _costs(search: "Search") -> list[tuple[str, str]]:
    """Return rows with what a search would take: what is counted, and its number."""
    from robustness.pruning.rehearsal import describe

    return describe(search)


def _present(
    opened: "Model", out: Path, found: "xr.Dataset", tasks: TaskOptions, run: "RunOptions"
) -> None:
    """Draw the figure of a search beside its file, print its table, and run the tasks."""
    from recipes.commands.show import say_places, viewing
    from recipes.views import Tables, draw, table
    from robustness.files.figures import save_figure

    with viewing(out, found):
        figure = save_figure(draw(found), out.with_suffix(".png"))
        tables = table(found)
    places = {"file": out, "figure": figure}
    # A program that reads JSON or CSV gets one table of all.
    if chosen_form() is None:
        say_tables(tables)
        say_places(places)
        tables, places = Tables([]), {}
    if tasks.names:
        path = out.with_name(f"{out.stem}.tasks.nc")
        evaluated = _evaluate(opened, tasks, path, found, run)
        with viewing(path, evaluated):
            of_tasks = table(evaluated)
        notes = [*tables.notes, *of_tasks.notes]
        tables, places = Tables([*tables.tables, *of_tasks.tables], notes), {"file": path}
    if tables.tables:
        say_tables(tables)
        say_places(places)


def _evaluate(
    opened: "Model", tasks: TaskOptions, path: Path, found: "xr.Dataset", run: "RunOptions"
) -> "xr.Dataset":
    """Run tasks on the model as it is, and without what the first method chose in the end."""
    from robustness.tasks.evaluation import evaluate_tasks

    chosen = [str(text) for text in found["chosen"].values[0] if str(text)]
    with progress(None, "text") as show:
        options = replace(run, out=path, progress=show)
        return evaluate_tasks(opened, tasks.settings(chosen[-1]), options)


def _advise(out: Path, model: "ModelSettings", found: "xr.Dataset") -> None:
    """Print the command that exports what was found."""
    if chosen_form() is not None or found.attrs["units"] != "block":
        return
    chosen = [str(text) for text in found["chosen"].values[0] if str(text)]
    if chosen:
        removed = int(found["step"].values[len(chosen) - 1])
        source = quoted(str(model.source))
        revision = "" if model.revision is None else f" --revision {quoted(model.revision)}"
        place = quoted(out.with_name(f"without-{removed}"))
        advise(f"export {source}{revision} --from {quoted(out)} {place}")
