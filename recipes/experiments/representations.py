"""E2: how alike the representations of all depths are."""

from itertools import combinations

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from recipes.evidence.files import Absent, Files
from recipes.recipe import CKA, Check, Claim, Picture, Recipe
from robustness.statistics.uncertainty import bootstrap_means, draw_coordinates

SEGMENTS = (2, 3, 4)
"""Numbers of contiguous segments that depths are divided into."""

AT_ONCE = 50
"""Number of draws whose divisions are compared at once."""

LEAST_LAYERS = 8
"""Minimum number of layers; with fewer, nearly every matrix has blocks in some division."""


def contrast(matrices: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean of matrices (draw, depth, depth) within segments less the mean between them, at best.

    The best is over all divisions into two to four contiguous segments of two depths or more; the
    diagonal is left out. Sums over squares come from a table of cumulative sums.
    """
    depths = matrices.shape[-1]
    off_diagonal = matrices * (1 - np.eye(depths))
    best = np.full(len(matrices), -np.inf)
    for edges in (_divisions(depths, count) for count in SEGMENTS):
        low, high = edges[:, :-1], edges[:, 1:]
        # Few at a time: a table for every division of every draw would not fit into memory.
        for begin in range(0, len(matrices) if len(edges) else 0, AT_ONCE):
            some = slice(begin, begin + AT_ONCE)
            sums = _sums_of_squares(off_diagonal[some])
            within = np.zeros((len(sums), len(edges)))
            for segment in range(low.shape[1]):
                within += sums[:, low[:, segment], high[:, segment]]
            pairs = ((high - low) * (high - low - 1)).sum(1)
            between = (sums[:, :1, -1] - within) / (depths * (depths - 1) - pairs)
            best[some] = np.maximum(best[some], (within / pairs - between).max(1))
    return best


def _sums_of_squares(matrices: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the sums of matrices over squares on the diagonal, (draw, first, first not in it)."""
    table = np.pad(matrices.cumsum(1).cumsum(2), ((0, 0), (1, 0), (1, 0)))
    own = np.diagonal(table, axis1=1, axis2=2)
    return own[:, None, :] - table - table.transpose(0, 2, 1) + own[:, :, None]


def _divisions(depths: int, count: int) -> NDArray[np.int64]:
    """Return the edges of all divisions of depths into `count` segments, (division, edge)."""
    cuts = np.array(list(combinations(range(2, depths - 1), count - 1)), np.int64)
    cuts = cuts.reshape(-1, count - 1)
    # Every segment has two depths or more; the first and the last have by the choice of cuts.
    cuts = cuts[(np.diff(cuts, axis=1) >= 2).all(1)]
    edges = np.pad(cuts, ((0, 0), (1, 1)))
    edges[:, -1] = depths
    return edges


def toeplitz(matrices: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return matrices whose entries are the means of the originals' diagonals."""
    depths = matrices.shape[-1]
    apart = np.abs(np.subtract.outer(np.arange(depths), np.arange(depths)))
    means = np.stack([matrices[:, apart == offset].mean(1) for offset in range(depths)], 1)
    return means[:, apart]


def _blocks(files: Files) -> xr.DataArray:
    if files.layers < LEAST_LAYERS:
        raise Absent(
            f"in {files.layers} layers blocks cannot be told from a change that is faster at one "
            f"end: {LEAST_LAYERS} are needed"
        )
    draws = bootstrap_means(files[CKA]["hsic"].isel(processing=0), "batch")
    hsic = draws.values
    own = np.diagonal(hsic, axis1=1, axis2=2)
    cka = hsic / np.sqrt(own[:, :, None] * own[:, None, :])
    apart = contrast(cka) - contrast(toeplitz(cka))
    return xr.DataArray(apart, dims="draw", coords=draw_coordinates(draws))


RECIPE = Recipe(
    name="E2",
    title="Representational similarity",
    question="Do the representations of neighbouring depths form blocks?",
    sources=(CKA,),
    cost="1 forward pass, shared with all of what the clean run shows",
    data="batches of 128 sequences of up to 512 tokens, their number not stated",
    notes=(
        "Linear kernel, unbiased minibatch estimator, last token, residual streams as they are; "
        "depth 0 is the embedding.",
    ),
    pictures=(
        Picture(
            ("14", "5b", "5c"),
            "alignment",
            "CKA between all depths",
            "Centred kernel alignment of the residual streams of every two depths at the last "
            "token: 1 is alike but for rotation and scale. Blocks along the diagonal are runs of "
            "depths that are alike.",
            (CKA,),
        ),
    ),
    claims=(
        Claim(
            "C2",
            "Representations form blocks of depths.",
            "section 3.1, figure 5b and c",
            (
                Check(
                    "CKA within less between the best 2 to 4 segments, less the same where CKA "
                    "depends on distance alone",
                    _blocks,
                    least=0.05,
                ),
            ),
        ),
    ),
)
