"""The stages of a model, from the files of its measurements: signatures, boundaries, intervals.

A signature is one number per layer that the paper's Table 1 takes as a sign of a stage. All that
are there are standardised and weigh the same. The boundaries are drawn by
`robustness.statistics.segmentation`, for the number of segments that the criterion chooses and for
four, the paper's; intervals come from drawing the documents again.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from recipes.evidence.files import Files
from recipes.recipe import ATTENTION, CKA, LENS, NEURONS, NORMS, STAGES, SWEEP, Source
from robustness.errors import Refusal
from robustness.files import netcdf, ownership
from robustness.files.labels import layer_coords
from robustness.files.provenance import file_attributes
from robustness.statistics.segmentation import partitions, segment, standardise
from robustness.statistics.uncertainty import drawn

KIND = "stages"
"""What the file says that it holds."""

FOUR = 4
"""The paper's number of stages."""

FEWEST = 3
"""Signatures without which boundaries mean little."""

DRAWS = 200
"""Samples of documents for the intervals."""


@dataclass(frozen=True)
class Signature:
    """One number per layer."""

    name: str
    source: Source
    """The file that it is taken from."""
    long_name: str
    read: Callable[[xr.Dataset], xr.DataArray]
    """To values with the dimension layer, and sequence where there is one."""
    logarithm: bool = False
    """Whether it is the logarithm that counts, for what spans orders of magnitude."""


def _after_block(values: xr.DataArray) -> xr.DataArray:
    """Of values at depths, those after each block, by layer."""
    layers = np.arange(values.sizes["depth"] - 1)
    return values.isel(depth=slice(1, None)).rename(depth="layer").assign_coords(layer=layers)


def _coordinate(dataset: xr.Dataset) -> xr.DataArray:
    """Return the first principal coordinate of the residual streams' similarity (Gower 1966)."""
    cka = dataset["cka"].isel(processing=0).values
    inner = cka - cka.mean(0) - cka.mean(1)[:, None] + cka.mean()
    scales, vectors = np.linalg.eigh((inner + inner.T) / 2)
    first = vectors[:, -1] * np.sqrt(max(scales[-1], 0.0))
    return _after_block(xr.DataArray(first * np.sign(first[-1] - first[0] or 1), dims="depth"))


def _intervened(name: str) -> Callable[[xr.Dataset], xr.DataArray]:
    return lambda dataset: dataset["kl"].sel(intervention=name)


def _share(name: str) -> Callable[[xr.Dataset], xr.DataArray]:
    return lambda dataset: dataset["share"].sel(neuron_class=name)


SIGNATURES = (
    Signature("drop_kl", SWEEP, "KL when the block is dropped", _intervened("drop"), True),
    Signature("swap_kl", SWEEP, "KL when it is swapped with the next", _intervened("swap"), True),
    Signature(
        "local_attention",
        ATTENTION,
        "attention weight on the five tokens before",
        lambda dataset: (
            dataset["profile"].sel(offset=slice(1, 5)).sum("offset", skipna=False).mean("head")
        ),
    ),
    Signature(
        "lens_entropy",
        LENS,
        "entropy of the lens after the block",
        lambda dataset: _after_block(dataset["entropy"].sel(lens="recomputed")),
    ),
    Signature(
        "lens_kl",
        LENS,
        "KL of the lens from the final prediction",
        lambda dataset: _after_block(dataset["kl"].sel(lens="recomputed")),
    ),
    Signature("prediction", NEURONS, "share of prediction neurons", _share("prediction")),
    Signature("suppression", NEURONS, "share of suppression neurons", _share("suppression")),
    Signature(
        "mlp_norm",
        NORMS,
        "norm of what the MLP writes",
        lambda dataset: dataset["mlp_norm"].isel(processing=-1).sel(statistic="mean"),
        True,
    ),
    Signature("cka", CKA, "first principal coordinate of CKA", _coordinate),
)
"""What the boundaries are drawn by."""


def stages(
    directory: str | Path, *, seed: int = 0, out: str | Path | None = None, command: str = ""
) -> xr.Dataset:
    """Divide a model's layers into stages, from the files in a directory.

    Parameters
    ----------
    directory : str or path
        As `stages sweep` and `stages observe` leave it.
    seed : int
        Of the documents that are drawn.
    out : str or path, optional
        The file.
    command : str
        The command line, for the record.

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
    found = read(files)
    raw = {each.name: values for each, _, values in found}
    layers = next(iter(raw.values())).sizes["layer"]
    samples = np.stack([_means(raw[each.name], seed) for each, *_ in found], axis=1)
    values = samples[0]
    signatures = standardise(_scaled(found, values))
    every = partitions(signatures)
    chosen = min(every, key=lambda one: one.criterion)
    cuts = {"chosen": chosen.starts}
    if layers >= 2 * FOUR:
        cuts["four"] = segment(signatures, FOUR).starts
    most = max(map(len, cuts.values()))
    low, high = _intervals(found, samples[1:], {name: len(starts) for name, starts in cuts.items()})
    number = np.stack(
        [np.searchsorted(starts, np.arange(layers), "right") - 1 for starts in cuts.values()]
    )
    means = np.full((len(cuts), most, len(found)), np.nan)
    for row, starts in enumerate(cuts.values()):
        for part, (begin, end) in enumerate(zip(starts, [*starts[1:], layers], strict=True)):
            with np.errstate(invalid="ignore"):
                known = ~np.isnan(values[:, begin:end])
                sums = np.where(known, values[:, begin:end], 0).sum(1)
                means[row, part] = np.where(known.any(1), sums / known.sum(1).clip(1), np.nan)
    first = found[0][1]
    kept = ("model", "revision", "weights_sha256", "architecture", "dtype", "server")
    settings = {
        **{name: first.attrs[name] for name in kept if name in first.attrs},
        "measurement": KIND,
        "signatures": ", ".join(raw),
        "criterion_segments": len(chosen.starts),
        "draws": DRAWS,
        "seed": seed,
        "sources": files.stamp(STAGES),
    }

    def described(name: str, unit: str = "1") -> dict[str, str]:
        return {"long_name": name, "units": unit}

    edges = ("partition", "edge")
    dataset = xr.Dataset(
        {
            "signature": (("signature_name", "layer"), signatures, described("standardised")),
            "value": (("signature_name", "layer"), values, described("mean over sequences")),
            "stage": (("partition", "layer"), number, described("segment of the layer")),
            "boundary": (edges, _pad(cuts.values(), most), described("first layer of a segment")),
            "boundary_low": (edges, _pad(low, most), described("lower end of its 95 % interval")),
            "boundary_high": (edges, _pad(high, most), described("upper end of its 95 % interval")),
            "mean": (
                ("partition", "segment", "signature_name"),
                means,
                described("mean over a segment's layers"),
            ),
            "cost": (("segments",), [one.cost for one in every], described("variance left")),
            "criterion": (
                ("segments",),
                [one.criterion for one in every],
                described("Bayesian information criterion"),
            ),
        },
        coords={
            **layer_coords(layers),
            "signature_name": list(raw),
            "signature_long_name": ("signature_name", [each.long_name for each, *_ in found]),
            "partition": list(cuts),
            "segment": np.arange(most),
            "edge": np.arange(1, most),
            "segments": [len(one.starts) for one in every],
        },
        attrs=file_attributes(settings, command),
    )
    if out is not None:
        netcdf.save_with_lock(dataset, Path(out))
    return dataset


Found = tuple[Signature, xr.Dataset, xr.DataArray]


def read(files: Files) -> list[Found]:
    """Return the signatures that the files of a directory have, with their files and values."""
    found: list[Found] = []
    missing = []
    for each in SIGNATURES:
        dataset = files.get(each.source)
        if dataset is None:
            missing.append(each.source.file)
            continue
        try:
            found.append((each, dataset, each.read(dataset)))
        except KeyError:
            continue  # a sweep without this intervention, or without KL
    if len(found) < FEWEST:
        raise Refusal(
            f"{files.directory.name} has {len(found)} signatures of stages, and {FEWEST} are "
            "needed: run `stages sweep` and `stages observe` on the model first (missing: "
            f"{', '.join(sorted(set(missing)))})"
        )
    if len({values.sizes["layer"] for *_, values in found}) > 1:
        raise Refusal(
            f"the files in {files.directory.name} are of different layers: measure all of them"
        )
    return found


def _means(values: xr.DataArray, seed: int) -> NDArray[np.float64]:
    """Means over sequences, (draw, layer): of the data, and of documents drawn again."""
    if "sequence" in values.dims:
        return drawn(values, draws=DRAWS, seed=seed).transpose("draw", "layer").values
    return np.broadcast_to(values.values.astype(np.float64), (DRAWS + 1, values.sizes["layer"]))


def _scaled(found: list[Found], values: NDArray[np.float64]) -> NDArray[np.float64]:
    rows = [
        np.log(np.maximum(row, np.finfo(np.float64).tiny)) if each.logarithm else row
        for (each, *_), row in zip(found, values, strict=True)
    ]
    return np.stack(rows)


def _intervals(
    found: list[Found], samples: NDArray[np.float64], counts: Mapping[str, int]
) -> tuple[list[NDArray[np.float64]], list[NDArray[np.float64]]]:
    """Return the 95 % interval of every boundary over samples of documents."""
    starts: dict[str, list[tuple[int, ...]]] = {name: [] for name in counts}
    for sample in samples:
        signatures = standardise(_scaled(found, sample))
        for name, count in counts.items():
            starts[name].append(segment(signatures, count).starts)
    low, high = (
        [np.quantile(starts[name], level, axis=0) for name in counts] for level in (0.025, 0.975)
    )
    return low, high


def _pad(rows: Any, most: int) -> NDArray[np.float64]:
    """Lay out the boundaries of partitions, without the first, which is no boundary."""
    found = np.full((len(rows), most - 1), np.nan)
    for into, row in zip(found, rows, strict=True):
        into[: len(row) - 1] = row[1:]
    return found
