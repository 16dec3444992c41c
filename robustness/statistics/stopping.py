"""Sequential stopping: a run ends once its means are known precisely enough.

The rule looks at the data that it stops, so the sample has no fixed size: a run stops a little more
readily where the spread happens to be small. `benchmarks/until_se.py` measures what that does to
intervals; the smallest number of documents is chosen to make it harmless.
"""

from collections.abc import Mapping
from math import isfinite
from typing import Any

import numpy as np
import xarray as xr

from robustness.errors import Refusal
from robustness.statistics.uncertainty import standard_error

FEWEST_DOCUMENTS = 30
"""Minimum number of documents before a standard error clustered by document stops a run."""

ROUNDING = 1e-6
"""Mean KL in nats below which a mean is a rounding error, and has no relative error."""


def check_bound(bound: float) -> float:
    """Return a bound for the relative standard error, if it is above 0 and finite.

    Raises
    ------
    Refusal
        If the bound is not above 0 and finite.
    """
    if not (isfinite(bound) and bound > 0):
        raise Refusal(
            f"`until_se` {bound:g}: the relative standard error to reach must be above 0, as in "
            "0.02"
        )
    return bound


def relative_error(dataset: xr.Dataset) -> float:
    """Return the largest relative standard error of a mean KL, clustered by document.

    Parameters
    ----------
    dataset : Dataset
        Dataset of a sweep or of schedules, with `kl` (…, sequence) of the measured sequences.

    Returns
    -------
    float
        Largest ratio of standard error to mean over all schedules. NaN if the error of one of them
        is not defined, because there is only one document, or a prediction was not finite.
    """
    kl = dataset["kl"]
    # Values are float32, in which a sum over many sequences loses digits.
    mean = kl.mean("sequence", dtype="float64", skipna=False)
    relative = standard_error(kl) / mean.clip(ROUNDING)
    # At some layers there is no schedule, as with a swap at the last.
    exists = dataset["schedule"] != "" if "schedule" in dataset.coords else True
    # A schedule without an error must keep the run going, not be left out of the maximum.
    return float(relative.where(exists, 0.0).max(skipna=False))


def is_enough(dataset: xr.Dataset, bound: float) -> bool:
    """Whether enough documents are measured, and the relative standard error is below a bound."""
    documents = np.unique(dataset["document"]).size
    return documents >= FEWEST_DOCUMENTS and relative_error(dataset) < bound


def stopping_attributes(dataset: xr.Dataset, tokens: int) -> dict[str, Any]:
    """Return the attributes of a run that could stop early: its extent and the error it reached.

    Parameters
    ----------
    dataset : Dataset
        Dataset of the measured sequences, with the settings of the whole run.
    tokens : int
        Number of tokens in the measured sequences.
    """
    return {
        "until_se_reached": relative_error(dataset),
        "documents": int(np.unique(dataset["document"]).size),
        "sequences": dataset.sizes["sequence"],
        "tokens": tokens,
        "corpus_sequences": dataset.attrs["sequences"],
        "corpus_tokens": dataset.attrs["tokens"],
    }


def settings_before_stopping(attrs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that a run was started with, from the attributes of its file."""
    settings = dict(attrs)
    if "until_se_reached" not in settings:
        return settings
    # The extent of the whole corpus takes the place of what was read of it.
    for name in ("sequences", "tokens"):
        settings[name] = settings.pop(f"corpus_{name}")
    del settings["until_se_reached"]
    settings.pop("documents", None)
    return settings


def goes_further(earlier: Mapping[str, Any], requested: Mapping[str, Any]) -> bool:
    """Whether an earlier run could stop early, and the requested one stops later or not at all.

    Parameters
    ----------
    earlier, requested : mapping
        Attributes of the two runs.
    """
    if "until_se" not in earlier:
        return False
    return "until_se" not in requested or float(requested["until_se"]) < float(earlier["until_se"])
