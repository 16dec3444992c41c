"""Paired differences: between interventions of one run, or between two runs on the same text."""

import re
from collections.abc import Iterable, Sequence

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from robustness.errors import Refusal
from robustness.schedules import from_text, to_text

CLEAN = "clean"
"""Name by which the clean model of a run is subtracted."""

SUBTRACTED_ALONG = ("intervention", "schedule", "lens", "probe")
"""Dimensions along which one label of a run can be subtracted from the others."""

SIZED_BY_MODEL = {"layer", "depth", "head"}
"""Dimensions whose sizes depend on the model."""


def difference(data: xr.Dataset, less: xr.Dataset | str) -> xr.Dataset:
    """Subtract one intervention of a run, or another run, sequence by sequence.

    Variation that both sides share cancels before the standard error is taken, so the error is
    smaller than that of two separate means. The result is read like any other run: `show`, `plot`
    and the functions of `robustness.statistics` accept it.

    Parameters
    ----------
    data : Dataset
        Sweep, or other measurement over sequences.
    less : Dataset or str
        Another run of the same measurement; or the name of an intervention (a schedule, a lens) of
        this run; or `clean`, which subtracts the clean model's loss, entropy and accuracy. Two runs
        on the same token sequences are paired by sequence. Two runs on the same text but different
        tokens, as from another tokenizer, are paired by document: means of documents are
        subtracted, and the last document of either run is left out.

    Returns
    -------
    Dataset
        Variables that have sequences, under their names; dimensions as in `data`, without the
        intervention that was subtracted. The attribute `difference` describes the subtraction.

    Raises
    ------
    Refusal
        If there is no such intervention, or if text, measurement or layers of the runs differ.
    """
    if not isinstance(less, str):
        return _between_runs(data, less)
    if less == CLEAN and _with_clean_value(data):
        return _less_clean(data)
    return _less_label(data, less)


def _less_clean(data: xr.Dataset) -> xr.Dataset:
    changed = {}
    for name in _with_clean_value(data):
        changed[name] = data[name] - data[f"clean_{name}"]
    return _described(xr.Dataset(changed), data, "less the clean model")


def _with_clean_value(data: xr.Dataset) -> list[str]:
    """Return the names of the variables that are measured for the clean model too."""
    return [name for name in _over_sequences(data) if f"clean_{name}" in data]


def _less_label(data: xr.Dataset, requested: str) -> xr.Dataset:
    dim = next((dim for dim in SUBTRACTED_ALONG if dim in data.dims), None)
    labels = [] if dim is None else list(map(str, data[dim].values))
    name = _schedule_as_written(requested, labels) if dim == "schedule" else requested
    if dim is None:
        raise Refusal(f"there is no file {requested}, and nothing in this file has a name")
    if name not in labels:
        raise Refusal(
            f"there is no file {requested}, and no {dim} of that name in this file: it has "
            f"{_listed(labels)}"
        )
    if len(labels) < 2:
        raise Refusal(f"there is nothing in the file that {requested} could be subtracted from")
    subtractable = data[[name for name in _over_sequences(data) if dim in data[name].dims]]
    labels.remove(name)
    changed = subtractable.sel({dim: labels}) - subtractable.sel({dim: name}, drop=True)
    return _described(changed, data, f"less {name}")


def _schedule_as_written(text: str, labels: Sequence[str]) -> str:
    """Return the label of the schedule that a text stands for, or the text itself.

    A text with an open range is returned as it is, because the file does not say how many layers
    the model has.
    """
    if re.search(r"\.\.(?!\d)", text):
        return text
    # The largest block of any schedule is the best available bound on the number of layers.
    blocks = map(int, re.findall(r"\d+", " ".join(labels)))
    try:
        return to_text(from_text(text, max(blocks, default=0) + 1))
    except Refusal:
        return text


def _between_runs(data: xr.Dataset, less: xr.Dataset) -> xr.Dataset:
    _check_equal(data, less, "measurement", "the files hold different measurements")
    _check_equal(data, less, "corpus", "the files are of different texts")
    names = [name for name in _over_sequences(data) if name in _over_sequences(less)]
    if not names:
        raise Refusal(
            "the files have no variable over sequences in common: "
            f"{_listed(data)} and {_listed(less)}"
        )
    one, other = data[names], less[names]
    _check_sizes(one, other)
    if data.attrs.get("corpus_sha256") != less.attrs.get("corpus_sha256"):
        one, other = _paired_by_document(one, other)
        # The number of tokens that both have read is not known.
        data = data.assign_attrs(tokens=None)
    # xarray's arithmetic aligns: labels that only one side has are dropped.
    changed = one - other
    for dim in changed.dims:
        if not changed.sizes[dim]:
            raise Refusal(
                f"the files have no {dim} in common: {_listed(one[dim].values)} and "
                f"{_listed(other[dim].values)}"
            )
    return _described(changed, data, f"less {less.attrs['model']}")


def _listed(names: Iterable[object]) -> str:
    return ", ".join(map(str, names))


def _check_equal(one: xr.Dataset, other: xr.Dataset, name: str, problem: str) -> None:
    if one.attrs.get(name) != other.attrs.get(name):
        raise Refusal(f"{problem}: {one.attrs.get(name)} and {other.attrs.get(name)}")


def _check_sizes(one: xr.Dataset, other: xr.Dataset) -> None:
    """Refuse runs of models with different numbers of layers or heads."""
    if one.attrs.get("config_sha256") == other.attrs.get("config_sha256"):
        return
    # If only some layers were measured, their number is not the model's.
    chosen = "layers" in one.attrs or "layers" in other.attrs
    compared = SIZED_BY_MODEL - {"layer"} if chosen else SIZED_BY_MODEL
    for dim in compared & {*map(str, one.dims)}:
        if one.sizes[dim] != other.sizes[dim]:
            raise Refusal(
                f"the files have {one.sizes[dim]} and {other.sizes[dim]} along {dim}: models of "
                "different size are compared over relative depth by `stages compare`"
            )


def _paired_by_document(one: xr.Dataset, other: xr.Dataset) -> tuple[xr.Dataset, xr.Dataset]:
    """Return the means of the documents that both runs have read to the end."""
    for name in ("windows", "alignment"):
        _check_equal(one, other, name, f"the files are of text with different {name}")
    sources = {one.attrs.get("source_sha256"), other.attrs.get("source_sha256")}
    # Only texts read from a file or a data set have a digest; for others the name has to do.
    if len(sources - {None}) > 1:
        raise Refusal(
            f"the files are of different texts that are both called {one.attrs['corpus']}"
        )
    if str(one.attrs.get("windows", "")).startswith("packed"):
        raise Refusal(
            "windows of different tokens that cross documents cannot be paired: measure both "
            "without `pack`"
        )
    one, other = _without_last_document(one), _without_last_document(other)
    shared = np.intersect1d(one["document"], other["document"])
    if not shared.size:
        raise Refusal("the files have no document in common that both have read to the end")
    return _means_of(one, shared), _means_of(other, shared)


def _without_last_document(data: xr.Dataset) -> xr.Dataset:
    """Leave out the document in which reading stopped, because a part of it may be missing."""
    return data.isel(sequence=data["document"] != data["document"][-1])


def _means_of(data: xr.Dataset, documents: NDArray[np.int64]) -> xr.Dataset:
    return by_document(data.isel(sequence=np.isin(data["document"], documents)))


def by_document(data: xr.Dataset) -> xr.Dataset:
    """Return the mean of every document, in ascending order, along `sequence`."""
    means = data.groupby("document").mean("sequence", skipna=False).rename(document="sequence")
    documents = means["sequence"].values
    return means.assign_coords(sequence=np.arange(len(documents)), document=("sequence", documents))


def _over_sequences(data: xr.Dataset) -> list[str]:
    """Return the names of the measured variables that have sequences."""
    names = []
    for name, values in data.data_vars.items():
        if "sequence" in values.dims and values.dtype.kind == "f":
            names.append(str(name))
    return names


def _described(changed: xr.Dataset, data: xr.Dataset, less: str) -> xr.Dataset:
    """Return a difference with the attributes of its file and a note of what was subtracted."""
    for name in changed:
        attrs = data[name].attrs
        changed[name].attrs = {**attrs, "long_name": f"{attrs.get('long_name', name)}, {less}"}
    attrs = {name: value for name, value in data.attrs.items() if value is not None}
    changed = changed.transpose(..., "sequence").drop_attrs(deep=False)
    return changed.assign_attrs({**attrs, "difference": less})
