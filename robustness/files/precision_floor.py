"""The floor that half precision puts under KL: its attributes in a file, and what it is beside.

The floor is the mean of KL(float32 ‖ half) of the clean model, in float32 arithmetic and as it
runs, with the same weights: the KL that rounding alone makes. `docs/precision.md` shows how it adds
to the KL of an intervention.
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

FLOOR_ATTRIBUTES = (FLOOR, FLOOR_ERROR, FLOOR_AGREEMENT, FLOOR_TOKENS)

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
    return (
        f"{count} of {means.size} mean KLs are less than {NEAR} times the floor of "
        f"{dataset.attrs.get('dtype', 'half precision')}, {floor:.2g} nats; the smallest is "
        f"{float(smallest):.2g} ({_place(smallest)})"
    )


def _place(mean: xr.DataArray) -> str:
    """Return the intervention and layer, or the schedule, that a mean is of."""
    if "intervention" not in mean.coords:
        return str(mean["schedule"].values)
    place = f"{mean['intervention'].values} at layer {int(mean['layer'])}"
    return f"{place} and {int(mean['layer_to'])}" if "layer_to" in mean.coords else place
