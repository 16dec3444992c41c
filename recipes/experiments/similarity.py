"""E13: what sublayers write when they are swapped."""

from functools import partial

import xarray as xr

from recipes.evidence.curves import part
from recipes.evidence.files import Absent, Files
from recipes.paper_models import named
from recipes.recipe import SIMILARITY, Check, Claim, Picture, Recipe
from robustness.statistics.uncertainty import bootstrap_means

SELF = ("self_first", "self_second")
OTHERS = ("index_early", "index_late", "adjacent")


def _cosine(component: str, files: Files) -> xr.DataArray:
    """Return the cosines of one component, (draw, comparison, layer), without the last layer.

    Centred where the model's norms centre, as the paper's were.
    """
    if files.layers < 2:
        raise Absent("one layer has none to be swapped with")
    values = files[SIMILARITY]["cosine"].isel(processing=-1).sel(component=component)
    # The last layer has none to be swapped with, and would make every mean NaN.
    return bootstrap_means(values.isel(layer=slice(0, files.layers - 1)))


def _own(component: str, files: Files) -> xr.DataArray:
    return _cosine(component, files).sel(comparison=list(SELF)).mean("comparison")


def _least_own(component: str, files: Files) -> xr.DataArray:
    return _own(component, files).min("layer")


def _late(files: Files) -> xr.DataArray:
    values = part(_cosine("attention", files), 0.75, 1)
    return abs(values.sel(comparison=list(OTHERS)).mean("layer", skipna=False)).max("comparison")


def _late_adjacent(files: Files) -> xr.DataArray:
    return part(_cosine("attention", files).sel(comparison="adjacent"), 0.75, 1).mean(
        "layer", skipna=False
    )


def _early_index(other: str, files: Files) -> xr.DataArray:
    values = part(_cosine("mlp", files), 0.25, 0.5).mean("layer", skipna=False)
    against = (
        values.sel(comparison=list(SELF)).mean("comparison")
        if other == "self"
        else values.sel(comparison=other)
    )
    return values.sel(comparison="index_early") - against


def _late_others(files: Files) -> xr.DataArray:
    values = part(_cosine("mlp", files), 0.6, 0.95)
    return abs(values.sel(comparison=list(OTHERS)).mean("layer", skipna=False)).max("comparison")


def _only(prefix: str, files: Files) -> str:
    name = {"GPT2": "GPT-2", "GPTNeoX": "Pythia"}[prefix]
    return "" if files.architecture.startswith(prefix) else f"it is about {name} models"


RECIPE = Recipe(
    name="E13",
    title="Similarity under swap",
    question="Does a swapped block write what it used to write, or what its new place asks for?",
    sources=(SIMILARITY,),
    cost="3 forward passes, shared with what the clean run shows",
    models=named("pythia-1.4b-deduped", "gpt2-xl"),
    pictures=(
        Picture(
            ("17",),
            "comparisons",
            "What is compared",
            "Two adjacent blocks in the clean run and swapped, and the five comparisons of what "
            "they write: with themselves, with the block whose place they take, and the two of the "
            "clean run with each other.",
        ),
        Picture(
            ("18",),
            "similarity",
            "What attention and MLP write when swapped",
            "Cosines of what attention (left) and the MLP (right) of two adjacent blocks write, "
            "swapped and clean, over relative depth, with 95 % bands. The green line compares the "
            "block that runs earlier with the one it replaces.",
            (SIMILARITY,),
        ),
    ),
    claims=(
        Claim(
            "C13.1",
            "Blocks keep writing much the same when they are swapped.",
            "appendix A.4",
            tuple(
                Check(
                    f"least self-similarity over layers, {component}",
                    partial(_least_own, component),
                    least=0.5,
                )
                for component in ("attention", "mlp")
            ),
        ),
        Claim(
            "C13.2",
            "In Pythia models, attention outputs become orthogonal to one another in late layers.",
            "appendix A.4",
            (Check("largest mean cosine in the last quarter but with itself", _late, most=0.2),),
            only=partial(_only, "GPTNeoX"),
        ),
        Claim(
            "C13.3",
            "In GPT-2 models, attention outputs become alike in late layers.",
            "appendix A.4",
            (Check("cosine of adjacent layers in the last quarter", _late_adjacent, least=0.5),),
            only=partial(_only, "GPT2"),
        ),
        Claim(
            "C13.4",
            "Before mid-depth, an MLP moved earlier writes more like the one it replaces than like "
            "its neighbour or itself.",
            "appendix A.4",
            tuple(
                Check(
                    f"index similarity less {other} similarity, a quarter to half of depth",
                    partial(_early_index, other),
                    least=0,
                )
                for other in ("adjacent", "self")
            ),
        ),
        Claim(
            "C13.5",
            "After mid-depth, all but self-similarity of MLPs goes to zero.",
            "appendix A.4",
            (
                Check(
                    "largest mean cosine at 60 to 95 % of depth but with itself",
                    _late_others,
                    most=0.2,
                ),
                Check(
                    "self-similarity there",
                    lambda files: part(_own("mlp", files), 0.6, 0.95).mean("layer", skipna=False),
                    least=0.5,
                ),
            ),
        ),
    ),
)
