"""The floor that half precision puts under KL: its attributes in a file, and what it is beside.

The floor is the mean of KL(float32 ‖ half) of the clean model, in float32 arithmetic and as it
runs, with the same weights: the KL that rounding alone makes. `docs/precision.md` shows how it adds
to the KL of an intervention. On a server it is estimated from two runs with other roundings.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

FLOOR = "precision_floor"
"""Name of the attribute that holds the floor, in nats."""

FLOOR_ERROR = "precision_floor_standard_error"
"""Name of the attribute that holds its standard error in nats, clustered by document."""

FLOOR_AGREEMENT = "precision_floor_agreement"
"""Name of the attribute that holds the share of tokens with the same top-1 prediction in both."""

FLOOR_TOKENS = "precision_floor_tokens"
"""Name of the attribute that holds the number of tokens that the floor was measured on."""

FLOOR_FROM = "precision_floor_from"
"""Name of the attribute that says how a floor was estimated; without it, it was measured."""

ROUNDED_ANEW = "rounding anew"
"""Value of `FLOOR_FROM`: a comparison of two runs in half precision, on a server."""

FLOOR_ATTRIBUTES = (FLOOR, FLOOR_ERROR, FLOOR_AGREEMENT, FLOOR_TOKENS, FLOOR_FROM)

NEAR = 10
"""Multiple of the floor below which a mean KL counts as near it. Rounding adds half a floor to the
KL of most interventions, and up to one and a half: at ten floors 5 %, and up to 15 %."""


def floor_attributes(attrs: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of a file's attributes that hold the floor."""
    return {name: attrs[name] for name in FLOOR_ATTRIBUTES if name in attrs}


def floor_of(dataset: xr.Dataset) -> float | None:
    """Return the floor in nats under the KL of a dataset, or None where it has none.

    A difference of two KLs may be of any size, so that no floor is under it.
    """
    if FLOOR not in dataset.attrs or "kl" not in dataset or "difference" in dataset.attrs:
        return None
    floor = float(dataset.attrs[FLOOR])
    return floor if math.isfinite(floor) else None


def describe_near(dataset: xr.Dataset) -> str | None:
    """Return a sentence on the mean KLs that are near the floor, or None where none is.

    Parameters
    ----------
    dataset : Dataset
        A sweep or schedules, with `kl` (…, sequence) of the measured sequences.
    """
    floor = floor_of(dataset)
    if floor is None:
        return None
    means = dataset["kl"].mean("sequence", dtype="float64", skipna=False)
    # At some layers there is no schedule, as with a swap at the last.
    means = means.stack(run=means.dims).dropna("run")
    # Exactly 0 is a schedule that changes nothing.
    means = means[means.values != 0]
    count = int((means < NEAR * floor).sum())
    if not count:
        return None
    smallest = means[int(np.argmin(means.values))]
    estimated = FLOOR_FROM in dataset.attrs
    return (
        f"{count} of {means.size} mean KLs are less than {NEAR} times the floor of "
        f"{dataset.attrs.get('dtype', 'half precision')}, {'about ' if estimated else ''}"
        f"{floor:.2g} nats; the smallest is {float(smallest):.2g} ({_place(smallest)})"
    )


def remedy(dataset: xr.Dataset) -> str:
    """Return what can be done about mean KLs near the floor of a dataset."""
    if "server" in dataset.attrs:
        return "the server decides the type, so take them for rounding"
    return "measure with --dtype float32"


def _place(mean: xr.DataArray) -> str:
    """Return the intervention and layer, or the schedule, that a mean is of."""
    if "intervention" not in mean.coords:
        return str(mean["schedule"].values)
    place = f"{mean['intervention'].values} at layer {int(mean['layer'])}"
    return f"{place} and {int(mean['layer_to'])}" if "layer_to" in mean.coords else place
