"""The same items before and after a change: what a schedule costs on tasks."""

from collections.abc import Sequence
from dataclasses import replace

import xarray as xr

from robustness.models.model import Model
from robustness.runs.settings import RunOptions
from robustness.schedules import Schedule
from robustness.statistics.paired_proportions import task_differences
from robustness.tasks.evaluation import evaluate_tasks
from robustness.tasks.settings import TaskSettings


def compare(
    model: Model,
    schedules: Sequence[Schedule | str],
    settings: TaskSettings,
    options: RunOptions | None = None,
) -> xr.Dataset:
    """Run tasks on a model before and after its blocks are changed, and compare item by item.

    Parameters
    ----------
    model : Model
        An opened model with a tokenizer.
    schedules : sequence of tuple or str
        Steps of the changed models.
    settings : TaskSettings
        Tasks and items; its own schedules and interventions are not used.
    options : RunOptions, optional
        Options of the run; `out` is the file of the tasks, as of `evaluate_tasks`.

    Returns
    -------
    Dataset
        (task, metric, schedule): `before`, `after` and their `difference`, with the ends `low` and
        `high` of its 95 % interval; see `task_differences`.

    Raises
    ------
    Refusal
        As `evaluate_tasks`.
    """
    chosen = replace(
        settings, interventions=None, schedules=tuple(schedules), layers=None, clean_only=False
    )
    return task_differences(evaluate_tasks(model, chosen, options))
