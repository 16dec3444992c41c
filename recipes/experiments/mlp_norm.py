"""E10: how much the MLPs write."""

import xarray as xr

from recipes.evidence.curves import place_of_largest, rank_correlation
from recipes.evidence.files import Files
from recipes.recipe import NORMS, Check, Claim, Picture, Recipe
from robustness.statistics.uncertainty import bootstrap_means


def mlp_norm(files: Files) -> xr.DataArray:
    """Return the mean norm of the MLP's output, (draw, layer)."""
    return bootstrap_means(files[NORMS]["mlp_norm"].isel(processing=-1).sel(statistic="mean"))


RECIPE = Recipe(
    name="E10",
    title="Norm of MLP outputs",
    question="Where do MLPs write most?",
    sources=(NORMS,),
    cost="1 forward pass, shared",
    notes=("The first token, with its massive activations, is left out.",),
    pictures=(
        Picture(
            ("22", "12b", "v1 7"),
            "mlp_norm",
            "Norm of what the MLP writes",
            "L2 norm of every MLP's output, mean over tokens, over relative depth; centred over "
            "features where the model's norms centre.",
            (NORMS,),
        ),
    ),
    claims=(
        Claim(
            "C10",
            "The norm of MLP outputs grows and peaks in the final layers.",
            "section 4.4",
            (
                Check(
                    "rank correlation of layer with the norm",
                    lambda files: rank_correlation(mlp_norm(files)),
                    least=0,
                ),
                Check(
                    "relative depth at which it is largest",
                    lambda files: place_of_largest(mlp_norm(files)),
                    least=0.75,
                ),
            ),
        ),
    ),
)
