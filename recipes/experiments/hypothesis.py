"""T1: the four stages of Table 1, and whether each has its signatures."""

from functools import partial
from itertools import pairwise

import xarray as xr

from recipes.evidence.files import Absent, Files
from recipes.experiments.lens_entropy import entropy
from recipes.experiments.local_attention import previous_five
from recipes.experiments.mlp_norm import mlp_norm
from recipes.experiments.prediction_neurons import lens_kl, share
from recipes.recipe import (
    ATTENTION,
    LENS,
    NEURONS,
    NORMS,
    STAGES,
    SWEEP,
    WIC,
    Check,
    Claim,
    Picture,
    Recipe,
)
from robustness.statistics.uncertainty import bootstrap_means


def bounds(files: Files) -> list[int]:
    """Return the first layers of the four stages, and the number of layers."""
    dataset = files[STAGES]
    if "four" not in dataset["partition"]:
        raise Absent(f"{files.layers} layers are too few for four stages")
    edges = dataset["boundary"].sel(partition="four").dropna("edge")
    return [0, *map(int, edges), files.layers]


def by_stage(values: xr.DataArray, files: Files) -> list[xr.DataArray]:
    """Return the means of a curve over the layers of each of the four stages."""
    means = []
    for begin, end in pairwise(bounds(files)):
        # A curve of swaps ends a layer early: a last stage of one layer has no value.
        if begin < values.sizes["layer"]:
            means.append(values.isel(layer=slice(begin, end)).mean("layer", skipna=False))
    return means


def across(values: xr.DataArray, files: Files) -> list[xr.DataArray]:
    """Return the change of a curve over depths within each of the four stages."""
    edges = bounds(files)
    return [values.isel(depth=end) - values.isel(depth=begin) for begin, end in pairwise(edges)]


def _largest_of_others(values: list[xr.DataArray], stage: int) -> xr.DataArray:
    others = [*values[:stage], *values[stage + 1 :]]
    return xr.concat(others, "other").max("other")


def _kl_of_first(name: str, files: Files) -> xr.DataArray:
    kl = files[SWEEP]["kl"].sel(intervention=name)
    # The last layer has no swap.
    kl = kl.isel(layer=slice(0, files.layers - (name == "swap")))
    values = by_stage(bootstrap_means(kl), files)
    return values[0] / _largest_of_others(values, 0)


def _attention_of_first(files: Files) -> xr.DataArray:
    values = by_stage(previous_five(files), files)
    return values[0] - _largest_of_others(values, 0)


def _progress(stage: int, files: Files) -> xr.DataArray:
    """Return the share of the total fall in the lens's KL that happens in a stage."""
    kl = lens_kl(files)
    return -across(kl, files)[stage] / (kl.isel(depth=0) - kl.isel(depth=-1))


def _probing(files: Files) -> xr.DataArray:
    return across(bootstrap_means(files[WIC]["correct"].sel(probe="pair"), "item"), files)[1]


def _prediction_appears(files: Files) -> xr.DataArray:
    values = by_stage(share(files, "prediction"), files)
    return values[2] - xr.concat(values[:2], "other").max("other")


def _suppression_appears(files: Files) -> xr.DataArray:
    values = by_stage(share(files, "suppression"), files)
    return values[3] - _largest_of_others(values, 3)


def _narrows(stage: int, files: Files) -> xr.DataArray:
    return across(entropy("recomputed", files), files)[stage]


def _norm_grows(files: Files) -> xr.DataArray:
    values = by_stage(mlp_norm(files), files)
    return values[3] / _largest_of_others(values, 3)


RECIPE = Recipe(
    name="T1",
    title="Stages of inference",
    question="Does the model have the paper's four stages, each with its signatures?",
    sources=(SWEEP, LENS, ATTENTION, NORMS, NEURONS, WIC, STAGES),
    data="by eye",
    cost="nothing: from the files of the other experiments",
    notes=(
        "Stages are where the signatures change, drawn by a rule (`stages segment`), four of them "
        "as in the paper; the claims ask whether each has what Table 1 says of it.",
        "Boundaries and claims come from the same files. That a quantity changes at a boundary is "
        "therefore no evidence for the boundary; what changes, and in which direction, is evidence "
        "for the stage. Intervals take the boundaries as given; the intervals of the boundaries "
        "themselves are in stages.nc.",
    ),
    pictures=(
        Picture(
            ("1",),
            "signatures",
            "Signatures of the stages",
            "KL when a block is dropped, attention to the five tokens before, and the share of "
            "prediction and suppression neurons, over relative depth; dashed, where the four "
            "stages begin.",
            (SWEEP, ATTENTION, NEURONS),
        ),
    ),
    claims=(
        Claim(
            "T1.1",
            "Detokenization: catastrophic when dropped or swapped, and heavy on attention.",
            "table 1",
            (
                *(
                    Check(
                        f"KL in stage 1 over that of the next highest stage, {name}",
                        partial(_kl_of_first, name),
                        least=1,
                    )
                    for name in ("drop", "swap")
                ),
                Check(
                    "attention to the five tokens before, stage 1 less the next highest stage",
                    _attention_of_first,
                    least=0,
                ),
            ),
        ),
        Claim(
            "T1.2",
            "Feature engineering: little progress to the next token, more to be probed.",
            "table 1",
            (
                Check(
                    "share of the lens's way to the final prediction in stage 2",
                    partial(_progress, 1),
                    most=0.25,
                ),
                Check("word-in-context accuracy gained over stage 2", _probing, least=0),
            ),
        ),
        Claim(
            "T1.2b",
            "Feature engineering: patching matters more.",
            "table 1",
            unjudged="no experiment of the paper measures patching",
        ),
        Claim(
            "T1.3",
            "Prediction ensembling: prediction neurons appear, the prediction begins to narrow.",
            "table 1",
            (
                Check(
                    "share of prediction neurons, stage 3 less the denser of 1 and 2",
                    _prediction_appears,
                    least=0,
                ),
                Check("entropy of the lens over stage 3", partial(_narrows, 2), most=0, unit="nat"),
            ),
        ),
        Claim(
            "T1.4",
            "Residual sharpening: suppression neurons appear, the prediction narrows, MLPs write "
            "more.",
            "table 1",
            (
                Check(
                    "share of suppression neurons, stage 4 less the next densest stage",
                    _suppression_appears,
                    least=0,
                ),
                Check("entropy of the lens over stage 4", partial(_narrows, 3), most=0, unit="nat"),
                Check("norm of MLP outputs over the next highest stage", _norm_grows, least=1),
            ),
        ),
    ),
)
