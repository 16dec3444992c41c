"""Rehearsal of a search: what it would measure if no race spared anything."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from robustness.files.kinds.searches import CHOSEN, DROPPED
from robustness.pruning import methods
from robustness.pruning.methods import Problem, sketched
from robustness.pruning.preparation import Search
from robustness.pruning.racing import Cut, Round
from robustness.runs import operations
from robustness.runs.foresight import Foresight, describe_traces, duration
from robustness.schedules import Schedule
from robustness.sweeps import flops
from robustness.sweeps.calibration import calibrate
from robustness.sweeps.requests import foresee


@dataclass(eq=False)
class Rehearsal:
    """Counts of the largest search that settings may come to."""

    search: Search
    schedules: dict[Schedule, None] = field(default_factory=dict)
    """Candidates."""
    applications: int = 0
    """Number of blocks and sublayers applied to single sequences; which of them depends a little on
    what is removed."""
    first: tuple[Schedule, ...] = ()
    """Candidates of the first round."""

    def run(self) -> None:
        """Follow every method as if all candidates cost the same."""
        search = self.search
        for name in search.methods:
            problem = Problem(
                search.units,
                search.settings,
                search.last,
                self._weigh,
                self._observe,
                lambda cuts, predicted: None,
            )
            for found in methods.BY_NAME[name](problem):
                if search.is_reached(found.best):
                    break

    def _weigh(
        self, candidates: Sequence[Cut], *, keep: int = 1, share: float | None = None
    ) -> Round:
        search = self.search
        schedules = [search.schedule(cut) for cut in candidates]
        self.first = self.first or tuple(schedules)
        self.schedules |= dict.fromkeys(schedules)
        sequences = search.parts.searched
        if share is not None:
            sequences = search.batches[sketched(search.parts, search.batches, share) - 1].stop
        self.applications += search.measurer.applications(schedules, slice(0, 1)) * sequences
        standing = (CHOSEN,) + (DROPPED,) * (len(candidates) - 1)
        return Round(
            tuple(candidates), standing, tuple(candidates), (0.0,) * len(candidates), 0, 0, 0
        )

    def _observe(self) -> xr.Dataset:
        layers = self.search.model.layers
        influence: NDArray[np.float64] = np.zeros((layers, 1))
        return xr.Dataset(
            {
                "block_influence": (("layer", "sequence"), influence),
                "angular_distance": (
                    ("layer", "span", "sequence"),
                    np.zeros((layers, layers, 1)),
                ),
            },
            coords={"layer": np.arange(layers), "span": np.arange(1, layers + 1)},
        )


def describe(search: Search) -> list[tuple[str, str]]:
    """Return what a search would take at most, as names and values to print.

    Parameters
    ----------
    search : Search
        As from `prepare`.
    """
    rehearsal = Rehearsal(search)
    rehearsal.run()
    parts, lengths = search.parts, search.parts.corpus.lengths
    held_out = slice(parts.searched, len(lengths))
    applied, schedules = rehearsal.applications, len(rehearsal.schedules)
    rows = [
        ("methods", ", ".join(search.methods)),
        ("units", f"{len(search.units):,}, of the kind {search.settings.units}"),
        ("searched text", _extent(lengths[: parts.searched])),
        ("held-out text", _extent(lengths[held_out])),
        ("schedules", f"at most {schedules:,}, unless a method goes another way"),
        ("block applications", f"at most about {applied:,}, to single sequences"),
    ]
    if search.model.request:
        rows += describe_traces(foresee_first(search))
    else:
        seconds = applied * _seconds_per_application(search, rehearsal.first)
        rows.append(("time", f"at most about {duration(seconds)}; races spare a part of it"))
    return rows


def foresee_first(search: Search) -> Foresight:
    """Return what the first round of a search is about to do, if no race spares anything."""
    rehearsal = Rehearsal(search)
    rehearsal.run()
    return foresee(search.measurer.prepared(rehearsal.first), search.batches[: search.searched])


def _seconds_per_application(search: Search, schedules: Sequence[Schedule]) -> float:
    """Return the time of a block application and its share of the head's, from a short run."""
    prepared, context = search.measurer.prepared(schedules), search.parts.corpus.context
    plan = prepared.plan(prepared.state_cap)
    operated = operations.block_flops(search.model, plan, 1, context)
    operated += flops.head_flops(prepared, plan, 1, context)
    seconds = operated * calibrate(prepared, plan).flop_seconds
    return seconds / search.measurer.applications(schedules, slice(0, 1))


def _extent(lengths: NDArray[np.int64]) -> str:
    return f"{len(lengths):,} sequences, of {int(lengths.sum()):,} tokens"
