"""Views of comparisons: the quantities and verdicts of several models; no figure."""

from collections.abc import Iterator
from math import isnan

import xarray as xr

from recipes.views.sections import Section

SETTINGS = ("layers", "corpus", "context", "tokens", "dtype")
"""Names of the settings that are listed for each model."""


def sections(dataset: xr.Dataset) -> Iterator[Section]:
    """Yield the models' quantities, and the verdicts on claims about one and about several."""
    (_, *models), *rows = text_rows(dataset)
    labels, *cells_by_model = zip(*rows, strict=True)
    columns = {}
    for model, cells in zip(models, cells_by_model, strict=True):
        columns[model] = xr.DataArray(list(cells), {"quantity": list(labels)}, "quantity")
    yield Section("", "quantity", columns)
    verdicts = dataset["verdict"].astype(str)
    columns = {str(name): verdicts.sel(model=name) for name in dataset["model"].values}
    yield Section("claims about one model", "claim", columns)
    across = dataset["verdict_across"].astype(str)
    yield Section("claims about several", "claim_across", {"verdict": across})


def text_rows(dataset: xr.Dataset) -> list[list[str]]:
    """Return rows of text: the models' names first, then their settings and quantities."""
    models = dataset["model"].values
    rows = [["", *map(str, models)]]
    for name in SETTINGS:
        rows.append([name, *map(str, dataset[name].values)])
    for quantity in dataset["quantity"].values:
        by_model = dataset.sel(quantity=quantity)
        cells = [_with_interval(by_model.sel(model=model)) for model in models]
        rows.append([str(quantity), *cells])
    return rows


def _with_interval(dataset: xr.Dataset) -> str:
    value, low, high = (float(dataset[name]) for name in ("value", "low", "high"))
    if isnan(value):
        return "-"
    # A quantity without uncertainty has an interval of no width.
    return f"{value:.3g}" if low == high else f"{value:.3g} [{low:.3g}, {high:.3g}]"
