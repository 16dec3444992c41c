"""Comparison of models: quantities that characterise each, and claims about several."""

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
"""Quantities that are compared; depths are relative, 0 to 1."""

RUN_ATTRIBUTES = ("corpus", "context", "tokens", "dtype")
"""Attributes that say how each model was run; numbers from different texts differ."""


def compare(models: Sequence[Files], command: str = "") -> xr.Dataset:
    """Compare the quantities and verdicts of models.

    Parameters
    ----------
    models : sequence of Files
        Files of two or more models.
    command : str
        Command line, for the record.

    Returns
    -------
    Dataset
        `value`, `low` and `high` (quantity, model): quantities with 95 % intervals, NaN where a
        model's files lack what they need. `verdict` and `numbers` (claim, model): verdicts on
        claims about one model, and their numbers as text. `verdict_across` (claim_across): verdicts
        on claims about several models. `layers` and the names in `RUN_ATTRIBUTES` (model).

    Raises
    ------
    Refusal
        If there are fewer than two models.
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
    for name in RUN_ATTRIBUTES:
        labels[name] = ("model", [_run_attribute(files, name) for files in models])
    return (
        _quantities(models)
        .merge(_verdicts(models))
        .assign_coords(labels)
        .assign_attrs(file_attributes(settings, command))
    )


def _quantities(models: Sequence[Files]) -> xr.Dataset:
    """Return the quantities of every model, with 95 % intervals, (quantity, model)."""
    long_names = {
        "value": "what was found",
        "low": "lower end of its 95 % interval",
        "high": "upper end of its 95 % interval",
    }
    dims, shape = ("quantity", "model"), (len(QUANTITIES), len(models))
    variables = {}
    for name, long_name in long_names.items():
        variables[name] = (dims, np.full(shape, nan), {"units": "1", "long_name": long_name})
    dataset = xr.Dataset(variables, coords={"quantity": [check.what for check in QUANTITIES]})
    for row, check in enumerate(QUANTITIES):
        for column, files in enumerate(models):
            number = _or_missing(check, files)
            for name in long_names:
                dataset[name][row, column] = getattr(number, name)
    return dataset


def _verdicts(models: Sequence[Files]) -> xr.Dataset:
    """Return the verdicts on claims about one model (claim, model), and about several."""
    alone = list(map(_about_one, models))
    claims = [verdict.claim for verdict in alone[0]]
    across = judge(models)
    shape = (len(claims), len(models))
    # Objects, since NumPy would cut its own texts to the length of the array's type.
    verdicts, numbers = np.empty(shape, object), np.empty(shape, object)
    for column, verdicts_of_model in enumerate(alone):
        for row, verdict in enumerate(verdicts_of_model):
            verdicts[row, column] = verdict.verdict
            numbers[row, column] = _numbers_as_text(verdict)
    return xr.Dataset(
        {
            "verdict": (("claim", "model"), verdicts),
            "numbers": (("claim", "model"), numbers),
            "verdict_across": ("claim_across", _objects(each.verdict for each in across)),
        },
        coords={
            "claim": [claim.name for claim in claims],
            "claim_text": ("claim", [claim.text for claim in claims]),
            "claim_across": [each.claim.name for each in across],
        },
    )


def _objects(texts: Iterable[str]) -> np.ndarray:
    return np.array(list(texts), dtype=object)


def _about_one(files: Files) -> list[Verdict]:
    """Return the verdicts on claims about one model that some experiment decides."""
    verdicts = judge([files])
    return [each for each in verdicts if each.claim.models == 1 and not each.claim.unjudged]


def _run_attribute(files: Files, name: str) -> str:
    """Return an attribute of the first file that has it."""
    # Files of weights have no corpus; those of tasks and probes have texts of their own.
    for source in files.sources:
        dataset = files.get(source)
        if dataset is not None and name in dataset.attrs:
            return str(dataset.attrs[name])
    return "-"


def _numbers_as_text(verdict: Verdict) -> str:
    return "; ".join(number.text for number in verdict.numbers)


def _or_missing(check: Check, files: Files) -> Number:
    try:
        return measure(check, files)
    except Absent:
        return Number(check, nan, nan, nan)
