"""Paired differences: between interventions of one run, or between two runs on the same text."""

import numpy as np
import xarray as xr

from robustness.refusal import Refusal

SAME_TEXT = ("corpus", "corpus_sha256")
"""What two runs on the very same token sequences have in common."""

ALONG = ("intervention", "schedule", "lens", "probe")
"""Dimensions along which a run is taken less one of its own labels, the first that it has."""


def difference(data: xr.Dataset, less: xr.Dataset | str) -> xr.Dataset:
    """Take a run less one of its interventions, or less another run, sequence by sequence.

    What is common to both goes out of the difference before its standard error is taken, so that
    it is smaller than that of two means side by side. The result is read like any other run: `show`
    and `plot` take it, and `robustness.uncertainty`.

    Parameters
    ----------
    data : Dataset
        A sweep, or what was observed over sequences.
    less : Dataset or str
        Another run of the same measurement, or the name of an intervention (a schedule, a lens) of
        this one. Two runs on the same token sequences are paired by sequence; on the same text cut
        otherwise, as by another tokenizer, by document, whose means are then taken.

    Returns
    -------
    Dataset
        The variables that have sequences, under their names; dimensions as in `data`, without the
        intervention that was taken away. The attribute `difference` says what it is.

    Raises
    ------
    Refusal
        If there is no such intervention, or the runs are of different text, measurements or layers.
    """
    if isinstance(less, str):
        return _within(data, less)
    return _between(data, less)


def _within(data: xr.Dataset, name: str) -> xr.Dataset:
    dim = next((dim for dim in ALONG if dim in data.dims), None)
    there = [] if dim is None else [str(label) for label in data[dim].values]
    if dim is None or name not in there or len(there) < 2:
        held = f"it has {', '.join(there)}" if there else "it has nothing of that kind"
        raise Refusal(f"the file cannot be taken less {name!r}: {held}")
    kept = data[[each for each in _measured(data) if dim in data[each].dims]]
    rest = [label for label in there if label != name]
    found = kept.sel({dim: rest}) - kept.sel({dim: name}, drop=True)
    return _described(found, data, f"less {name}")


def _between(data: xr.Dataset, less: xr.Dataset) -> xr.Dataset:
    for name in ("measurement", "corpus"):
        if data.attrs.get(name) != less.attrs.get(name):
            raise Refusal(
                f"the files are of different {name}: {data.attrs.get(name)} and "
                f"{less.attrs.get(name)}"
            )
    names = [name for name in _measured(data) if name in _measured(less)]
    one, other = data[names], less[names]
    for dim in set(one.dims) - {"sequence"}:
        sizes = (one.sizes[dim], other.sizes.get(dim, 0))
        if dim in ("layer", "depth", "head") and sizes[0] != sizes[1]:
            raise Refusal(
                f"the files have {sizes[0]} and {sizes[1]} along {dim}: models of different size "
                "are set side by side over relative depth by `stages compare`"
            )
    if any(data.attrs.get(name) != less.attrs.get(name) for name in SAME_TEXT):
        one, other = by_document(one), by_document(other)
        shared = np.intersect1d(one["document"], other["document"])
        if not shared.size:
            raise Refusal("the files have no document in common")
        one, other = (
            each.isel(sequence=np.isin(each["document"], shared)) for each in (one, other)
        )
        one = one.assign_coords(sequence=np.arange(shared.size))
        other = other.assign_coords(sequence=np.arange(shared.size))
    found = one - other
    if not all(found.sizes.values()):
        raise Refusal("the files have nothing in common")
    return _described(found, data, f"less {less.attrs['model']}")


def by_document(data: xr.Dataset) -> xr.Dataset:
    """Return the means of documents, in ascending order, each in the place of its sequences."""
    grouped = data.groupby("document").mean("sequence", skipna=False)
    renamed = grouped.rename(document="sequence")
    documents = renamed["sequence"].values
    return renamed.assign_coords(
        sequence=np.arange(len(documents)), document=("sequence", documents)
    )


def _measured(data: xr.Dataset) -> list[str]:
    return [
        str(name)
        for name, values in data.data_vars.items()
        if "sequence" in values.dims and values.dtype.kind == "f"
    ]


def _described(found: xr.Dataset, data: xr.Dataset, less: str) -> xr.Dataset:
    for name in found:
        attrs = data[name].attrs
        found[name].attrs = {**attrs, "long_name": f"{attrs.get('long_name', name)}, {less}"}
    return found.transpose(..., "sequence").assign_attrs({**data.attrs, "difference": less})
