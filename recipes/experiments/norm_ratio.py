"""E5: attention's output against the MLP's."""

import xarray as xr

from recipes.evidence.curves import change, part
from recipes.evidence.files import Files
from recipes.paper_models import FIRST
from recipes.recipe import NORMS, Check, Claim, Picture, Recipe
from robustness.statistics.uncertainty import bootstrap_means


def _ratio(files: Files) -> xr.DataArray:
    ratio = files[NORMS]["attention_mlp_ratio"].isel(processing=-1).sel(statistic="median")
    return bootstrap_means(ratio)


def _early_less_late(files: Files) -> xr.DataArray:
    ratio = _ratio(files)
    early, late = part(ratio, 0, 1 / 3), part(ratio, 2 / 3, 1)
    return early.mean("layer", skipna=False) - late.mean("layer", skipna=False)


def _rise(files: Files) -> xr.DataArray:
    return change(_ratio(files), 0.75, 1)


def _only_gpt2(files: Files) -> str:
    return "" if files.architecture.startswith("GPT2") else "it is about GPT-2 models"


RECIPE = Recipe(
    name="E5",
    title="Attention over MLP",
    question="Where does attention write more than the MLP?",
    sources=(NORMS,),
    cost="1 forward pass, shared",
    models=FIRST,
    notes=(
        "The ratio of L2 norms is taken token by token, and its median over tokens; the first "
        "token, with its massive activations, is left out. The paper does not say which it took.",
    ),
    pictures=(
        Picture(
            ("v1 5",),
            "norm_ratio",
            "Attention output over MLP output",
            "Norm of what attention writes over that of what the MLP writes, median over tokens, "
            "over relative depth. Above 1, attention writes more.",
            (NORMS,),
        ),
    ),
    claims=(
        Claim(
            "C5.1",
            "Attention dominates early, and less so late.",
            "figure 5 of the first version",
            (Check("ratio in the first third less in the last third", _early_less_late, least=0),),
        ),
        Claim(
            "C5.2",
            "In GPT-2 models the ratio rises again in the final layers.",
            "figure 5 of the first version",
            (Check("ratio at the last layer less at three quarters of depth", _rise, least=0),),
            only=_only_gpt2,
        ),
    ),
)
