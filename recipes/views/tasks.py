"""Views of benchmark tasks: accuracy under interventions at every layer."""

from __future__ import annotations

from collections.abc import Iterator
from math import isnan
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from recipes.evidence.files import task_metric
from recipes.views import style, sweep
from recipes.views.sections import Section
from robustness.statistics.uncertainty import band_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def sections(dataset: xr.Dataset) -> Iterator[Section]:
    """Yield values by layer, one table for each task and metric."""
    for task in dataset["task"].values:
        for metric in dataset["metric"].values:
            chosen = dataset.sel(task=task, metric=metric)
            clean = float(chosen["clean_value"])
            # Tasks of one file have different metrics: the others are NaN.
            if isnan(clean):
                continue
            columns: dict[str, xr.DataArray] = {}
            for name in chosen["intervention"].values:
                columns[str(name)] = chosen["value"].sel(intervention=name)
                columns[f"{name} se"] = chosen["standard_error"].sel(intervention=name)
            error = float(chosen["clean_standard_error"])
            yield Section(f"{task}, {metric}: clean {clean:.3f} ±{error:.3f}", "layer", columns)


def accuracy_curve(
    dataset: xr.Dataset, task: str, intervention: str
) -> tuple[xr.DataArray, xr.DataArray]:
    """Return a task's accuracy by layer, with the ends of its 95 % band.

    The metric is the one that the task is reported in; the standard error is the harness's.
    """
    chosen = dataset.sel(task=task, metric=task_metric(dataset, task), intervention=intervention)
    items = int((dataset["item_task"] == task).sum())
    return chosen["value"], band_of(chosen["value"], chosen["standard_error"], items)


def figure(dataset: xr.Dataset) -> Figure:
    """Draw accuracy over layers with 95 % bands, and the clean model's, one panel for each task."""
    names = [str(name) for name in dataset["task"].values]
    figure = style.new_figure(4.4 * len(names) + 0.6, 4.2)
    for axis, task in zip(np.atleast_1d(figure.subplots(1, len(names))), names, strict=True):
        metric = task_metric(dataset, task)
        for index, name in enumerate(map(str, dataset["intervention"].values)):
            line, around = accuracy_curve(dataset, task, name)
            style.band_line(axis, line["layer"], line, around, index, label=name)
        clean = float(dataset["clean_value"].sel(task=task, metric=metric))
        axis.axhline(clean, color="black", linewidth=1, label="clean")
        axis.set_title(f"{task} [{metric}]")
        style.whole_numbers(axis, sweep.FIRST_LAYER)
    figure.axes[0].set_ylabel("share answered right")
    figure.axes[0].legend(frameon=False)
    return figure
