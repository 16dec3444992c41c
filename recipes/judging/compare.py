"""Models side by side: what characterises each, and the claims that are about several."""

from collections.abc import Sequence
from functools import partial
from math import nan
from typing import Any

import numpy as np
import xarray as xr

from recipes.evidence.curves import place_of_largest
from recipes.evidence.files import Absent, Files
from recipes.experiments.drop_and_swap import against_interior, interior_agreement
from recipes.experiments.local_attention import previous_five
from recipes.experiments.mlp_norm import mlp_norm
from recipes.experiments.prediction_neurons import share
from recipes.experiments.word_in_context import accuracy, at_peak
from recipes.judging.verdicts import Number, Verdict, judge, measure
from recipes.recipe import Check
from robustness.errors import Refusal
from robustness.files.provenance import file_attributes

KIND = "compare"
"""What the file says that it holds."""

QUANTITIES = (
    Check("interior agreement, drop", partial(interior_agreement, "drop")),
    Check("interior agreement, swap", partial(interior_agreement, "swap")),
    Check("KL at layer 0 over interior, drop", partial(against_interior, "drop", 0)),
    Check("KL at layer 0 over interior, swap", partial(against_interior, "swap", 0)),
    Check("local attention peaks at depth", lambda files: place_of_largest(previous_five(files))),
    Check("MLP norm peaks at depth", lambda files: place_of_largest(mlp_norm(files))),
    Check("most prediction neurons in a layer", lambda files: share(files, "prediction").max()),
    Check("most suppression neurons in a layer", lambda files: share(files, "suppression").max()),
    Check("best word-in-context accuracy", at_peak),
    Check(
        "word-in-context accuracy peaks at depth", lambda files: place_of_largest(accuracy(files))
    ),
)
"""What is set side by side; depths are relative, 0 to 1."""


SAID = ("corpus", "context", "tokens", "dtype")
"""What is said of each model's run besides: numbers of other texts are not alike in all."""


def compare(models: Sequence[Files], command: str = "") -> xr.Dataset:
    """Set models side by side.

    Parameters
    ----------
    models : sequence of Files
        Two or more.
    command : str
        The command line, for the record.

    Returns
    -------
    Dataset
        `value`, `low` and `high` (quantity, model), with 95 % intervals, NaN where a model's files
        do not say; `verdict` (claim, model), of the claims about one model; `verdict_across`
        (claim_across), of those about several; `numbers` (claim, model), what they stand on, as
        text; `layers` and those of `SAID` (model).

    Raises
    ------
    Refusal
        If there is one model.
    """
    if len(models) < 2:
        raise Refusal("one model cannot be compared: give the directories of two or more")
    numbers = [[_or_nothing(check, files) for files in models] for check in QUANTITIES]
    alone = [_about_one(files) for files in models]
    across = judge(models)

    def spread(end: str, name: str) -> Any:
        values = [[getattr(number, end) for number in row] for row in numbers]
        return ("quantity", "model"), np.array(values), {"units": "1", "long_name": name}

    settings = {
        "measurement": KIND,
        "model": ", ".join(files.model for files in models),
        "architecture": ", ".join(dict.fromkeys(files.architecture for files in models)),
        "sources": ", ".join(files.stamp() for files in models),
    }
    return xr.Dataset(
        {
            "value": spread("value", "what was found"),
            "low": spread("low", "lower end of its 95 % interval"),
            "high": spread("high", "upper end of its 95 % interval"),
            "verdict": (
                ("claim", "model"),
                np.array([[each.verdict for each in row] for row in alone], dtype=object).T,
            ),
            "numbers": (
                ("claim", "model"),
                np.array([[_text(each) for each in row] for row in alone], dtype=object).T,
            ),
            "verdict_across": (
                "claim_across",
                np.array([each.verdict for each in across], dtype=object),
            ),
        },
        coords={
            "quantity": [check.what for check in QUANTITIES],
            "model": [files.label for files in models],
            "layers": ("model", [files.layers for files in models]),
            **{name: ("model", [_said(files, name) for files in models]) for name in SAID},
            "claim": [each.claim.name for each in alone[0]],
            "claim_text": ("claim", [each.claim.text for each in alone[0]]),
            "claim_across": [each.claim.name for each in across],
        },
        attrs=file_attributes(settings, command),
    )


def _about_one(files: Files) -> list[Verdict]:
    return [each for each in judge([files]) if each.claim.models == 1 and not each.claim.unjudged]


def _said(files: Files, name: str) -> str:
    """Return what the first file that says so says of its run."""
    found = (files.get(source) for source in files.sources)
    said = (data.attrs[name] for data in found if data is not None and name in data.attrs)
    return str(next(said, "-"))


def _text(verdict: Verdict) -> str:
    return "; ".join(number.text for number in verdict.numbers)


def _or_nothing(check: Check, files: Files) -> Number:
    try:
        return measure(check, files)
    except Absent:
        return Number(check, nan, nan, nan)
