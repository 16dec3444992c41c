"""Datasets to text tables."""

from collections.abc import Iterator
from math import isnan

import numpy as np
import xarray as xr

from robustness.metrics import CLEAN_READOUTS, MODAL_SHARE, NONFINITE, READOUTS
from robustness.refusal import Refusal
from robustness.results import measured
from robustness.uncertainty import standard_error


def table(dataset: xr.Dataset) -> str:
    """Write a dataset as a text table: means over sequences with standard errors.

    Raises
    ------
    Refusal
        If it holds nothing that is tabulated.
    """
    if "kl" not in dataset:
        raise Refusal(f"nothing in the file is shown; it holds: {', '.join(map(str, dataset))}")
    planned = dataset.sizes["sequence"]
    dataset = measured(dataset)
    lines = list(_header(dataset, planned))
    if "intervention" in dataset.dims:
        for name in dataset["intervention"].values:
            lines += ["", str(name), *_rows(dataset.sel(intervention=name), "layer")]
    else:
        lines += ["", *_rows(dataset, "schedule")]
    return "\n".join(lines)


def _header(dataset: xr.Dataset, planned: int) -> Iterator[str]:
    attrs, sequences = dataset.attrs, dataset.sizes["sequence"]
    documents = np.unique(dataset["document"]).size
    yield f"{attrs['model']} ({attrs['architecture']}, {attrs['dtype']}) on {attrs['corpus']}"
    yield f"{sequences} sequences of {documents} documents, context {attrs['context']}"
    if sequences < planned:
        yield f"unfinished: {sequences} of {planned} sequences are measured"
    parts = (
        f"{metric.name.removeprefix('clean_')} {_cell(dataset[metric.name])}"
        for metric in CLEAN_READOUTS
    )
    yield f"clean: {', '.join(parts)}"
    bad = int(dataset[NONFINITE.name].sum())
    if bad:
        yield f"{bad} predictions had NaN or infinite logits: what they enter is shown as -"
    yield "mean ± standard error clustered by document; KL, loss and entropy in nats"


def _rows(dataset: xr.Dataset, dim: str) -> Iterator[str]:
    shares = [MODAL_SHARE.name] if MODAL_SHARE.name in dataset else []
    names = [metric.name for metric in READOUTS]
    labels = [str(label) for label in dataset[dim].values]
    columns = [[dim, *labels]]
    for name in names:
        columns.append([name, *(_cell(dataset[name].isel({dim: i})) for i in range(len(labels)))])
    for name in shares:
        shown = ("-" if isnan(value) else f"{value:.3f}" for value in dataset[name].values)
        columns.append([name, *shown])
    widths = [max(map(len, column)) for column in columns]
    for cells in zip(*columns, strict=True):
        padded = (cell.rjust(width) for cell, width in zip(cells, widths, strict=True))
        yield "  ".join(padded).rstrip()


def _cell(values: xr.DataArray) -> str:
    mean, error = float(values.mean("sequence", skipna=False)), float(standard_error(values))
    if isnan(mean):
        return "-"
    return f"{mean:.3f}" if isnan(error) else f"{mean:.3f} ±{error:.3f}"
