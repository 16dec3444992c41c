"""Outcome of a search: the dataset of its candidates, and what each method made of them."""

from collections.abc import Mapping, Sequence

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from robustness.files.kinds.searches import NOT_WEIGHED, STANDINGS
from robustness.models.model import Model
from robustness.pruning import stability
from robustness.pruning.healed import Healings
from robustness.pruning.preparation import Search
from robustness.pruning.racing import Round
from robustness.pruning.record import Record
from robustness.pruning.sizes import size_of
from robustness.pruning.units import lacking, names
from robustness.schedules import Schedule, to_text

STEP = ("strategy", "step")
"""Dimensions of what a method did at a step. Methods are called strategies, since `method` is a
keyword of xarray's own `sel`."""


def complete(
    record: Record,
    search: Search,
    rounds: Mapping[str, Sequence[Round]],
    predicted: Mapping[Schedule, float],
    healings: Healings | None,
) -> xr.Dataset:
    """Return the finished dataset of a search.

    Parameters
    ----------
    record : Record
        What was measured.
    search : Search
        What was looked for.
    rounds : mapping of str to sequence of Round
        Rounds of every method, one for each number of removed units.
    predicted : mapping
        What the quadratic model predicts, by candidate.
    healings : Healings, optional
        Healed schedules.
    """
    model = search.model if healings is None else healings.model
    steps = max(map(len, rounds.values()))
    dataset = record.dataset().assign_coords(strategy=list(rounds), step=np.arange(1, steps + 1))
    dataset = dataset.assign_coords(_removed(record, search))
    dataset = dataset.assign(_sizes(record, search, model))
    dataset = dataset.assign(_of_steps(record, search, rounds, steps))
    if predicted:
        values = np.array([predicted.get(one, np.nan) for one in record.candidates])
        described = {"units": "nat", "long_name": "score predicted from single units and pairs"}
        dataset["predicted"] = ("candidate", values, described)
    if healings is not None:
        texts = [to_text(schedule) for schedule in healings.schedules.values()]
        described = {"long_name": "healed schedule", **_maps(model)}
        dataset = dataset.assign_coords(healing=list(healings.schedules))
        dataset["healed"] = ("healing", np.array(texts, dtype=object), described)
    dataset = dataset.assign_coords(unit=[str(unit) for unit in search.units])
    dataset["probability"] = stability.probability(dataset)
    if len(search.parts.texts) > 1:
        dataset["rank_correlation"] = stability.rank_correlation(dataset)
    return dataset


def _removed(record: Record, search: Search) -> dict[str, tuple[str, NDArray[np.generic]]]:
    """Return what every candidate lacks, and how many units that is."""
    layers = search.model.layers
    removed = [lacking(candidate, search.units, layers) for candidate in record.candidates]
    texts = np.array([names(cut) for cut in removed], dtype=object)
    return {
        "removed": ("candidate", texts),
        "size": ("candidate", np.array([len(cut) for cut in removed], np.int32)),
    }


def _sizes(record: Record, search: Search, model: Model) -> dict[str, xr.Variable]:
    """Return what every candidate takes of the model."""
    context = search.parts.corpus.context
    sizes = [size_of(model, one, context) for one in record.candidates]
    found = {
        "parameters": _described([size.parameters for size in sizes], "1", "parameters left"),
        "flops_share": _described(
            [size.flops_share for size in sizes], "1", "share of the operations of blocks left"
        ),
    }
    kept = [size.kv_bytes for size in sizes if size.kv_bytes is not None]
    if len(kept) == len(sizes):
        found["kv_bytes"] = _described(kept, "byte", "keys and values that a token takes")
    return found


def _maps(model: Model) -> dict[str, str]:
    """Return the hash of the fitted maps of a model, if it has any."""
    return {} if model.maps is None else {"maps_sha256": model.maps.sha256()}


def _described(values: Sequence[float], unit: str, long_name: str) -> xr.Variable:
    return xr.Variable("candidate", values, {"units": unit, "long_name": long_name})


def _of_steps(
    record: Record, search: Search, rounds: Mapping[str, Sequence[Round]], steps: int
) -> dict[str, xr.Variable]:
    """Return what each method did at each step."""
    place = {candidate: index for index, candidate in enumerate(record.candidates)}
    shape = (len(rounds), steps)
    chosen = np.full(shape, "", dtype=object)
    standing = np.full((*shape, len(place)), NOT_WEIGHED, np.int32)
    costs = {name: np.zeros(shape, np.int64) for name in COSTS}
    for row, of_method in enumerate(rounds.values()):
        for step, found in enumerate(of_method):
            chosen[row, step] = to_text(search.schedule(found.best))
            for cut, value in zip(found.candidates, found.standing, strict=True):
                standing[row, step, place[search.schedule(cut)]] = value
            for name, values in costs.items():
                values[row, step] = getattr(found, name)
    meanings = {"flag_values": list(range(len(STANDINGS))), "flag_meanings": _flags()}
    of_steps = {
        "chosen": xr.Variable(STEP, chosen, {"long_name": "best candidate of the step"}),
        "standing": xr.Variable(
            (*STEP, "candidate"),
            standing,
            {"units": "1", "long_name": "how a candidate came out", **meanings},
        ),
    }
    for name, values in costs.items():
        attrs = {"units": "1", "long_name": COSTS[name]}
        of_steps[name] = xr.Variable(STEP, values, attrs)
    return of_steps


COSTS = {
    "tokens_read": "tokens that candidates were measured on",
    "tokens_in_full": "tokens if all candidates had been measured on all of the searched part",
    "applications": "blocks and sublayers applied to single sequences, the clean run included",
}
"""What a round costs, by the name of its field."""


def _flags() -> str:
    """Return the names of standings as CF has flags: separated by blanks, without any inside."""
    return " ".join(name.replace(" ", "_") for name in STANDINGS)
