"""When a run has measured enough: as soon as its means are known well enough.

The rule looks at the data that it stops, so what it leaves is not a sample of fixed size: it stops
a little more readily where the spread happens to be small. `benchmarks/until_se.py` measures what
that does to intervals; the fewest documents that it takes are there to make it harmless.
"""

from collections.abc import Mapping
from math import isfinite
from typing import Any

import numpy as np
import xarray as xr

from robustness.errors import Refusal
from robustness.statistics.uncertainty import standard_error

FEWEST_DOCUMENTS = 30
"""Below, a standard error that is clustered by document is not to be trusted."""

ROUNDING = 1e-6
"""Nats below which a mean KL is rounding, and its relative error means nothing."""


def check_bound(bound: float) -> float:
    """Return the bound of a relative standard error if it is one."""
    if not (isfinite(bound) and bound > 0):
        raise Refusal(
            f"--until-se {bound:g}: the relative standard error to reach is above 0, as in 0.02"
        )
    return bound


def relative_error(dataset: xr.Dataset) -> float:
    """Return the largest relative standard error of a mean KL, clustered by document.

    Parameters
    ----------
    dataset : Dataset
        `kl` (…, sequence) of a sweep or of schedules, of the sequences that are measured.

    Returns
    -------
    float
        The largest of the standard error over the mean, over all that has a schedule; NaN where
        one is not known, because there is one document, or a prediction was not finite.
    """
    kl = dataset["kl"]
    mean = kl.mean("sequence", dtype="float64", skipna=False)
    relative = standard_error(kl) / mean.clip(ROUNDING)
    fits = dataset["schedule"] != "" if "schedule" in dataset.coords else True
    return float(relative.where(fits, 0.0).max(skipna=False))


def is_enough(dataset: xr.Dataset, bound: float) -> bool:
    """Whether the sequences that are measured are of enough documents, and tell enough."""
    documents = np.unique(dataset["document"]).size
    return documents >= FEWEST_DOCUMENTS and relative_error(dataset) < bound


def record(dataset: xr.Dataset, tokens: int) -> dict[str, Any]:
    """Return what a file says of a run that was to stop: what was run, and what was reached.

    Parameters
    ----------
    dataset : Dataset
        Of the sequences that are measured, with the settings of the whole run.
    tokens : int
        How many there are in these sequences.
    """
    return {
        "until_se_reached": relative_error(dataset),
        "documents": int(np.unique(dataset["document"]).size),
        "sequences": dataset.sizes["sequence"],
        "tokens": tokens,
        "corpus_sequences": dataset.attrs["sequences"],
        "corpus_tokens": dataset.attrs["tokens"],
    }


def asked(attrs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that a run was asked for, from those of what it left."""
    if "until_se_reached" not in attrs:
        return dict(attrs)
    settings = {
        name: value
        for name, value in attrs.items()
        if name not in ("until_se_reached", "documents", "corpus_sequences", "corpus_tokens")
    }
    whole = {name: attrs[f"corpus_{name}"] for name in ("sequences", "tokens")}
    return settings | whole


def goes_further(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Whether a run that stopped, or was to, is the beginning of the one that is wanted."""
    if "until_se" not in found:
        return False
    return "until_se" not in wanted or float(wanted["until_se"]) < float(found["until_se"])
