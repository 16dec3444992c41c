"""Verdicts on claims: every number with its interval, and the thresholds that decide."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isnan
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from recipes.evidence.files import Absent, Files
from recipes.experiments.catalogue import RECIPES
from recipes.recipe import Check, Claim, Recipe
from robustness.files.provenance import file_attributes
from robustness.statistics.uncertainty import interval

CLAIMS = "claims"
"""Attribute `measurement` of a file of verdicts."""

HOLDS, FAILS, OPEN = "holds", "does not hold", "cannot be judged"
"""Verdicts that a claim or a number can have."""


@dataclass(frozen=True)
class Number:
    """The number of a check, with its interval."""

    check: Check
    value: float
    low: float
    high: float
    """Ends of the 95 % interval; equal to the value if it has no uncertainty."""

    @property
    def verdict(self) -> str:
        """Verdict by the interval: all of it meets the thresholds, none of it does, or open."""
        least = -np.inf if self.check.least is None else self.check.least
        most = np.inf if self.check.most is None else self.check.most
        if isnan(self.value) or isnan(self.low) or isnan(self.high):
            return OPEN
        if least < self.low and self.high < most:
            return HOLDS
        return FAILS if self.high <= least or self.low >= most else OPEN

    @property
    def text(self) -> str:
        """Text that shows the number, with its interval if it has one."""
        unit = "" if self.check.unit == "1" else f" {self.check.unit}"
        if isnan(self.value):
            return "-"
        if self.low == self.high == self.value:
            return f"{self.value:.4g}{unit}"
        return f"{self.value:.4g} [{self.low:.4g}, {self.high:.4g}]{unit}"

    @property
    def decides(self) -> bool:
        """Whether the number has a threshold; others are only reported."""
        return self.check.least is not None or self.check.most is not None


@dataclass(frozen=True)
class Verdict:
    """Verdict on a claim, with the numbers behind it."""

    recipe: Recipe
    claim: Claim
    verdict: str
    """`HOLDS`, `FAILS` or `OPEN`."""
    numbers: tuple[Number, ...] = ()
    reason: str = ""
    """Reason why the claim cannot be judged; empty otherwise."""


def judge(models: Sequence[Files]) -> list[Verdict]:
    """Judge every claim of every recipe on one model's files, or those of several models.

    On one model, claims across models cannot be judged; on several, only they are.
    """
    verdicts = []
    for recipe in RECIPES:
        for claim in recipe.claims:
            if len(models) == 1 or claim.models > 1:
                verdicts.append(_judge(recipe, claim, models))
    return verdicts


def _judge(recipe: Recipe, claim: Claim, models: Sequence[Files]) -> Verdict:
    try:
        numbers = _numbers(recipe, claim, models)
    except Absent as error:
        return Verdict(recipe, claim, OPEN, reason=str(error))
    deciding = [number for number in numbers if number.decides]
    verdicts = {number.verdict for number in deciding}
    # One number that fails refutes a claim, whatever the uncertainty of the others.
    if FAILS in verdicts:
        return Verdict(recipe, claim, FAILS, numbers)
    if OPEN not in verdicts:
        return Verdict(recipe, claim, HOLDS, numbers)
    reason = f"the interval includes the threshold; {_more_data(recipe)}"
    if any(isnan(number.value) for number in deciding):
        reason = "a number it depends on is not defined for this model"
    return Verdict(recipe, claim, OPEN, numbers, reason)


def _numbers(recipe: Recipe, claim: Claim, models: Sequence[Files]) -> tuple[Number, ...]:
    """Return the numbers that a claim depends on.

    Raises
    ------
    Absent
        If the models' files do not have them.
    """
    if claim.unjudged:
        raise Absent(claim.unjudged)
    if claim.models == 1:
        reason = claim.only(models[0])
        if reason:
            raise Absent(reason)
        return tuple(measure(check, models[0]) for check in claim.checks)
    complete = [files for files in models if files.has(*recipe.sources)]
    if len(complete) < claim.models:
        problem = f"{len(complete)} of these have the files"
        if len(models) == 1:
            problem = "this is one: see `stages compare`"
        raise Absent(f"needs {claim.models} models or more; {problem}")
    return tuple(measure(check, complete) for check in claim.checks)


def _more_data(recipe: Recipe) -> str:
    """Return the advice that makes the intervals of a recipe's numbers narrower."""
    units = {source.unit for source in recipe.sources}
    if units & {"documents", "batches"}:
        return "use more --tokens"
    return "use more items" if units & {"items", "words"} else "more data does not change it"


def measure(check: Check, of: Files | Sequence[Files]) -> Number:
    """Compute the number of a check, with its interval, from files.

    Raises
    ------
    Absent
        If a file that the number needs is missing or incomplete.
    """
    try:
        value = check.value(of)
    except KeyError as error:  # a sweep without some readout, a probe without some group
        reason = str(error.args[0]).partition(". ")[0]
        raise Absent(f"a file it needs is incomplete: {reason}") from error
    if isinstance(value, xr.DataArray) and "draw" in value.dims:
        return Number(check, float(value.isel(draw=0)), *map(float, interval(value)))
    if isinstance(value, tuple):
        return Number(check, *map(float, value))
    return Number(check, float(value), float(value), float(value))


def to_dataset(
    verdicts: Sequence[Verdict], models: Sequence[Files], command: str = ""
) -> xr.Dataset:
    """Return a dataset of verdicts by claim, and of the numbers behind them by check.

    Parameters
    ----------
    verdicts : sequence of Verdict
        Verdicts, as from `judge`.
    models : sequence of Files
        Files that they were judged on.
    command : str
        Command line, for the record.
    """
    settings = {
        "measurement": CLAIMS,
        "model": ", ".join(files.model for files in models),
        "architecture": ", ".join(dict.fromkeys(files.architecture for files in models)),
        "sources": ", ".join(files.stamp() for files in models),
        "left_out": json.dumps(models[0].left_out if len(models) == 1 else {}),
    }
    claims, checks = _labelled_claims(verdicts), _labelled_checks(verdicts)
    return xr.merge([claims, checks]).assign_attrs(file_attributes(settings, command))


def _labelled_claims(verdicts: Sequence[Verdict]) -> xr.Dataset:
    def texts(read: Callable[[Verdict], str]) -> tuple[str, NDArray[np.object_]]:
        return "claim", np.array(list(map(read, verdicts)), dtype=object)

    return xr.Dataset(
        {
            "verdict": texts(lambda each: each.verdict),
            "reason": texts(lambda each: each.reason),
        },
        coords={
            "claim": texts(lambda each: each.claim.name),
            "experiment": texts(lambda each: each.recipe.name),
            "text": texts(lambda each: each.claim.text),
            "where": texts(lambda each: each.claim.where),
        },
    )


def _labelled_checks(verdicts: Sequence[Verdict]) -> xr.Dataset:
    numbers: list[Number] = []
    claims: list[str] = []
    for verdict in verdicts:
        numbers += verdict.numbers
        claims += [verdict.claim.name] * len(verdict.numbers)

    def values(read: Callable[[Number], float | None], name: str) -> Any:
        # None, where there is no threshold, becomes NaN.
        array = np.array(list(map(read, numbers)), np.float64)
        return "check", array, {"long_name": name, "units": "1"}

    def texts(read: Callable[[Number], str]) -> tuple[str, NDArray[np.object_]]:
        return "check", np.array(list(map(read, numbers)), dtype=object)

    return xr.Dataset(
        {
            "value": values(lambda number: number.value, "what was found"),
            "low": values(lambda number: number.low, "lower end of its 95 % interval"),
            "high": values(lambda number: number.high, "upper end of its 95 % interval"),
            "least": values(lambda number: number.check.least, "lower threshold"),
            "most": values(lambda number: number.check.most, "upper threshold"),
            "check_verdict": texts(lambda number: number.verdict if number.decides else ""),
        },
        coords={
            "check_claim": ("check", np.array(claims, np.object_)),
            "check_text": texts(lambda number: number.check.what),
            "check_unit": texts(lambda number: number.check.unit),
        },
    )
