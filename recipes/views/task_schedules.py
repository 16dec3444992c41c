"""Views of benchmark tasks under free schedules, or of the clean model alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from recipes.evidence.files import task_metric
from recipes.views import style
from recipes.views.sections import Section
from robustness.statistics.paired_proportions import task_differences
from robustness.statistics.uncertainty import band_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CLEAN = "clean"
"""Label of the row of the unmodified model, the first one."""


def sections(dataset: xr.Dataset) -> Iterator[Section]:
    """Yield values by schedule, one table for each task."""
    rows = _with_clean(dataset)
    for task in rows["task"].values:
        columns: dict[str, xr.DataArray] = {}
        for metric in rows["metric"].values:
            chosen = rows.sel(task=task, metric=metric)
            # Tasks of one file have different metrics: the others are NaN.
            if chosen["value"].notnull().any():
                columns[str(metric)] = chosen["value"]
                columns[f"{metric} se"] = chosen["standard_error"]
        yield Section(str(task), "schedule", columns)
    if "correct" in dataset:
        yield from _less_clean(dataset)


def _less_clean(dataset: xr.Dataset) -> Iterator[Section]:
    """Yield what schedules change, item by item, one table for each task in its own metric."""
    compared = task_differences(dataset)
    for task in dataset["task"].values:
        metric = task_metric(dataset, task)
        chosen = compared.sel(task=task, metric=metric)
        if not chosen["items"].any():
            continue
        columns = {}
        for name in ("difference", "low", "high", "lost", "gained"):
            columns[name] = chosen[name]
        title = f"{task}, {metric}: minus clean, same {int(chosen['items'].max())} items"
        yield Section(title, "schedule", columns)


def figure(dataset: xr.Dataset) -> Figure:
    """Draw accuracy under every schedule, one panel for each task, with 95 % bars."""
    rows = _with_clean(dataset)
    names = [str(name) for name in rows["task"].values]
    schedules = rows["schedule"].values
    longest = min(style.LONGEST_TEXT, max(map(len, schedules)))
    height = 1.8 + 0.35 * len(schedules)
    figure = style.new_figure(4.4 * len(names) + 0.08 * longest, height)
    axes = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    for axis, task in zip(axes, names, strict=True):
        metric = task_metric(dataset, task)
        chosen = rows.sel(task=task, metric=metric)
        items = int((dataset["item_task"] == task).sum())
        value = chosen["value"]
        around = band_of(value, chosen["standard_error"], items)
        bars = np.stack([value - around.sel(end="low"), around.sel(end="high") - value])
        places = np.arange(len(schedules))
        axis.errorbar(value, places, xerr=bars, fmt="o", capsize=3, color=style.COLOURS[0])
        axis.set_yticks(places, [style.plain(str(name)) for name in schedules])
        axis.set_xlabel("share answered right")
        axis.set_title(f"{task} [{metric}]")
        axis.grid(axis="x", alpha=0.3)
    axes[0].invert_yaxis()
    axes[0].set_ylabel("schedule")
    return figure


def _with_clean(dataset: xr.Dataset) -> xr.Dataset:
    """Return `value` and `standard_error` by schedule, with the clean model first."""
    clean = xr.Dataset(
        {"value": dataset["clean_value"], "standard_error": dataset["clean_standard_error"]}
    ).expand_dims(schedule=[CLEAN])
    if "schedule" not in dataset.dims:
        return clean
    return xr.concat([clean, dataset[["value", "standard_error"]]], "schedule")
