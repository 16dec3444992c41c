"""Checks of a dataset that was read: its attributes, dimensions, variables, labels and ranges.

Files come from other people and other versions, so a right name does not vouch for the content. A
user's own measurement has no kind in `robustness.files.kinds`: it is checked only for what files of
all kinds have.
"""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from robustness.files.damage import damaged, shown_value
from robustness.files.kinds import KINDS
from robustness.files.metrics import own_metrics
from robustness.files.schema import (
    LAYERS,
    NAME,
    SEQUENCES,
    TEXT,
    Attribute,
    Kind,
    Variable,
    number_labels,
    whole_from,
)

NAMES = ("model", "architecture", "revision", "dtype", "device", "corpus", "measurement")
TEXTS = (
    "weights_sha256",
    "config_sha256",
    "maps_sha256",
    "corpus_sha256",
    "source_sha256",
    "measurement_sha256",
    "metrics_sha256",
    "attention",
    "compiled",
    "server",
    "server_versions",
    "processing",
    "windows",
    "bos",
    "alignment",
    "conventions",
    "versions",
    "command",
    "created",
    "out_of_memory",
    "out_of_time",
    "difference",
)
COUNTS = ("sequences", "tokens", "seed", "sequences_done", "requests_done", "sequences_used")
ATTRIBUTES: Mapping[str, Attribute] = {
    **dict.fromkeys(TEXTS, TEXT),
    **dict.fromkeys(NAMES, NAME),
    **dict.fromkeys(
        ("context", "batch_tokens", "batch_sequences", "requests_per_batch"), whole_from(1)
    ),
    **dict.fromkeys(COUNTS, whole_from(0)),
}
"""Attributes that mean the same in files of every kind."""

NEEDED_ATTRIBUTES = ("model", "architecture", "conventions", "versions", "command", "created")
"""Names of attributes that every file of a measurement has."""

ATTRIBUTES_TOGETHER = {
    "until_se_reached": ("documents", "corpus_sequences", "corpus_tokens"),
    "shard": ("corpus_sequences", "corpus_tokens", "sequences"),
    "sequences_done": ("sequences",),
}
"""Names of attributes that a file needs if it has another."""

USERS_KIND = Kind(
    variables={},
    labels={**SEQUENCES, **LAYERS, **number_labels(0, "layer_to", "depth", "depth_to", "batch")},
)
"""Kind of a measurement of a user's own: only labels that mean the same everywhere are checked."""

TYPES = {"f": "numbers with a fraction", "i": "whole numbers", "U": "texts"}
"""Types of variables, in words."""


def check_dataset(path: Path, dataset: xr.Dataset) -> None:
    """Refuse a dataset whose content is not that of its kind.

    Parameters
    ----------
    path : path
        Path of the file, for messages.
    dataset : Dataset
        Content of the file.

    Raises
    ------
    Refusal
        If the dataset breaks the contract; the message says where.
    """
    # A file that measures nothing, such as the log of a training, has no kind.
    if "measurement" not in dataset.attrs:
        return
    for fault in _faults(dataset):
        raise damaged(path, fault)


def _faults(dataset: xr.Dataset) -> Iterator[str]:
    """Yield the faults of a dataset, the most telling first."""
    kind = KINDS.get(str(dataset.attrs["measurement"]), USERS_KIND)
    yield from _faults_of_attributes(dataset.attrs, kind)
    for dim, size in dataset.sizes.items():
        if not size and dim not in kind.may_be_empty:
            yield f"its dimension {dim} is empty"
    yield from _faults_of_variables(dataset, kind)
    yield from _faults_of_coordinates(dataset, kind)
    yield from _faults_of_dimensions(dataset, kind)
    yield from _faults_of_extent(dataset, kind)


def _faults_of_attributes(attrs: Mapping[str, object], kind: Kind) -> Iterator[str]:
    for name in NEEDED_ATTRIBUTES:
        if name not in attrs:
            yield f"it has no attribute {name}"
    for name, expected in {**ATTRIBUTES, **kind.attrs}.items():
        if name in attrs and not expected.fits(attrs[name]):
            yield f"its attribute {name} is {shown_value(attrs[name])}, not {expected.what}"
    for name in kind.needed_attrs:
        if name not in attrs:
            yield f"it has no attribute {name}"
    for name, others in ATTRIBUTES_TOGETHER.items():
        for other in others:
            if name in attrs and other not in attrs:
                yield f"it has {name}, and no attribute {other}"


def _faults_of_variables(dataset: xr.Dataset, kind: Kind) -> Iterator[str]:
    names = [str(name) for name in dataset.variables if name in kind.variables]
    if kind.variables and not names:
        yield f"it has none of the variables of its kind ({', '.join(kind.variables)})"
    # A difference of two shares, for instance, may be negative.
    ranged = "difference" not in dataset.attrs
    expectations = {name: kind.variables[name] for name in names}
    if kind.own is not None:
        expectations |= dict.fromkeys(own_metrics(dataset.variables), kind.own)
    for name, expected in expectations.items():
        values = dataset[name]
        if name in dataset.coords:
            yield f"its {name} is a coordinate"
        dims = {*expected.dims}
        # A file of single tokens has one more dimension than that of their means.
        if "token" in dataset.dims and "sequence" in dims:
            dims |= {"token"}
        if {*values.dims} != dims:
            yield _other_dims(name, values, expected)
        yield from _faults_of_values(name, values, expected, ranged)


def _faults_of_coordinates(dataset: xr.Dataset, kind: Kind) -> Iterator[str]:
    for name, expected in kind.labels.items():
        if name not in dataset.variables:
            continue
        values = dataset[name]
        if name not in dataset.coords:
            yield f"its {name} is no coordinate"
        # A coordinate at which xarray selected one place has no dimension left.
        if values.dims and {*values.dims} != {*expected.dims}:
            yield _other_dims(name, values, expected)
        yield from _faults_of_values(name, values, expected, ranged=True)


def _faults_of_dimensions(dataset: xr.Dataset, kind: Kind) -> Iterator[str]:
    dims: set[str] = set()
    for values in dataset.data_vars.values():
        dims |= set(map(str, values.dims))
    for name in sorted(dims):
        if name not in kind.labels:
            continue
        if name in dataset.coords:
            yield from _faults_of_labels(name, dataset[name].values, kind.labels[name].ascending)
        else:
            yield f"its dimension {name} has no labels"
    if "sequence" in dims and "document" not in dataset.coords:
        yield "it does not say which document a sequence is of"
    for name in kind.needed_labels:
        if name not in dataset.coords:
            yield f"it has no {name}"


def _faults_of_extent(dataset: xr.Dataset, kind: Kind) -> Iterator[str]:
    """Yield variables that a finished file lacks, or a count that an unfinished one contradicts."""
    done = dataset.attrs.get("sequences_done")
    if done is None:
        for name in kind.needed:
            if name not in dataset:
                yield f"it has no {name}"
        return
    most = min(dataset.attrs["sequences"], dataset.sizes.get("sequence", math.inf))
    if done > most:
        yield f"it says that {done} sequences of {most} are done"


def _faults_of_labels(name: str, labels: NDArray[Any], ascending: bool) -> Iterator[str]:
    """Yield the faults of the labels along a dimension, each of which may occur only once."""
    if labels.dtype.kind == "f" and not np.isfinite(labels).all():
        yield f"its labels along {name} are not all numbers"
    elif len(set(labels.tolist())) < len(labels):
        yield f"it has a label along {name} twice"
    elif ascending and labels.dtype.kind in "iuf" and (labels[1:] < labels[:-1]).any():
        yield f"its labels along {name} are not in order"


def _faults_of_values(
    name: str, values: xr.DataArray, expected: Variable, ranged: bool
) -> Iterator[str]:
    """Yield the fault of values of another type than expected or, if `ranged`, out of range."""
    if not values.size:
        return
    # Texts are read as objects, and whole numbers may be unsigned.
    dtype = {"O": "U", "T": "U", "u": "i"}.get(values.dtype.kind, values.dtype.kind)
    if dtype != expected.dtype:
        yield f"its {name} is of type {values.dtype}, not of {TYPES[expected.dtype]}"
    elif dtype == "U":
        if not all(isinstance(text, str) for text in values.values.ravel()):
            yield f"its {name} is not all text"
    elif ranged:
        yield from _faults_of_range(name, values.values, expected)


def _faults_of_range(name: str, values: NDArray[Any], expected: Variable) -> Iterator[str]:
    # NaN is where nothing is measured, and np.isnan takes no whole numbers.
    numbers = values[~np.isnan(values)] if values.dtype.kind == "f" else values
    if not numbers.size:
        return
    least, most = numbers.min(), numbers.max()
    if least < expected.least or most > expected.most:
        strange = least if least < expected.least else most
        bounds = f"{round(expected.least, 2):g} to {round(expected.most, 2):g}"
        yield f"its {name} has {strange:.6g}, and is from {bounds}"


def _other_dims(name: str, values: xr.DataArray, expected: Variable) -> str:
    dims, expected_dims = ", ".join(map(str, values.dims)), ", ".join(expected.dims)
    return f"its {name} has the dimensions ({dims}), not ({expected_dims})"
