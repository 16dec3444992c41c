"""Models side by side: what characterises each, and the claims that are about several."""

from collections.abc import Iterable, Sequence
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
"""Attribute `measurement` of a comparison."""

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
"""Numbers that are set side by side; depths are relative, 0 to 1."""


SAID = ("corpus", "context", "tokens", "dtype")
"""Attributes that say how each model was run: numbers from different texts differ."""


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
    settings = {
        "measurement": KIND,
        "model": ", ".join(files.model for files in models),
        "architecture": ", ".join(dict.fromkeys(files.architecture for files in models)),
        "sources": ", ".join(files.stamp() for files in models),
    }
    labels: dict[str, Any] = {
        "model": [files.label for files in models],
        "layers": ("model", [files.layers for files in models]),
    }
    for name in SAID:
        labels[name] = ("model", [_said(files, name) for files in models])
    return (
        _quantities(models)
        .merge(_verdicts(models))
        .assign_coords(labels)
        .assign_attrs(file_attributes(settings, command))
    )


def _quantities(models: Sequence[Files]) -> xr.Dataset:
    """Return what characterises each model, with 95 % intervals, (quantity, model)."""
    # Value, low and high of every quantity.
    shape = (3, len(QUANTITIES), len(models))
    values = np.full(shape, nan)
    for row, check in enumerate(QUANTITIES):
        for column, files in enumerate(models):
            number = _or_nothing(check, files)
            values[:, row, column] = number.value, number.low, number.high
    names = {
        "value": "what was found",
        "low": "lower end of its 95 % interval",
        "high": "upper end of its 95 % interval",
    }
    variables = {}
    for (name, long_name), each in zip(names.items(), values, strict=True):
        attrs = {"units": "1", "long_name": long_name}
        variables[name] = (("quantity", "model"), each, attrs)
    return xr.Dataset(variables, coords={"quantity": [check.what for check in QUANTITIES]})


def _verdicts(models: Sequence[Files]) -> xr.Dataset:
    """Return the verdicts on claims about one model (claim, model), and about several."""
    alone = [_about_one(files) for files in models]
    across = judge(models)
    shape = (len(alone[0]), len(models))
    verdicts, numbers = np.empty(shape, object), np.empty(shape, object)
    for column, of_model in enumerate(alone):
        verdicts[:, column] = [each.verdict for each in of_model]
        numbers[:, column] = [_text(each) for each in of_model]
    return xr.Dataset(
        {
            "verdict": (("claim", "model"), verdicts),
            "numbers": (("claim", "model"), numbers),
            "verdict_across": ("claim_across", _objects(each.verdict for each in across)),
        },
        coords={
            "claim": [each.claim.name for each in alone[0]],
            "claim_text": ("claim", [each.claim.text for each in alone[0]]),
            "claim_across": [each.claim.name for each in across],
        },
    )


def _objects(texts: Iterable[str]) -> np.ndarray:
    return np.array(list(texts), dtype=object)


def _about_one(files: Files) -> list[Verdict]:
    """Return the verdicts on claims about one model that some experiment decides."""
    verdicts = judge([files])
    return [each for each in verdicts if each.claim.models == 1 and not each.claim.unjudged]


def _said(files: Files, name: str) -> str:
    """Return what the first file that says so says of its run."""
    for source in files.sources:
        dataset = files.get(source)
        if dataset is not None and name in dataset.attrs:
            return str(dataset.attrs[name])
    return "-"


def _text(verdict: Verdict) -> str:
    return "; ".join(number.text for number in verdict.numbers)


def _or_nothing(check: Check, files: Files) -> Number:
    try:
        return measure(check, files)
    except Absent:
        return Number(check, nan, nan, nan)
