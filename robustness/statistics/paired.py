"""Paired differences: between interventions of one run, or between two runs on the same text."""

import re
from collections.abc import Sequence

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from robustness.errors import Refusal
from robustness.schedules import from_text, to_text

CLEAN = "clean"
"""Name of the clean model of a run."""

SUBTRACTED_ALONG = ("intervention", "schedule", "lens", "probe")
"""Dimensions along which one label of a run can be subtracted from the others."""

SIZED_BY_MODEL = {"layer", "depth", "head"}
"""Dimensions whose sizes tell models of different size apart."""


def difference(data: xr.Dataset, less: xr.Dataset | str) -> xr.Dataset:
    """Subtract one intervention of a run, or another run, sequence by sequence.

    What both have in common cancels before the standard error is taken, so that the error is
    smaller than that of two means side by side. The result is read like any other run: `show` and
    `plot` take it, and so do the modules of `robustness.statistics`.

    Parameters
    ----------
    data : Dataset
        A sweep, or what was observed over sequences.
    less : Dataset or str
        Another run of the same measurement, or the name of an intervention (a schedule, a lens) of
        this one, or `clean`, by which the clean model's loss, entropy and accuracy are subtracted.
        Two runs on the same token sequences are paired by sequence. Two runs on the same text cut
        otherwise, as by another tokenizer, are paired by document: the means of documents are
        subtracted, without the last document that either run has read.

    Returns
    -------
    Dataset
        Variables that have sequences, under their names; dimensions as in `data`, without the
        intervention that was subtracted. The attribute `difference` describes the subtraction.

    Raises
    ------
    Refusal
        If there is no such intervention, or the runs are of different text, measurements or layers.
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
    """Return the variables that are measured for the clean model too."""
    return [name for name in _over_sequences(data) if f"clean_{name}" in data]


def _less_label(data: xr.Dataset, asked: str) -> xr.Dataset:
    dim = next((dim for dim in SUBTRACTED_ALONG if dim in data.dims), None)
    labels = [] if dim is None else [str(label) for label in data[dim].values]
    name = _schedule_as_written(asked, labels) if dim == "schedule" else asked
    if name not in labels:
        held = f"it has {', '.join(labels)}" if labels else "it has nothing of that kind"
        raise Refusal(f"there is no file {asked}, and nothing of that name in this one: {held}")
    if dim is None or len(labels) < 2:
        raise Refusal(f"there is nothing in the file that {asked} could be taken from")
    kept = data[[name for name in _over_sequences(data) if dim in data[name].dims]]
    labels.remove(name)
    changed = kept.sel({dim: labels}) - kept.sel({dim: name}, drop=True)
    return _described(changed, data, f"less {name}")


def _schedule_as_written(text: str, labels: Sequence[str]) -> str:
    """Return the schedule of a file that a text stands for, or the text itself.

    A text with an open range is returned as it is, because the file does not say how many layers
    the model has.
    """
    if re.search(r"\.\.(?!\d)", text):
        return text
    blocks = [int(number) for number in re.findall(r"\d+", " ".join(labels))]
    try:
        return to_text(from_text(text, max(blocks, default=0) + 1))
    except Refusal:
        return text


def _between_runs(data: xr.Dataset, less: xr.Dataset) -> xr.Dataset:
    _check_equal(data, less, "measurement", "the files are of different measurement")
    _check_equal(data, less, "corpus", "the files are of different corpus")
    names = [name for name in _over_sequences(data) if name in _over_sequences(less)]
    if not names:
        raise Refusal(
            "the files have no numbers of sequences in common: "
            f"{', '.join(map(str, data))} and {', '.join(map(str, less))}"
        )
    one, other = data[names], less[names]
    _check_sizes(one, other)
    if data.attrs.get("corpus_sha256") != less.attrs.get("corpus_sha256"):
        one, other = _paired_by_document(one, other)
        # The number of tokens that both have read is not known.
        data = data.assign_attrs(tokens=None)
    changed = one - other
    for dim in changed.dims:
        if not changed.sizes[dim]:
            ours, theirs = (", ".join(map(str, each[dim].values)) for each in (one, other))
            raise Refusal(f"the files have no {dim} in common: {ours} and {theirs}")
    return _described(changed, data, f"less {less.attrs['model']}")


def _check_equal(one: xr.Dataset, other: xr.Dataset, name: str, problem: str) -> None:
    if one.attrs.get(name) != other.attrs.get(name):
        raise Refusal(f"{problem}: {one.attrs.get(name)} and {other.attrs.get(name)}")


def _check_sizes(one: xr.Dataset, other: xr.Dataset) -> None:
    """Refuse runs of models with different numbers of layers or heads."""
    if one.attrs.get("config_sha256") == other.attrs.get("config_sha256"):
        return
    # Where layers were chosen, their number says nothing of the model's.
    chosen = "layers" in one.attrs or "layers" in other.attrs
    compared = SIZED_BY_MODEL - {"layer"} if chosen else SIZED_BY_MODEL
    for dim in compared & {*map(str, one.dims)}:
        if one.sizes[dim] != other.sizes[dim]:
            raise Refusal(
                f"the files have {one.sizes[dim]} and {other.sizes[dim]} along {dim}: models of "
                "different size are set side by side over relative depth by `stages compare`"
            )


def _paired_by_document(one: xr.Dataset, other: xr.Dataset) -> tuple[xr.Dataset, xr.Dataset]:
    """Return the means of the documents that both runs have read to the end."""
    for name in ("windows", "alignment"):
        _check_equal(one, other, name, f"the files are of text with different {name}")
    sources = {each.attrs.get("source_sha256") for each in (one, other)} - {None}
    if len(sources) > 1:
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
    """Leave out the document in which reading stopped, of which a part may be missing."""
    return data.isel(sequence=data["document"] != data["document"][-1])


def _means_of(data: xr.Dataset, documents: NDArray[np.int64]) -> xr.Dataset:
    return by_document(data.isel(sequence=np.isin(data["document"], documents)))


def by_document(data: xr.Dataset) -> xr.Dataset:
    """Return the means of documents, in ascending order, each in the place of its sequences."""
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
    """Return a difference with the attributes of what it was made of, and what was subtracted."""
    for name in changed:
        attrs = data[name].attrs
        changed[name].attrs = {**attrs, "long_name": f"{attrs.get('long_name', name)}, {less}"}
    attrs = {name: value for name, value in data.attrs.items() if value is not None}
    changed = changed.transpose(..., "sequence").drop_attrs(deep=False)
    return changed.assign_attrs({**attrs, "difference": less})
