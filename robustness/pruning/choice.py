"""The choice of a search: which schedule it found for a number of removed units."""

from pathlib import Path

import numpy as np
import xarray as xr

from robustness.errors import Refusal
from robustness.files.kinds.searches import SEARCH
from robustness.models.model import Model
from robustness.schedules import Schedule, check, to_text

SAME = ("weights_sha256", "revision")
"""Attributes by either of which two runs are of the same weights."""


def schedule_of(
    dataset: xr.Dataset,
    model: Model,
    *,
    remove: int | None = None,
    method: str | None = None,
    healed: str | None = None,
) -> Schedule:
    """Return the schedule that a search chose for a model: whole blocks, or healed ones.

    Parameters
    ----------
    dataset : Dataset
        Dataset of a search of this very model.
    model : Model
        An opened model.
    remove : int, optional
        Number of removed blocks; by default the largest that the search came to.
    method : str, optional
        Method whose choice it is; by default the first of the search.
    healed : str, optional
        Kind of healing of the last choice of the first method, as in `robustness.healing`.

    Raises
    ------
    Refusal
        If the dataset is of something else, of another model, or of an unfinished search; it has no
        such method or number; or the schedule leaves out sublayers.
    """
    _check_file(dataset, model)
    if healed is not None:
        return _healed(dataset, model, healed)
    methods = list(map(str, dataset["strategy"].values))
    method = methods[0] if method is None else method
    if method not in methods:
        raise Refusal(f"the search has no method {method}: it has {', '.join(methods)}")
    chosen = dataset["chosen"].sel(strategy=method)
    sizes = [int(step) for step in dataset["step"].values[chosen.values.astype(str) != ""]]
    if not sizes:
        raise Refusal(f"the search chose nothing by {method}: name another `method`")
    remove = max(sizes) if remove is None else remove
    if remove not in sizes:
        raise Refusal(
            f"the search has no choice without {remove} by {method}: it has those without "
            f"{', '.join(map(str, sizes))}"
        )
    text = str(chosen.sel(step=remove).item())
    schedule = check(text, model.layers)
    parts = [step for step in schedule if not isinstance(step, (int, np.integer))]
    if parts:
        raise Refusal(
            f"the choice is {text}, and {to_text((parts[0],))} is no whole block, of which a "
            "checkpoint is made: search with `units` block, or run it by `schedule` as it is"
        )
    return schedule


def _healed(dataset: xr.Dataset, model: Model, kind: str) -> Schedule:
    """Return the schedule of a kind of healing."""
    kinds = list(map(str, dataset["healing"].values)) if "healed" in dataset else []
    if kind not in kinds:
        has = f"it has {', '.join(kinds)}" if kinds else "search with `heal`"
        raise Refusal(f"the search has no healing {kind}: {has}")
    return check(str(dataset["healed"].sel(healing=kind).item()), model.layers)


def maps_path(search: Path) -> Path:
    """Return the path of the fitted maps of a search, beside its file."""
    return search.with_name(f"{search.stem}.maps.safetensors")


def _check_file(dataset: xr.Dataset, model: Model) -> None:
    """Refuse a dataset that is no finished search of a model."""
    kind = dataset.attrs.get("measurement")
    if kind != SEARCH:
        raise Refusal(f"the file holds {kind!s:.40}, not a search: give one that prune wrote")
    if "chosen" not in dataset:
        raise Refusal("the search is unfinished: run its command again, and then this one")
    known = [name for name in SAME if name in dataset.attrs and name in model.identity]
    alike = [str(dataset.attrs[name]) == model.identity[name] for name in known]
    # A name alone does not vouch for the weights.
    if not known or not all(alike):
        name = dataset.attrs.get("model")
        what = "of other weights" if name == model.name else f"of {name}"
        raise Refusal(f"the search is {what}, not of this {model.name}: search this model")
