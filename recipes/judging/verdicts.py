"""Claims to verdicts: every number with its interval, beside the thresholds that decide."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from math import isnan, nan
from typing import Any

import numpy as np
import xarray as xr

from recipes.evidence.files import Absent, Files
from recipes.experiments.catalogue import RECIPES
from recipes.recipe import Check, Claim, Recipe
from robustness.files.provenance import file_attributes
from robustness.statistics.uncertainty import interval

CLAIMS = "claims"
"""Attribute `measurement` of a file of verdicts."""

HOLDS, FAILS, OPEN = "holds", "does not hold", "cannot be judged"


@dataclass(frozen=True)
class Number:
    """The number of a check, with its interval."""

    check: Check
    value: float
    low: float
    high: float
    """Ends of the 95 % interval; the value itself where it has no uncertainty."""

    @property
    def verdict(self) -> str:
        """Whether the whole interval is on the right side, on the wrong one, or neither."""
        least = -np.inf if self.check.least is None else self.check.least
        most = np.inf if self.check.most is None else self.check.most
        if isnan(self.value) or isnan(self.low) or isnan(self.high):
            return OPEN
        if least < self.low and self.high < most:
            return HOLDS
        return FAILS if self.high <= least or self.low >= most else OPEN

    @property
    def text(self) -> str:
        """The number as it is shown, with its interval if it has one."""
        unit = "" if self.check.unit == "1" else f" {self.check.unit}"
        if isnan(self.value):
            return "-"
        if self.low == self.high == self.value:
            return f"{self.value:.4g}{unit}"
        return f"{self.value:.4g} [{self.low:.4g}, {self.high:.4g}]{unit}"

    @property
    def decides(self) -> bool:
        """Whether there is a threshold."""
        return self.check.least is not None or self.check.most is not None


@dataclass(frozen=True)
class Verdict:
    """What became of a claim."""

    recipe: Recipe
    claim: Claim
    verdict: str
    """`HOLDS`, `FAILS` or `OPEN`."""
    numbers: tuple[Number, ...] = ()
    reason: str = ""
    """Reason why it cannot be judged."""


def judge(models: Sequence[Files]) -> list[Verdict]:
    """Judge every claim of every recipe on one model's files, or those of several models.

    On one model, claims across models cannot be judged; on several, only they are.
    """
    return [
        _judge(recipe, claim, models)
        for recipe in RECIPES
        for claim in recipe.claims
        if len(models) == 1 or claim.models > 1
    ]


def _judge(recipe: Recipe, claim: Claim, models: Sequence[Files]) -> Verdict:
    def undecided(reason: str, numbers: tuple[Number, ...] = ()) -> Verdict:
        return Verdict(recipe, claim, OPEN, numbers, reason)

    if claim.unjudged:
        return undecided(claim.unjudged)
    alone = len(models) == 1
    if claim.models > 1:
        models = [files for files in models if files.has(*recipe.sources)]
    if len(models) < claim.models:
        there = "this is one" if alone else f"{len(models)} of these have the files"
        where = ": see `stages compare`" if alone else ""
        return undecided(f"needs {claim.models} models or more; {there}{where}")
    try:
        if claim.models == 1 and claim.only(models[0]):
            return undecided(claim.only(models[0]))
        of = models[0] if claim.models == 1 else models
        numbers = tuple(measure(check, of) for check in claim.checks)
    except Absent as error:
        return undecided(str(error))
    decided = {number.verdict for number in numbers if number.decides}
    if FAILS in decided:
        return Verdict(recipe, claim, FAILS, numbers)
    if OPEN in decided:
        if any(isnan(number.value) for number in numbers if number.decides):
            return undecided("a number it depends on is not defined for this model", numbers)
        return undecided(f"the interval includes the threshold; {_more_data(recipe)}", numbers)
    return Verdict(recipe, claim, HOLDS, numbers)


def _more_data(recipe: Recipe) -> str:
    """Say what makes the intervals of a recipe's numbers narrower."""
    units = {source.unit for source in recipe.sources}
    if units & {"documents", "batches"}:
        return "use more --tokens"
    return "use more items" if units & {"items", "words"} else "more data does not change it"


def measure(check: Check, of: Files | Sequence[Files]) -> Number:
    """Find the number of a check, with its interval.

    Raises
    ------
    Absent
        If the files do not say.
    """
    try:
        found = check.value(of)
    except KeyError as error:  # a sweep without some readout, a probe without some group
        reason = str(error.args[0]).partition(". ")[0]
        raise Absent(f"a file it needs is incomplete: {reason}") from error
    if isinstance(found, xr.DataArray) and "draw" in found.dims:
        return Number(check, float(found.isel(draw=0)), *map(float, interval(found)))
    if isinstance(found, tuple):
        return Number(check, *map(float, found))
    return Number(check, float(found), float(found), float(found))


def to_dataset(
    verdicts: Sequence[Verdict], models: Sequence[Files], command: str = ""
) -> xr.Dataset:
    """Label verdicts: `verdict` (claim), and the numbers behind them (check)."""
    rows = [(each.claim.name, number) for each in verdicts for number in each.numbers]

    def texts(values: Sequence[str]) -> Any:
        return np.array(values, dtype=object)

    def numbers(values: Sequence[float | None], name: str) -> Any:
        found = np.array([nan if value is None else value for value in values], np.float64)
        return ("check", found, {"long_name": name, "units": "1"})

    settings = {
        "measurement": CLAIMS,
        "model": ", ".join(files.model for files in models),
        "architecture": ", ".join(dict.fromkeys(files.architecture for files in models)),
        "sources": ", ".join(files.stamp() for files in models),
        "left_out": json.dumps(models[0].left_out if len(models) == 1 else {}),
    }
    return xr.Dataset(
        {
            "verdict": ("claim", texts([each.verdict for each in verdicts])),
            "reason": ("claim", texts([each.reason for each in verdicts])),
            "value": numbers([number.value for _, number in rows], "what was found"),
            "low": numbers([number.low for _, number in rows], "lower end of its 95 % interval"),
            "high": numbers([number.high for _, number in rows], "upper end of its 95 % interval"),
            "least": numbers([number.check.least for _, number in rows], "lower threshold"),
            "most": numbers([number.check.most for _, number in rows], "upper threshold"),
            "check_verdict": (
                "check",
                texts([number.verdict if number.decides else "" for _, number in rows]),
            ),
        },
        coords={
            "claim": texts([each.claim.name for each in verdicts]),
            "experiment": ("claim", texts([each.recipe.name for each in verdicts])),
            "text": ("claim", texts([each.claim.text for each in verdicts])),
            "where": ("claim", texts([each.claim.where for each in verdicts])),
            "check_claim": ("check", texts([name for name, _ in rows])),
            "check_text": ("check", texts([number.check.what for _, number in rows])),
            "check_unit": ("check", texts([number.check.unit for _, number in rows])),
        },
        attrs=file_attributes(settings, command),
    )
