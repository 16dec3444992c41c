"""Datasets to text tables."""

from collections.abc import Iterator
from math import isnan
from typing import SupportsFloat

import numpy as np
import xarray as xr

from robustness.metrics import CLEAN_READOUTS, MODAL_SHARE, READOUTS
from robustness.refusal import Refusal
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
    done = int(dataset.attrs.get("sequences_done", dataset.sizes["sequence"]))
    lines = list(_header(dataset, done))
    dataset = dataset.isel(sequence=slice(0, done))
    if not done:
        return "\n".join(lines)
    if "intervention" in dataset.dims:
        for name in dataset["intervention"].values:
            lines += ["", str(name), *_rows(dataset.sel(intervention=name), "layer")]
    else:
        lines += ["", *_rows(dataset, "schedule")]
    return "\n".join(lines)


def _header(dataset: xr.Dataset, done: int) -> Iterator[str]:
    attrs, sequences = dataset.attrs, dataset.sizes["sequence"]
    documents = np.unique(dataset["document"]).size
    yield f"{attrs['model']} ({attrs['architecture']}, {attrs['dtype']}) on {attrs['corpus']}"
    yield f"{sequences} sequences of {documents} documents, context {attrs['context']}"
    if done < sequences:
        yield f"unfinished: {done} of {sequences} sequences are measured"
    if done:
        clean = {
            metric.name: dataset[metric.name].isel(sequence=slice(0, done))
            for metric in CLEAN_READOUTS
        }
        parts = (
            f"{name.removeprefix('clean_')} {_number(values.mean(), standard_error(values))}"
            for name, values in clean.items()
        )
        yield f"clean: {', '.join(parts)}"
    yield "mean ± standard error clustered by document; KL, loss and entropy in nats"


def _rows(dataset: xr.Dataset, dim: str) -> Iterator[str]:
    shares = [MODAL_SHARE.name] if MODAL_SHARE.name in dataset else []
    names = [metric.name for metric in READOUTS]
    labels = [str(label) for label in dataset[dim].values]
    columns = [[dim, *labels]]
    for name in names:
        mean, error = dataset[name].mean("sequence"), standard_error(dataset[name])
        pairs = zip(mean.values, error.values, strict=True)
        columns.append([name, *(_number(m, e) for m, e in pairs)])
    for name in shares:
        columns.append([name, *(_number(value) for value in dataset[name].values)])
    widths = [max(map(len, column)) for column in columns]
    for cells in zip(*columns, strict=True):
        padded = (cell.rjust(width) for cell, width in zip(cells, widths, strict=True))
        yield "  ".join(padded).rstrip()


def _number(value: SupportsFloat, error: SupportsFloat = float("nan")) -> str:
    if isnan(value):
        return "-"
    if isnan(error):
        return f"{float(value):.3f}"
    return f"{float(value):.3f} ±{float(error):.3f}"
