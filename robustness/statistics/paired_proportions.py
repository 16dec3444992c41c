"""Differences of two proportions over the same items, with Tango's score interval."""

import math

import numpy as np
import scipy  # its parts are loaded when they are used
import xarray as xr

from robustness.statistics.uncertainty import LEVEL

OUTCOMES = ("before", "after", "items", "lost", "gained")
"""Variables of `paired_proportions` besides the difference and its interval."""


def score_interval(lost: int, gained: int, items: int, level: float = LEVEL) -> tuple[float, float]:
    """Return the score interval of a difference of paired proportions.

    The interval holds every difference D that the score test of Tango (1998, Equivalence test and
    confidence interval for the difference in proportions for the paired-sample design, Statistics
    in Medicine 17, 891-908) does not reject. With g gained and l lost of n items,

        |g - l - n D| <= z · sqrt(n (2 p + D (1 - D)))

    where p, the probability of a loss given D, is the larger root of
    2n p² + ((2n - g + l) D - g - l) p - l D (1 - D) = 0.

    Parameters
    ----------
    lost, gained : int
        Number of items that are right before alone, and after alone.
    items : int
        Number of all items.
    level : float
        Confidence level.

    Returns
    -------
    tuple of float
        Ends of the interval of the proportion after minus that before; NaN without items.
    """
    if not items:
        return math.nan, math.nan
    quantile = float(scipy.stats.norm.ppf((1 + level) / 2))

    def excess(difference: float, sign: int) -> float:
        """Return the score statistic at a difference, less its quantile."""
        probability = _loss_given(difference, lost, gained, items)
        variance = items * (2 * probability + difference * (1 - difference))
        distance = sign * (gained - lost - items * difference)
        return distance - quantile * math.sqrt(max(variance, 0.0))

    # At the estimate itself the variance may be 0, which would be taken for an end.
    estimate, beside = (gained - lost) / items, 1e-9
    low, high = -1.0, 1.0
    if estimate > -1:
        low = float(scipy.optimize.brentq(excess, -1, estimate - beside, args=(1,)))
    if estimate < 1:
        high = float(scipy.optimize.brentq(excess, estimate + beside, 1, args=(-1,)))
    return low, high


def _loss_given(difference: float, lost: int, gained: int, items: int) -> float:
    """Return the most likely probability of a loss, given the difference of the proportions."""
    linear = (2 * items - gained + lost) * difference - lost - gained
    constant = -lost * difference * (1 - difference)
    root = math.sqrt(max(linear**2 - 8 * items * constant, 0.0))
    return (root - linear) / (4 * items)


def paired_proportions(before: xr.DataArray, after: xr.DataArray) -> xr.Dataset:
    """Compare which items are right before and after a change.

    Parameters
    ----------
    before, after : DataArray
        Whether items are right, 0 or 1, along `item`; NaN for an item that does not count.

    Returns
    -------
    Dataset
        `before` and `after`, the shares of right answers; `difference` of them; `low` and `high`,
        the ends of its 95 % interval (`score_interval`); `items`, `lost` and `gained`, the numbers
        of items, of those that are right before alone, and of those that are right after alone.
    """
    there = before.notnull() & after.notnull()
    items = there.sum("item")
    rights = [(side > 0.5) & there for side in (before, after)]
    lost, gained = (rights[0] & ~rights[1]).sum("item"), (rights[1] & ~rights[0]).sum("item")
    low, high = xr.apply_ufunc(
        np.vectorize(score_interval, otypes=[float, float]), lost, gained, items,
        output_core_dims=[[], []],
    )  # fmt: skip
    shares = [right.sum("item") / items.where(items > 0) for right in rights]
    found = (*shares, items, lost, gained, shares[1] - shares[0], low, high)
    return xr.Dataset(dict(zip((*OUTCOMES, "difference", "low", "high"), found, strict=True)))


def task_differences(dataset: xr.Dataset) -> xr.Dataset:
    """Return by how much tasks are answered better or worse than by the clean model.

    Parameters
    ----------
    dataset : Dataset
        Result of `evaluate_tasks` under interventions or schedules.

    Returns
    -------
    Dataset
        (task, metric, and the dimensions of schedules): `before` and `after`, shares of items that
        are answered right; `difference` of the two, with `low` and `high`, the ends of its 95 %
        interval by Tango's score method for paired proportions; `items`, and of these `lost` and
        `gained`, right before alone and after alone. NaN and 0 items for a metric that does not say
        whether an item is right.
    """
    found = []
    for task in dataset["task"].values:
        chosen = dataset.isel(item=(dataset["item_task"] == task).values)
        compared = paired_proportions(chosen["clean_correct"], chosen["correct"])
        found.append(compared.expand_dims(task=[task]))
    return xr.concat(found, "task")
