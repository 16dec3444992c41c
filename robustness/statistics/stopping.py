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
"""Fewest documents of which a standard error that is clustered by document can be trusted."""

ROUNDING = 1e-6
"""Mean KL in nats below which it is rounding, and its relative error means nothing."""


def check_bound(bound: float) -> float:
    """Return the bound of a relative standard error, or refuse it.

    Raises
    ------
    Refusal
        If the bound is not above 0 and finite.
    """
    if not (isfinite(bound) and bound > 0):
        raise Refusal(
            f"`until_se` {bound:g}: the relative standard error to reach is above 0, as in 0.02"
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
        Largest ratio of standard error to mean over all schedules; NaN where one is not known,
        because there is only one document, or a prediction was not finite.
    """
    kl = dataset["kl"]
    mean = kl.mean("sequence", dtype="float64", skipna=False)
    relative = standard_error(kl) / mean.clip(ROUNDING)
    # At some layers there is no schedule, as with a swap at the last.
    exists = dataset["schedule"] != "" if "schedule" in dataset.coords else True
    return float(relative.where(exists, 0.0).max(skipna=False))


def is_enough(dataset: xr.Dataset, bound: float) -> bool:
    """Whether the measured sequences are of enough documents, and their errors below a bound."""
    documents = np.unique(dataset["document"]).size
    return documents >= FEWEST_DOCUMENTS and relative_error(dataset) < bound


def stopping_attributes(dataset: xr.Dataset, tokens: int) -> dict[str, Any]:
    """Return the attributes of a run that could stop early: its extent, and the error reached.

    Parameters
    ----------
    dataset : Dataset
        Dataset of the measured sequences, with the settings of the whole run.
    tokens : int
        Number of tokens in these sequences.
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
    """Return the settings that a run was started with, from the attributes that it left."""
    settings = dict(attrs)
    if "until_se_reached" not in settings:
        return settings
    # The extent of the whole corpus takes the place of what was read of it.
    for name in ("sequences", "tokens"):
        settings[name] = settings.pop(f"corpus_{name}")
    del settings["until_se_reached"]
    settings.pop("documents", None)
    return settings


def goes_further(earlier: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Whether a run could stop early, and one that is wanted stops later or not at all.

    Parameters
    ----------
    earlier, wanted : mapping
        Attributes of the two runs.
    """
    if "until_se" not in earlier:
        return False
    return "until_se" not in wanted or float(wanted["until_se"]) < float(earlier["until_se"])
