"""The file of a task run: metrics of every schedule, and which items are answered right."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from robustness.files.labels import Labels
from robustness.models.model import Model
from robustness.tasks.harness import Answer, Request, Tasks, run_harness

BY_ITEM = ("acc", "acc_norm", "acc_bytes", "acc_mutual_info")
"""Metrics by which an item is answered right or wrong."""

BOOTSTRAP = 100
"""Number of samples for the errors of metrics that are no means, as of perplexity."""

Answers = Mapping[Request, Answer]
"""Answer to every continuation under one schedule."""


def summarise(
    model: Model,
    tasks: Tasks,
    limit: int | None,
    answers: Sequence[Answers],
    labels: Labels | None,
) -> xr.Dataset:
    """Make the harness's metrics of the answers under every schedule.

    Parameters
    ----------
    model : Model
        Whose tokenizer is used.
    tasks : dict
        As from `load_tasks`.
    limit : int, optional
        Maximum number of items of each task.
    answers : sequence of mapping
        Answers of the clean model first, then of every schedule.
    labels : Labels, optional
        How the schedules are laid out; None for the clean model alone.

    Returns
    -------
    Dataset
        As `evaluate_tasks` returns it.
    """
    evaluated = []
    for known in answers:
        respond = _look_up(known)
        evaluated.append(run_harness(model, tasks, limit, respond, BOOTSTRAP))
    metrics = _metrics(evaluated[0], tasks)
    value = np.stack([_values(each, tasks, metrics, "") for each in evaluated])
    error = np.stack([_values(each, tasks, metrics, "_stderr") for each in evaluated])
    correct = np.stack([_correct(each, tasks, metrics) for each in evaluated])
    items = [(name, sample["doc_id"]) for name, sample in _samples(evaluated[0], tasks)]
    of_metric, of_item = ("task", "metric"), ("metric", "item")
    as_defined, is_right = "metric as lm-eval defines it", "whether an item is answered right"
    coords = {
        "task": list(tasks),
        "metric": metrics,
        "item": np.arange(len(items)),
        "item_task": ("item", [name for name, _ in items]),
        "item_index": ("item", [index for _, index in items]),
    }
    dataset = xr.Dataset(coords=coords if labels is None else {**labels.coords, **coords})
    if labels is not None:
        for name, dims, values, described in (
            ("value", of_metric, value, as_defined),
            ("standard_error", of_metric, error, "standard error of value, as lm-eval gives it"),
            ("correct", of_item, correct, is_right),
        ):
            spread = labels.spread(values[1:])
            dataset[name] = ((*labels.dims, *dims), spread, _described(described))
    for name, dims, values, described in (
        ("clean_value", of_metric, value, f"{as_defined}, clean model"),
        ("clean_standard_error", of_metric, error, "standard error of clean_value"),
        ("clean_correct", of_item, correct, f"{is_right}, clean model"),
    ):
        dataset[name] = (dims, values[0], _described(described))
    between = () if labels is None else labels.dims
    return dataset.transpose("task", "metric", *between, "item")


def _look_up(known: Answers) -> Any:
    """Return what answers as is known."""

    def respond(requests: Sequence[Request]) -> list[Answer]:
        return [known[request] for request in requests]

    return respond


def _metrics(evaluated: Mapping[str, Any], tasks: Tasks) -> list[str]:
    """Return the names of all metrics of some tasks."""
    metrics = set()
    for name in tasks:
        for key in evaluated["results"][name]:
            # Keys are of the form METRIC,FILTER and METRIC_stderr,FILTER.
            if key.endswith(",none") and "_stderr" not in key:
                metrics.add(key.partition(",")[0])
    return sorted(metrics)


def _values(
    evaluated: Mapping[str, Any], tasks: Tasks, metrics: Sequence[str], ending: str
) -> NDArray[np.float64]:
    """Return metrics, or their errors, (task, metric); NaN where a task has no such metric."""
    values = np.full((len(tasks), len(metrics)), np.nan)
    for row, name in enumerate(tasks):
        for column, metric in enumerate(metrics):
            values[row, column] = _number(evaluated["results"][name].get(f"{metric}{ending},none"))
    return values


def _correct(
    evaluated: Mapping[str, Any], tasks: Tasks, metrics: Sequence[str]
) -> NDArray[np.float64]:
    """Return whether items are answered right, (metric, item); NaN by metrics that do not say."""
    samples = [sample for _, sample in _samples(evaluated, tasks)]
    correct = np.full((len(metrics), len(samples)), np.nan)
    for row, metric in enumerate(metrics):
        if metric in BY_ITEM:
            correct[row] = [_number(sample.get(metric)) for sample in samples]
    return correct


def _samples(evaluated: Mapping[str, Any], tasks: Tasks) -> list[tuple[str, dict[str, Any]]]:
    """Return the task and the sample of every item, in order."""
    samples = []
    for name in tasks:
        for sample in sorted(evaluated["samples"][name], key=lambda sample: sample["doc_id"]):
            samples.append((name, sample))
    return samples


def _number(value: Any) -> float:
    return float(value) if isinstance(value, (int, float, np.number)) else float("nan")


def _described(long_name: str) -> dict[str, str]:
    return {"units": "1", "long_name": long_name}
