"""Stages of a model: boundaries between layers, computed from the signatures of its files.

All available signatures are standardised and have equal weight. Boundaries are found by
`robustness.statistics.segmentation`, for the number of segments that the criterion chooses and for
the paper's four. Intervals come from a bootstrap over documents.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from recipes.evidence.files import Files
from recipes.evidence.signatures import Measured, Signature, read_signatures
from recipes.recipe import STAGES
from robustness.files import netcdf, ownership
from robustness.files.labels import layer_coords
from robustness.files.provenance import file_attributes
from robustness.statistics.segmentation import Segmentation, partitions, segment, standardise
from robustness.statistics.uncertainty import percentiles

KIND = "stages"
"""Attribute `measurement` of a file of stages."""

FOUR = 4
"""Number of stages in the paper."""

DRAWS = 200
"""Number of bootstrap samples for the intervals."""

COPIED = ("model", "revision", "weights_sha256", "architecture", "dtype", "server")
"""Attributes that are copied from the file of the first signature."""

Starts = Mapping[str, Sequence[int]]
"""First layers of all segments, by the name of the partition."""


def stages(
    directory: str | Path,
    *,
    signatures: Sequence[Signature] = (),
    seed: int = 0,
    out: str | Path | None = None,
    command: str = "",
) -> xr.Dataset:
    """Divide a model's layers into stages, from the files in a directory.

    Parameters
    ----------
    directory : str or path
        Path of a directory that `stages sweep` and `stages observe` wrote.
    signatures : sequence of Signature
        User-defined signatures, in addition to those of the project.
    seed : int
        Seed of the bootstrap samples.
    out : str or path, optional
        Path of the file to write.
    command : str
        Command line, for the record.

    Returns
    -------
    Dataset
        `signature` (signature, layer), standardised, and `value`, as measured; `stage` (partition,
        layer), the number of the segment that a layer is in, for the partitions `chosen` and
        `four`; `boundary`, `boundary_low`, `boundary_high` (partition, edge), the first layers of
        all segments but the first and their 95 % intervals over documents, NaN where there are
        fewer; `mean` (partition, segment, signature), values per segment; `cost` and `criterion`
        (segments).

    Raises
    ------
    Refusal
        If there are too few signatures in the directory, its files are of different models, or
        `out` holds something else.
    """
    if out is not None:
        ownership.check(Path(out), KIND)
    files = Files(directory)
    measured = read_signatures(files, signatures)
    samples = np.stack([each.means(DRAWS, seed) for each in measured], axis=1)
    division = _divide(measured, samples)
    settings = {
        **_copied(measured[0].dataset),
        "measurement": KIND,
        "signatures": ", ".join(each.signature.name for each in measured),
        "criterion_segments": len(division.starts["chosen"]),
        "draws": DRAWS,
        "seed": seed,
        "sources": files.stamp(STAGES),
    }
    dataset = _labelled(measured, division).assign_attrs(file_attributes(settings, command))
    if out is not None:
        netcdf.save_with_lock(dataset, Path(out))
    return dataset


@dataclass(frozen=True)
class _Division:
    """Partitions of a model's layers, with the signatures that they were computed from."""

    values: NDArray[np.float64]
    """Signatures as measured, (signature, layer)."""
    standardised: NDArray[np.float64]
    """Signatures with mean 0 and variance 1 over layers, (signature, layer)."""
    partitions: Sequence[Segmentation]
    """Cheapest partition for every number of segments."""
    starts: Starts
    """First layers of the partition that the criterion chooses, and of that into four."""
    intervals: Mapping[str, NDArray[np.float64]]
    """95 % intervals of the first layers (end, segment), by partition."""

    @property
    def most(self) -> int:
        """Largest number of segments of a partition."""
        return max(map(len, self.starts.values()))


def _divide(signatures: Sequence[Measured], samples: NDArray[np.float64]) -> _Division:
    """Divide layers by the means of signatures (draw, signature, layer); draw 0 is the data's."""
    values = samples[0]
    standardised = _standardised(signatures, values)
    candidates = partitions(standardised)
    starts = {"chosen": min(candidates, key=lambda partition: partition.criterion).starts}
    # Fewer than two layers per stage would make nearly every layer a stage.
    if values.shape[1] >= 2 * FOUR:
        starts["four"] = segment(standardised, FOUR).starts
    intervals = _intervals(signatures, samples[1:], starts)
    return _Division(values, standardised, candidates, starts, intervals)


def _standardised(
    signatures: Sequence[Measured], values: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Standardise values (signature, layer), each on the scale of its signature."""
    rows = map(Measured.scaled, signatures, values)
    return standardise(np.stack(list(rows)))


def _intervals(
    signatures: Sequence[Measured], samples: NDArray[np.float64], starts: Starts
) -> dict[str, NDArray[np.float64]]:
    """Return the 95 % interval of every boundary over bootstrap samples."""
    # The number of segments stays as in the data, so that boundaries can be matched by their order.
    drawn_starts: dict[str, list[Sequence[int]]] = {name: [] for name in starts}
    for sample in samples:
        standardised = _standardised(signatures, sample)
        for name, first_layers in starts.items():
            drawn_starts[name].append(segment(standardised, len(first_layers)).starts)
    return {name: percentiles(np.array(each)) for name, each in drawn_starts.items()}


def _segment_means(division: _Division) -> NDArray[np.float64]:
    """Return means of values over the layers of segments, (partition, segment, signature)."""
    values = division.values
    means = np.full((len(division.starts), division.most, len(values)), np.nan)
    for row, starts in enumerate(division.starts.values()):
        ends = [*starts[1:], values.shape[1]]
        for place, (begin, end) in enumerate(zip(starts, ends, strict=True)):
            # The last layer has no swap: its mean is over the layers that have a value.
            measured = ~np.isnan(values[:, begin:end])
            sums = np.where(measured, values[:, begin:end], 0).sum(1)
            means[row, place] = np.where(measured.any(1), sums / measured.sum(1).clip(1), np.nan)
    return means


def _numbers(division: _Division) -> NDArray[np.int64]:
    """Return the number of the segment that every layer is in, (partition, layer)."""
    layers = np.arange(division.values.shape[1])
    rows = [np.searchsorted(starts, layers, "right") - 1 for starts in division.starts.values()]
    return np.stack(rows)


def _padded(rows: Sequence[Any], most: int) -> NDArray[np.float64]:
    """Return the boundaries of partitions, (partition, edge), padded with NaN."""
    edges = np.full((len(rows), most - 1), np.nan)
    for padded, row in zip(edges, rows, strict=True):
        # The start of the first segment is no boundary.
        padded[: len(row) - 1] = row[1:]
    return edges


def _labelled(signatures: Sequence[Measured], division: _Division) -> xr.Dataset:
    """Return a division as a dataset, without attributes."""
    most, layers = division.most, division.values.shape[1]
    low = [ends[0] for ends in division.intervals.values()]
    high = [ends[1] for ends in division.intervals.values()]
    starts = list(division.starts.values())
    costs = [one.cost for one in division.partitions]
    criteria = [one.criterion for one in division.partitions]
    rows, edges = ("signature_name", "layer"), ("partition", "edge")
    means = ("partition", "segment", "signature_name")

    def described(name: str) -> dict[str, str]:
        return {"long_name": name, "units": "1"}

    return xr.Dataset(
        {
            "signature": (rows, division.standardised, described("standardised")),
            "value": (rows, division.values, described("mean over sequences")),
            "stage": (
                ("partition", "layer"),
                _numbers(division),
                described("segment of the layer"),
            ),
            "boundary": (edges, _padded(starts, most), described("first layer of a segment")),
            "boundary_low": (
                edges,
                _padded(low, most),
                described("lower end of its 95 % interval"),
            ),
            "boundary_high": (
                edges,
                _padded(high, most),
                described("upper end of its 95 % interval"),
            ),
            "mean": (means, _segment_means(division), described("mean over a segment's layers")),
            "cost": (("segments",), costs, described("variance left")),
            "criterion": (("segments",), criteria, described("Bayesian information criterion")),
        },
        coords={
            **layer_coords(layers),
            "signature_name": [each.signature.name for each in signatures],
            "signature_long_name": (
                "signature_name",
                [each.signature.long_name for each in signatures],
            ),
            "partition": list(division.starts),
            "segment": np.arange(most),
            "edge": np.arange(1, most),
            "segments": [len(one.starts) for one in division.partitions],
        },
    )


def _copied(dataset: xr.Dataset) -> dict[str, Any]:
    return {name: dataset.attrs[name] for name in COPIED if name in dataset.attrs}
