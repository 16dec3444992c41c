"""Paired differences: between interventions of one run, or between two runs on the same text."""

import re
from collections.abc import Sequence

import numpy as np
import xarray as xr

from robustness.errors import Refusal
from robustness.schedules.schedule import from_text, to_text

CLEAN = "clean"
"""What a run's own clean model is called."""

ALONG = ("intervention", "schedule", "lens", "probe")
"""Dimensions along which a run is taken less one of its own labels, the first that it has."""


def difference(data: xr.Dataset, less: xr.Dataset | str) -> xr.Dataset:
    """Take a run less one of its interventions, or less another run, sequence by sequence.

    What is common to both goes out of the difference before its standard error is taken, so that
    it is smaller than that of two means side by side. The result is read like any other run: `show`
    and `plot` take it, and `robustness.statistics.uncertainty`.

    Parameters
    ----------
    data : Dataset
        A sweep, or what was observed over sequences.
    less : Dataset or str
        Another run of the same measurement, or the name of an intervention (a schedule, a lens) of
        this one, or `clean`: loss, entropy and accuracy less the clean model's. Two runs on the
        same token sequences are paired by sequence; on the same text cut otherwise, as by another
        tokenizer, by document, whose means are then taken, without the last that either has read.

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
    if name == CLEAN and any(f"clean_{each}" in data for each in data):
        kept = [each for each in _measured(data) if f"clean_{each}" in data]
        changed = xr.Dataset({each: data[each] - data[f"clean_{each}"] for each in kept})
        return _described(changed, data, "less the clean model")
    dim = next((dim for dim in ALONG if dim in data.dims), None)
    there = [] if dim is None else [str(label) for label in data[dim].values]
    asked, name = name, _spelt(name, there) if dim == "schedule" else name
    if name not in there:
        held = f"it has {', '.join(there)}" if there else "it has nothing of that kind"
        raise Refusal(f"there is no file {asked}, and nothing of that name in this one: {held}")
    if dim is None or len(there) < 2:
        raise Refusal(f"there is nothing in the file that {asked} could be taken from")
    kept = [each for each in _measured(data) if dim in data[each].dims]
    rest = [label for label in there if label != name]
    found = data[kept].sel({dim: rest}) - data[kept].sel({dim: name}, drop=True)
    return _described(found, data, f"less {name}")


def _spelt(name: str, there: Sequence[str]) -> str:
    """Return the schedule of a file that a text means, or the text.

    How many layers the model has is not known, and so an open range is not read.
    """
    if re.search(r"\.\.(?!\d)", name):
        return name
    blocks = max((int(number) for text in there for number in re.findall(r"\d+", text)), default=0)
    try:
        return to_text(from_text(name, blocks + 1))
    except Refusal:
        return name


def _between(data: xr.Dataset, less: xr.Dataset) -> xr.Dataset:
    for name in ("measurement", "corpus"):
        if data.attrs.get(name) != less.attrs.get(name):
            raise Refusal(
                f"the files are of different {name}: {data.attrs.get(name)} and "
                f"{less.attrs.get(name)}"
            )
    names = [name for name in _measured(data) if name in _measured(less)]
    if not names:
        raise Refusal(
            "the files have no numbers of sequences in common: "
            f"{', '.join(map(str, data))} and {', '.join(map(str, less))}"
        )
    one, other = data[names], less[names]
    same_model = data.attrs.get("config_sha256") == less.attrs.get("config_sha256")
    chosen = "layers" in data.attrs or "layers" in less.attrs
    for dim in () if same_model else set(one.dims) & {"layer", "depth", "head"}:
        if one.sizes[dim] != other.sizes[dim] and not (chosen and dim == "layer"):
            raise Refusal(
                f"the files have {one.sizes[dim]} and {other.sizes[dim]} along {dim}: models of "
                "different size are set side by side over relative depth by `stages compare`"
            )
    if data.attrs.get("corpus_sha256") != less.attrs.get("corpus_sha256"):
        one, other = _paired(one, other)
        data = data.assign_attrs(tokens=None)  # how many are in common is not known
    found = one - other
    for dim in found.dims:
        if not found.sizes[dim]:
            labels = (", ".join(map(str, each[dim].values)) for each in (one, other))
            raise Refusal(f"the files have no {dim} in common: {' and '.join(labels)}")
    return _described(found, data, f"less {less.attrs['model']}")


def _paired(one: xr.Dataset, other: xr.Dataset) -> tuple[xr.Dataset, xr.Dataset]:
    """Return the means of the documents that both have read to the end."""
    for name in ("windows", "alignment"):
        if one.attrs.get(name) != other.attrs.get(name):
            raise Refusal(
                f"the files are of text with different {name}: {one.attrs.get(name)} and "
                f"{other.attrs.get(name)}"
            )
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
    # Where reading stopped, the last document may have been cut off.
    one, other = (
        each.isel(sequence=each["document"] != each["document"][-1]) for each in (one, other)
    )
    shared = np.intersect1d(one["document"], other["document"])
    if not shared.size:
        raise Refusal("the files have no document in common that both have read to the end")
    pair = [
        by_document(each.isel(sequence=np.isin(each["document"], shared))) for each in (one, other)
    ]
    return pair[0], pair[1]


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
    attrs = {name: value for name, value in data.attrs.items() if value is not None}
    found = found.transpose(..., "sequence").drop_attrs(deep=False)
    return found.assign_attrs({**attrs, "difference": less})
