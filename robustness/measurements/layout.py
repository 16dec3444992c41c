"""The empty datasets that measurements fill: variables, coordinates and provenance."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from robustness.files.labels import blank_dataset, layer_coords
from robustness.files.provenance import file_attributes, source_digest
from robustness.files.sequences import COUNTED, sequence_coords
from robustness.measurements.measurement import MEASUREMENTS, Measurement
from robustness.measurements.requirements import SMALLEST_GROUP
from robustness.models.block_structure import BlockStructure
from robustness.models.model import Model
from robustness.text.corpus import Corpus

LARGEST_GROUP = 128
"""Maximum number of sequences that are reduced together."""

FEWEST_GROUPS = 8
"""Number of groups below which groups are made smaller, down to `SMALLEST_GROUP`."""


def group_size(sequences: int) -> int:
    """Return the number of sequences that are reduced together, a power of two."""
    # A power of two, as batches are: a group is then a whole number of batches.
    most = max(SMALLEST_GROUP, min(LARGEST_GROUP, sequences // FEWEST_GROUPS))
    return int(2 ** (most.bit_length() - 1))


@dataclass(frozen=True, eq=False)
class Layout:
    """Facts that the files of one call of `observe` have in common."""

    model: Model
    structure: BlockStructure
    """Result of `examine` for everything that the measurements need."""
    corpus: Corpus
    group: int
    """Number of sequences that are reduced together, by measurements that do so."""
    batch_tokens: int
    """Maximum number of tokens in a trace."""
    command: str
    """Command line, or empty."""

    def blank(self, measurement: Measurement) -> xr.Dataset:
        """Return a measurement's empty dataset, without what the model does not define."""
        variables = {}
        for metric, dims in measurement.variables.items():
            if not (self.structure.parallel and metric.name in measurement.sequential):
                variables[metric.name] = (metric, dims)
        coords = self._coords(measurement)
        used = set().union(*(dims for _, dims in variables.values()))
        # Coordinates that are named otherwise than the dimension they lie along.
        along = {"relative_depth": "layer", "document": "sequence", COUNTED: "sequence"}
        return blank_dataset(
            variables,
            {name: labels for name, labels in coords.items() if along.get(name, name) in used},
            file_attributes(self._settings(measurement), self.command),
            # HSIC is a difference of large terms, which would lose its digits in float32.
            "float64" if measurement.grouped else self.model.precision,
        )

    def numbers(self, measurement: Measurement) -> int:
        """Return the number of numbers that a trace returns of a sequence."""
        model = self.model
        # What is reduced in groups takes one state of each sequence at every depth.
        if measurement.grouped:
            return (model.layers + 1) * model.width
        coords = self._coords(measurement) | {"layer": np.arange(model.layers), "sequence": [0]}
        total = 0
        for dims in measurement.variables.values():
            total += math.prod(len(coords[dim]) for dim in dims)
        return total

    def _coords(self, measurement: Measurement) -> dict[str, Any]:
        coords = {
            **layer_coords(self.model.layers),
            "depth": np.arange(self.model.layers + 1),
            **measurement.coords(self.model, self.structure),
        }
        if measurement.grouped:
            return coords | {"batch": np.arange(len(self.corpus.tokens) // self.group)}
        counted = self.corpus.counted(int(measurement.settings.get("offsets", 0)))
        return coords | sequence_coords(self.corpus.document, counted=counted)

    def _settings(self, measurement: Measurement) -> Mapping[str, Any]:
        settings = {
            **self.model.identity,
            **self.corpus.settings(),
            "batch_tokens": self.batch_tokens,
            "measurement": measurement.name,
            **measurement.settings,
        }
        partly = self.structure.partly
        lacking = [partly[need] for need in measurement.needs if need in partly]
        if lacking:
            settings["layers_left_out"] = "; ".join(lacking)
        if measurement not in MEASUREMENTS.values():
            settings["measurement_sha256"] = source_digest(
                (measurement.measure, measurement.finish)
            )
        if measurement.grouped:
            used = len(self.corpus.tokens) // self.group * self.group
            settings |= {"batch_sequences": self.group, "sequences_used": used}
        return settings
