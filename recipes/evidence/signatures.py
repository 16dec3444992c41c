"""Signatures of stages: quantities per layer that mark a stage in the paper's Table 1."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from recipes.evidence.files import Files
from recipes.recipe import ATTENTION, CKA, LENS, NEURONS, NORMS, SWEEP, Source
from robustness.errors import Refusal
from robustness.statistics.uncertainty import bootstrap_means

FEWEST_SIGNATURES = 3
"""Minimum number of signatures; boundaries of fewer mean little."""


@dataclass(frozen=True)
class Signature:
    """A quantity with one value per layer."""

    name: str
    source: Source
    """File that holds the quantity."""
    long_name: str
    read: Callable[[xr.Dataset], xr.DataArray]
    """Function that reads the values from the file, by layer, and by sequence if it has any."""
    logarithm: bool = False
    """Whether logarithms are segmented, because the values span orders of magnitude."""


@dataclass(frozen=True)
class Measured:
    """Values of a signature for one model."""

    signature: Signature
    dataset: xr.Dataset
    """Dataset of the signature's file."""
    values: xr.DataArray
    """Values by layer, and by sequence if the file has any."""

    def means(self, draws: int, seed: int) -> NDArray[np.float64]:
        """Return means over sequences of the data and of bootstrap samples, (draw, layer)."""
        if "sequence" in self.values.dims:
            means = bootstrap_means(self.values, draws=draws, seed=seed)
            return means.transpose("draw", "layer").values
        # Quantities of weights alone do not depend on the documents of a sample.
        shape = (draws + 1, self.values.sizes["layer"])
        return np.broadcast_to(self.values.values.astype(np.float64), shape)

    def scaled(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return values on the scale that is segmented: themselves, or their logarithms."""
        if not self.signature.logarithm:
            return values
        return np.log(np.maximum(values, np.finfo(np.float64).tiny))


def _after_block(values: xr.DataArray) -> xr.DataArray:
    """Return the values after each block, by the block's layer."""
    # Depth 0 is before the first block.
    layers = np.arange(values.sizes["depth"] - 1)
    return values.isel(depth=slice(1, None)).rename(depth="layer").assign_coords(layer=layers)


def _coordinate(dataset: xr.Dataset) -> xr.DataArray:
    """Return the first principal coordinate of the residual streams' similarity (Gower 1966)."""
    cka = dataset["cka"].isel(processing=0).values
    # Centred in rows and columns, similarities become inner products of positions.
    inner = cka - cka.mean(0) - cka.mean(1)[:, None] + cka.mean()
    scales, vectors = np.linalg.eigh((inner + inner.T) / 2)
    first = vectors[:, -1] * np.sqrt(max(scales[-1], 0.0))
    # The sign of an eigenvector is arbitrary: here the coordinate grows with depth.
    return _after_block(xr.DataArray(first * np.sign(first[-1] - first[0] or 1), dims="depth"))


def _intervened(name: str) -> Callable[[xr.Dataset], xr.DataArray]:
    return lambda dataset: dataset["kl"].sel(intervention=name)


def _share(name: str) -> Callable[[xr.Dataset], xr.DataArray]:
    return lambda dataset: dataset["share"].sel(neuron_class=name)


def _of_lens(name: str) -> Callable[[xr.Dataset], xr.DataArray]:
    return lambda dataset: _after_block(dataset[name].sel(lens="recomputed"))


def _local_attention(dataset: xr.Dataset) -> xr.DataArray:
    before = dataset["profile"].sel(offset=slice(1, 5))
    return before.sum("offset", skipna=False).mean("head")


def _mlp_norm(dataset: xr.Dataset) -> xr.DataArray:
    return dataset["mlp_norm"].isel(processing=-1).sel(statistic="mean")


SIGNATURES = (
    Signature("drop_kl", SWEEP, "KL when the block is dropped", _intervened("drop"), True),
    Signature("swap_kl", SWEEP, "KL when it is swapped with the next", _intervened("swap"), True),
    Signature(
        "local_attention",
        ATTENTION,
        "attention weight on the five tokens before",
        _local_attention,
    ),
    Signature("lens_entropy", LENS, "entropy of the lens after the block", _of_lens("entropy")),
    Signature("lens_kl", LENS, "KL of the lens from the final prediction", _of_lens("kl")),
    Signature("prediction", NEURONS, "share of prediction neurons", _share("prediction")),
    Signature("suppression", NEURONS, "share of suppression neurons", _share("suppression")),
    Signature("mlp_norm", NORMS, "norm of what the MLP writes", _mlp_norm, True),
    Signature("cka", CKA, "first principal coordinate of CKA", _coordinate),
)
"""All signatures; boundaries are computed from those that a directory has."""


def read_signatures(files: Files, further: Sequence[Signature] = ()) -> list[Measured]:
    """Return the signatures that can be read from the files of a directory, and further ones.

    Raises
    ------
    Refusal
        If there are too few signatures, files have different numbers of layers, or a further
        signature cannot be read.
    """
    measured: list[Measured] = []
    missing = []
    for signature in (*SIGNATURES, *further):
        dataset = files.get(signature.source)
        if dataset is None and signature in further:
            raise Refusal(
                f"{signature.source.file}.nc, of the signature {signature.name}, is missing"
            )
        if dataset is None:
            missing.append(signature.source.file)
            continue
        try:
            measured.append(Measured(signature, dataset, signature.read(dataset)))
        except KeyError as error:
            if signature in further:
                name, file = signature.name, signature.source.file
                raise Refusal(f"{file}.nc lacks what {name} reads: {error.args[0]}") from error
            continue  # a sweep without this intervention, or without KL
    if len(measured) < FEWEST_SIGNATURES:
        raise Refusal(
            f"{files.directory.name} has {len(measured)} signatures of stages, and "
            f"{FEWEST_SIGNATURES} are needed: run `stages sweep` and `stages observe` on the model "
            f"first (missing: {', '.join(sorted(set(missing)))})"
        )
    if len({signature.values.sizes["layer"] for signature in measured}) > 1:
        raise Refusal(
            f"the files in {files.directory.name} have different layers: measure all layers in each"
        )
    return measured
