"""Dataset of a task run: metrics under every schedule, and which items are answered correctly."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from robustness.files.labels import Labels
from robustness.models.model import Model
from robustness.tasks.answering import Respond, run_harness
from robustness.tasks.harness import Tasks

BY_ITEM = ("acc", "acc_norm", "acc_bytes", "acc_mutual_info", "exact_match")
"""Metrics that say whether an item is answered correctly."""

BOOTSTRAP = 100
"""Number of bootstrap samples for standard errors of metrics that are no means, such as
perplexity."""

PLAIN = "none"
"""What lm-eval calls no filter of answers."""

Answers = Mapping[Any, Any]
"""Answers under one schedule, by request of the harness."""


def summarise(
    model: Model,
    tasks: Tasks,
    limit: int | None,
    answers: Sequence[Answers],
    labels: Labels | None,
) -> xr.Dataset:
    """Return the metrics that the harness computes of the answers under every schedule.

    Parameters
    ----------
    model : Model
        The model, whose tokenizer is used.
    tasks : dict
        Result of `load_tasks`.
    limit : int, optional
        Maximum number of items of each task.
    answers : sequence of mapping
        Answers of the clean model first, then of every schedule.
    labels : Labels, optional
        Dimensions and coordinates of the schedules; None for the clean model alone.

    Returns
    -------
    Dataset
        As `evaluate_tasks` returns it.
    """
    evaluated = []
    for answer_to in answers:
        respond = _look_up(answer_to)
        evaluated.append(run_harness(model, tasks, limit, respond, BOOTSTRAP))
    # All runs have the metrics and the items of the first: the tasks are the same.
    metrics = _metrics(evaluated[0], tasks)
    values, errors, corrects = [], [], []
    for of_schedule in evaluated:
        values.append(_values(of_schedule, tasks, metrics, ""))
        errors.append(_values(of_schedule, tasks, metrics, "_stderr"))
        corrects.append(_correct(of_schedule, tasks, metrics))
    value, error, correct = np.stack(values), np.stack(errors), np.stack(corrects)
    item_task, item_index = [], []
    for name, index, _ in _items(evaluated[0], tasks):
        item_task.append(name)
        item_index.append(index)
    of_metric, of_item = ("task", "metric"), ("metric", "item")
    as_defined, is_right = "metric as lm-eval defines it", "whether an item is answered right"
    coords = {
        "task": list(tasks),
        "metric": metrics,
        "item": np.arange(len(item_index)),
        "item_task": ("item", item_task),
        "item_index": ("item", item_index),
    }
    dataset = xr.Dataset(coords=coords if labels is None else {**labels.coords, **coords})
    if labels is not None:
        for name, dims, runs, described in (
            ("value", of_metric, value, as_defined),
            ("standard_error", of_metric, error, "standard error of value, as lm-eval gives it"),
            ("correct", of_item, correct, is_right),
        ):
            spread = labels.spread(runs[1:])
            dataset[name] = ((*labels.dims, *dims), spread, _described(described))
    for name, dims, runs, described in (
        ("clean_value", of_metric, value, f"{as_defined}, clean model"),
        ("clean_standard_error", of_metric, error, "standard error of clean_value"),
        ("clean_correct", of_item, correct, f"{is_right}, clean model"),
    ):
        dataset[name] = (dims, runs[0], _described(described))
    between = () if labels is None else labels.dims
    return dataset.transpose("task", "metric", *between, "item")


def _look_up(answer_to: Answers) -> Respond:
    """Return a function that answers from a mapping."""

    def respond(requests: Sequence[Any]) -> list[Any]:
        return [answer_to[request] for request in requests]

    return respond


def _metrics(evaluated: Mapping[str, Any], tasks: Tasks) -> list[str]:
    """Return the names of all metrics of some tasks, sorted."""
    metrics = set()
    for name in tasks:
        for key in evaluated["results"][name]:
            # Keys are of the form METRIC,FILTER and METRIC_stderr,FILTER.
            metric, comma, kind = key.partition(",")
            if comma and not metric.endswith("_stderr"):
                metrics.add(_label(metric, kind))
    return sorted(metrics)


def _label(metric: str, kind: str) -> str:
    """Return the name in a file of a metric of answers that went through a filter."""
    return metric if kind == PLAIN else f"{metric},{kind}"


def _values(
    evaluated: Mapping[str, Any], tasks: Tasks, metrics: Sequence[str], ending: str
) -> NDArray[np.float64]:
    """Return metrics, or their errors, (task, metric); NaN if a task does not have the metric."""
    values = np.full((len(tasks), len(metrics)), np.nan)
    for row, name in enumerate(tasks):
        for column, metric in enumerate(metrics):
            plain, _, kind = metric.partition(",")
            key = f"{plain}{ending},{kind or PLAIN}"
            values[row, column] = _number(evaluated["results"][name].get(key))
    return values


def _correct(
    evaluated: Mapping[str, Any], tasks: Tasks, metrics: Sequence[str]
) -> NDArray[np.float64]:
    """Return whether items are answered correctly, (metric, item); NaN if a metric does not say."""
    items = _items(evaluated, tasks)
    correct = np.full((len(metrics), len(items)), np.nan)
    for row, metric in enumerate(metrics):
        if metric.partition(",")[0] in BY_ITEM:
            correct[row] = [_number(found.get(metric)) for *_, found in items]
    return correct


def _items(evaluated: Mapping[str, Any], tasks: Tasks) -> list[tuple[str, int, dict[str, Any]]]:
    """Return every item in order: its task, its number there, and its metrics by their names."""
    items = []
    for name in tasks:
        # A task with several filters has a sample of each of them for an item.
        found: dict[int, dict[str, Any]] = {}
        for sample in evaluated["samples"][name]:
            kind = sample.get("filter", PLAIN)
            metrics = {_label(metric, kind): sample.get(metric) for metric in BY_ITEM}
            found.setdefault(sample["doc_id"], {}).update(metrics)
        # In one order, since items of several runs are compared by their place.
        for index in sorted(found):
            items.append((name, index, found[index]))
    return items


def _number(value: Any) -> float:
    return float(value) if isinstance(value, (int, float, np.number)) else float("nan")


def _described(long_name: str) -> dict[str, str]:
    return {"units": "1", "long_name": long_name}
