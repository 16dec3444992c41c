"""Views of searches for a smaller model: what each method removed, at what cost, and how surely."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from recipes.views import style
from recipes.views.sections import Section
from robustness.errors import Refusal
from robustness.files.kinds.searches import HELD_OUT, NOT_RACED, NOT_WEIGHED, TIED
from robustness.pruning.scores import held_out, rises, scores, searched
from robustness.pruning.stability import FOLLOWING, chosen_by_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_CANDIDATES = 20
"""Number of candidates that the table of a search without a result shows."""

COSTS = {
    "tokens read": "tokens_read",
    "tokens in full": "tokens_in_full",
    "applications of blocks": "applications",
}
"""Variables of what a search took, by the heading of their column."""

OF_CANDIDATES = ("kl", "loss", "clean_loss", "parameters", "flops_share", "kv_bytes")
"""Variables of candidates, and what they are compared with."""

DASHES = ("-", "--", ":", "-.")
"""Styles of lines, which often lie on each other: methods mostly agree on the first blocks."""

DRAWN = {
    "KL": "KL(clean ‖ pruned) [nat]",
    "rise of the loss": "rise of the loss [nat]",
}
"""Labels of the axes of the frontier, by heading."""


def sections(dataset: xr.Dataset) -> Iterator[Section]:
    """Yield the path of every method and what it took, healing, stability, texts and speed."""
    if "chosen" not in dataset:
        # An unfinished search has chosen nothing yet, and a difference of two never does.
        yield from _candidates(dataset)
        return
    for name in map(str, dataset["strategy"].values):
        yield _path(dataset, name)
    for name in map(str, dataset["strategy"].values):
        yield _costs(dataset, name)
    if "healed" in dataset:
        yield _healing(dataset)
    if "probability" in dataset:
        yield from _stability(dataset)
    if "rank_correlation" in dataset and dataset.sizes["text"] > 1:
        yield _texts(dataset)
    if "milliseconds" in dataset:
        yield _speed(dataset)


def chosen_of(dataset: xr.Dataset, method: str) -> xr.Dataset:
    """Return what is measured of the candidates that a method chose, by step.

    The dimension `candidate` becomes `step`: the number of units that are removed.
    """
    texts = dataset["chosen"].sel(strategy=method)
    known = np.isin(texts.values.astype(str), dataset["candidate"].values.astype(str))
    return _of_candidates(dataset, texts[known])


def _of_candidates(dataset: xr.Dataset, texts: xr.DataArray) -> xr.Dataset:
    """Return what is measured of candidates, along the dimension of an array of their schedules."""
    (dim,) = map(str, texts.dims)
    names = [name for name in OF_CANDIDATES if name in dataset]
    rows = dataset[names].reset_coords(["removed", "size"])
    rows = rows.sel(candidate=texts.values.astype(str)).drop_vars("candidate")
    return rows.rename(candidate=dim).assign_coords({dim: texts[dim].values})


def _path(dataset: xr.Dataset, method: str) -> Section:
    path = chosen_of(dataset, method)
    judged, part, score = _judged(path)
    columns = {"removed": path["removed"], **judged, "search score": score}
    # Without other documents, the text differs only by what a race did not need.
    if part == HELD_OUT:
        mean = _of_objective(path, judged).mean("sequence", skipna=False)
        columns["optimism"] = mean - score
    columns |= {
        "parameters": path["parameters"],
        "of all": path["parameters"] / dataset.attrs.get("clean_parameters", np.nan),
        "of FLOPs": path["flops_share"],
    }
    if "kv_bytes" in path:
        columns["KV bytes"] = path["kv_bytes"]
    columns |= _ties(dataset, method, path)
    return Section(f"{method}, on the {part} text", "step", columns, by_interval=True)


def _judged(path: xr.Dataset) -> tuple[dict[str, xr.DataArray], str, xr.DataArray]:
    """Return KL and rise of the loss on the text that chosen candidates are judged on.

    That is the held-out text, or the one of the search if none was held out. The second value names
    it. The third is the search score, over the sequences of the search that were measured.
    """
    own = scores(path)
    score = searched(own).mean("sequence", skipna=True).assign_attrs(units="nat")
    part, name = held_out, HELD_OUT
    if not held_out(own).sizes["sequence"]:
        part, name = searched, "searched"
        # What a race did not need has no numbers.
        path = path.isel(sequence=own.notnull().all(str(own.dims[0])).values)
    measured = {"KL": path["kl"], "rise of the loss": rises(path)}
    judged = {heading: part(values) for heading, values in measured.items()}
    return judged, name, score


def _of_objective(path: xr.Dataset, judged: dict[str, xr.DataArray]) -> xr.DataArray:
    return judged["KL" if path.attrs["objective"] == "kl" else "rise of the loss"]


def _ties(dataset: xr.Dataset, method: str, path: xr.Dataset) -> dict[str, xr.DataArray]:
    """Return how many candidates each step raced, and which tied with the chosen one."""
    standing = dataset["standing"].sel(strategy=method, step=path["step"])
    standing = standing.transpose("step", "candidate")
    tied = standing.values == TIED
    removed = dataset["removed"].values
    texts = ["; ".join(map(str, removed[row])) for row in tied]
    by_step = {"step": path["step"]}
    return {
        "candidates": (~standing.isin((NOT_WEIGHED, NOT_RACED))).sum("candidate"),
        "tied": xr.DataArray(tied.sum(1), by_step, "step"),
        "tied with": xr.DataArray(np.array(texts, dtype=object), by_step, "step"),
    }


def _costs(dataset: xr.Dataset, method: str) -> Section:
    of_method = dataset.sel(strategy=method)
    columns = {heading: of_method[name] for heading, name in COSTS.items() if name in of_method}
    full = of_method["tokens_in_full"]
    columns["saved"] = (1 - of_method["tokens_read"] / full.where(full > 0)).drop_vars("strategy")
    return Section(f"{method}, what the search took", "step", columns)


def _healing(dataset: xr.Dataset) -> Section:
    judged, part, _ = _judged(_of_candidates(dataset, dataset["healed"]))
    columns = judged | {"schedule": dataset["healed"]}
    title = f"healing without training, on the {part} text"
    return Section(title, "healing", columns, by_interval=True)


def _stability(dataset: xr.Dataset) -> Iterator[Section]:
    """Yield how often each unit is in the best set of each size, a table for each method."""
    for name in map(str, dataset["strategy"].values):
        shares = dataset["probability"].sel(strategy=name, drop=True)
        # A method that weighs one set alone has none.
        shares = shares.dropna("step", how="all")
        shares = shares.isel(unit=((shares > 0).any("step")).values)
        if not shares.size:
            continue
        columns = {f"of {step}": shares.sel(step=step, drop=True) for step in shares["step"].values}
        bound = ", lower bounds" if name in FOLLOWING else ""
        title = f"{name}, share of resampled documents with the unit in the best set{bound}"
        yield Section(title, "unit", columns)


def _texts(dataset: xr.Dataset) -> Section:
    correlation, chosen = dataset["rank_correlation"], chosen_by_text(dataset)
    names = list(map(str, dataset["text"].values))
    columns = {}
    for one, other in combinations(names, 2):
        between = correlation.sel(text=one, text_to=other, drop=True)
        columns[f"{one} and {other}"] = between
    for name in names:
        if name in chosen["text"]:
            columns[f"{name} removes"] = chosen.sel(text=name, drop=True)
    return Section("rank correlation of texts, and what each removes", "step", columns)


def _speed(dataset: xr.Dataset) -> Section:
    times = dataset["milliseconds"]
    columns = {}
    for phase in map(str, dataset["phase"].values):
        of_phase = times.sel(phase=phase, drop=True)
        columns[phase] = of_phase.median("repetition", keep_attrs=True)
        columns[f"{phase} lowest"] = of_phase.min("repetition", keep_attrs=True)
        columns[f"{phase} highest"] = of_phase.max("repetition", keep_attrs=True)
    return Section("milliseconds a token, median of repetitions", "version", columns)


def _candidates(dataset: xr.Dataset) -> Iterator[Section]:
    """Yield the candidates with the lowest values so far, over the sequences of each."""
    columns: dict[str, xr.DataArray] = {}
    for name in ("kl", "loss", "agreement"):
        if name in dataset and "candidate" in dataset[name].dims:
            values = searched(dataset[name])
            columns[name] = values.mean("sequence", skipna=True, keep_attrs=True)
            columns["sequences"] = values.notnull().sum("sequence")
    if not columns:
        return
    first = next(iter(columns.values()))
    order = np.argsort(first.values, kind="stable")[:MOST_CANDIDATES]
    plain = {name: values.reset_coords(drop=True)[order] for name, values in columns.items()}
    title = f"{len(order)} of {first.size} candidates, by {first.name}, each on its sequences"
    yield Section(title, "candidate", plain)


def figure(dataset: xr.Dataset) -> Figure:
    """Draw KL and loss over parameters for every method, and the stability of what it removes."""
    if "chosen" not in dataset:
        raise Refusal(
            "the search is unfinished, and has no figure before it ends: run its command again"
        )
    methods = list(map(str, dataset["strategy"].values))
    stable = "probability" in dataset
    width = 5.0 * min(4, max(2, len(methods)))
    figure = style.new_figure(width, 8.2 if stable else 4.2)
    above, *below = figure.subfigures(2 if stable else 1, 1, squeeze=False)[:, 0]
    _draw_frontier(above.subplots(1, 2), dataset, methods)
    for part in below:
        _draw_stability(part, dataset["probability"], methods)
    return figure


def _draw_stability(part: Any, shares: xr.DataArray, methods: list[str]) -> None:
    """Draw how often each unit is in the best set of each size, a heat map for each method."""
    panels = part.subplots(1, len(methods), squeeze=False, sharey=True)[0]
    image = None
    for axis, name in zip(panels, methods, strict=True):
        of_method = shares.sel(strategy=name, drop=True)
        image = style.heat_map(axis, of_method, "unit", "step", (0, 1))
        _name_cells(axis, of_method)
        axis.set_title(f"{name}: stability{', lower bounds' if name in FOLLOWING else ''}")
    part.colorbar(image, ax=list(panels), label="share of resampled documents")


def _draw_frontier(axes: np.ndarray, dataset: xr.Dataset, methods: list[str]) -> None:
    """Draw what is lost against the parameters that are left, a line for each method."""
    from matplotlib.ticker import EngFormatter

    for axis, (heading, label) in zip(axes, DRAWN.items(), strict=True):
        part = ""
        for index, name in enumerate(methods):
            path = chosen_of(dataset, name)
            judged, part, _ = _judged(path)
            dashes = DASHES[index % len(DASHES)]
            style.curve(axis, path["parameters"], judged[heading], index, name, linestyle=dashes)
        whole = dataset.attrs.get("clean_parameters")
        if whole is not None:
            axis.plot([whole], [0], "k*", label="clean model")
        axis.set_title(f"{heading}, on the {part} text")
        axis.set_xlabel("parameters")
        axis.set_ylabel(label)
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))
        axis.grid(alpha=0.3)
    axes[0].legend(frameon=False)


def _name_cells(axis: Axes, shares: xr.DataArray) -> None:
    """Label the cells of a heat map by units and steps."""
    for side, name in ((axis.yaxis, "unit"), (axis.xaxis, "step")):
        labels = list(map(str, shares[name].values))
        every = -(-len(labels) // style.MOST_TICKS)
        side.set_ticks(range(0, len(labels), every), labels[::every])
    axis.set_xlabel("units removed")
    axis.set_ylabel("unit")
