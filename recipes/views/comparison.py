"""Comparisons: models side by side. They have no figure."""

from collections.abc import Iterator
from math import isnan

import xarray as xr

from recipes.views.sections import Section

SETTINGS = ("layers", "corpus", "context", "tokens", "dtype")
"""What is said of each model and its run."""


def sections(dataset: xr.Dataset) -> Iterator[Section]:
    """Yield the models' quantities, and the verdicts on claims about one and about several."""
    models, *rows = text_rows(dataset)
    labels = [label for label, *_ in rows]
    columns = {}
    for place, name in enumerate(models[1:], 1):
        cells = [row[place] for row in rows]
        columns[name] = xr.DataArray(cells, {"quantity": labels}, "quantity")
    yield Section("", "quantity", columns)
    verdicts = dataset["verdict"].astype(str)
    columns = {str(name): verdicts.sel(model=name) for name in dataset["model"].values}
    yield Section("claims about one model", "claim", columns)
    across = dataset["verdict_across"].astype(str)
    yield Section("claims about several", "claim_across", {"verdict": across})


def text_rows(dataset: xr.Dataset) -> list[list[str]]:
    """Return models side by side as rows of text, the first of them the headings."""
    models = dataset["model"].values
    rows = [["", *map(str, models)]]
    for name in SETTINGS:
        rows.append([name, *map(str, dataset[name].values)])
    for quantity in dataset["quantity"].values:
        here = dataset.sel(quantity=quantity)
        cells = [_with_interval(here.sel(model=model)) for model in models]
        rows.append([str(quantity), *cells])
    return rows


def _with_interval(dataset: xr.Dataset) -> str:
    value, low, high = (float(dataset[name]) for name in ("value", "low", "high"))
    if isnan(value):
        return "-"
    return f"{value:.3g}" if low == high else f"{value:.3g} [{low:.3g}, {high:.3g}]"
