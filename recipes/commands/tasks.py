"""The command that runs benchmark tasks on a model whose layers are changed."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from recipes.commands.changes import Changes, change_options
from recipes.commands.dry_run import say_nothing_was_run
from recipes.commands.gathering import Values, gather, misuse
from recipes.commands.opening import announce, directory_of, open_model
from recipes.commands.options import (
    batch_option,
    cap_option,
    compile_option,
    limit_option,
    maps_option,
    model_argument,
    model_options,
    run_options,
    task_data_option,
)
from recipes.commands.progress import advise, progress, quoted
from recipes.commands.tables import say_rows, table_options
from recipes.terminal import say

if TYPE_CHECKING:
    from robustness.models.settings import ModelSettings
    from robustness.runs.settings import RunOptions
    from robustness.tasks.preparation import PreparedTasks
    from robustness.tasks.settings import TaskSettings


@dataclass(frozen=True)
class TaskOptions:
    """Options that say which tasks are run, and on which items."""

    names: tuple[str, ...]
    task_data: Path | None
    limit: int | None
    clean_only: bool
    dry_run: bool

    def settings(self, changes: Changes) -> "TaskSettings":
        """Return the settings of the tasks without layers, whose range the model decides."""
        from robustness.tasks.settings import TASKS, TaskSettings

        if self.clean_only and changes.layers is not None:
            raise click.UsageError("--clean-only goes without --layers")
        return TaskSettings(
            self.names or TASKS,
            interventions=changes.interventions or None,
            schedules=changes.schedules,
            clean_only=self.clean_only,
            data=self.task_data,
            limit=self.limit,
        )


def task_options(values: Values) -> TaskOptions:
    """Return the options that say which tasks are run."""
    return TaskOptions(**values)


@click.command()
@model_argument()
@gather(
    "options",
    task_options,
    click.argument("names", nargs=-1, metavar="[TASK]..."),
    task_data_option,
    limit_option,
    click.option("--clean-only", is_flag=True, help="Run the unchanged model alone."),
    click.option(
        "--dry-run", is_flag=True, help="Print how much would be computed, and run nothing."
    ),
)
@change_options
@model_options
@compile_option
@maps_option
@run_options(
    "Path of the file to write.  [default: outputs/MODEL/tasks.nc]", batch_option, cap_option
)
@table_options
def tasks(
    model: "ModelSettings", options: TaskOptions, changes: Changes, run: "RunOptions"
) -> None:
    """Run benchmark TASKs of lm-eval on MODEL with its layers changed.

    TASKs are those of lm-eval that score continuations or generate text; without any, hellaswag,
    arc_easy and lambada_openai. Without an intervention or --schedule, every block is dropped and
    every adjacent pair swapped. The command needs lm-eval: pip install -e ".[bench]".

    \b
    stages tasks openai-community/gpt2 hellaswag arc_easy --limit 500
    stages tasks openai-community/gpt2 --clean-only
    stages tasks openai-community/gpt2 lambada_openai --schedule "0..3-5-4-6.." --dry-run
    stages tasks builtin arc_easy --drop --layers 4..8 --task-data my-tasks
    """
    announce(model)
    from robustness.tasks.evaluation import evaluate_tasks
    from robustness.tasks.preparation import prepare_tasks

    # Before the model is opened, which may take minutes.
    with misuse():
        settings = options.settings(changes)
    opened = open_model(replace(model, compile=model.compile and not options.dry_run))
    settings = replace(settings, layers=changes.chosen_layers(opened.layers))
    if options.dry_run:
        say_rows(("what", "cost"), _costs(prepare_tasks(opened, settings, run), run))
        say_nothing_was_run()
        return
    out = run.out or directory_of(opened.name) / f"{_stem(settings)}.nc"
    with progress(None, "text") as show:
        evaluate_tasks(opened, settings, replace(run, out=out, progress=show))
    say(out)
    advise(f"plot {quoted(out)}")


def _stem(settings: "TaskSettings") -> str:
    """Return the stem of the file's name; schedules and the clean model have files of their own."""
    if settings.clean_only:
        return "tasks-clean"
    return "tasks-schedules" if settings.schedules else "tasks"


def _costs(prepared: "PreparedTasks", run: "RunOptions") -> Iterator[tuple[str, str]]:
    """Yield rows with the cost of tasks: what is counted, and its number."""
    from robustness.runs.foresight import describe_traces
    from robustness.tasks.requests import foresee

    count, batches = len(prepared.requests), prepared.batches()
    # States that are stacked run faster, but every block still runs on each.
    applied = prepared.model.layers + prepared.plan(1).block_calls
    yield "tasks", ", ".join(prepared.settings.tasks)
    yield "continuations to score", f"{count:,}, of {sum(prepared.lengths):,} tokens"
    if len(prepared.prompts):
        most = sum(prompt.tokens for prompt in prepared.prompts.asked)
        yield "prompts to continue", f"{len(prepared.prompts):,}, with up to {most:,} tokens"
    yield "schedules", f"{len(prepared.schedules):,}, the clean model among them"
    yield "block applications", f"{applied * count:,}, to single continuations"
    yield from describe_traces(foresee(prepared, batches, run))
