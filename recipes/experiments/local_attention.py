"""E3: how much attention goes to the tokens just before."""

import xarray as xr

from recipes.evidence import published
from recipes.evidence.curves import place_of_largest, rank_correlation
from recipes.evidence.files import Absent, Files
from recipes.recipe import ATTENTION, Check, Claim, Picture, Recipe
from robustness.statistics.uncertainty import bootstrap_means


def previous_five(files: Files) -> xr.DataArray:
    """Return the mean attention weight on the five previous tokens over heads, (draw, layer)."""
    return bootstrap_means(files[ATTENTION]["previous"].sel(window=5).mean("head"))


def _only_published(files: Files) -> str:
    known = published.find(files.name, "local attention")
    return "" if known else f"no value was published for {files.name}"


def _off_published(files: Files) -> xr.DataArray:
    known = published.find(files.name, "local attention")
    if known is None:
        raise Absent(_only_published(files))
    return previous_five(files).isel(layer=known.peak) / 5 - known.values[str(known.peak)]


def _away(files: Files) -> xr.DataArray:
    known = published.find(files.name, "local attention")
    if known is None:
        raise Absent(_only_published(files))
    return abs(previous_five(files).argmax("layer") - known.peak)


RECIPE = Recipe(
    name="E3",
    title="Local attention",
    question="Do early layers look at the tokens just before?",
    sources=(ATTENTION,),
    cost="1 forward pass, shared",
    data="100 documents",
    notes=(
        "Queries have 33 tokens before them, and all windows are of one length: attention thins "
        "out with length, which the authors let differ between families.",
    ),
    pictures=(
        Picture(
            ("6a",),
            "windows",
            "Attention to the tokens before",
            "Attention weight on the 1, 2, 4, 8 and 16 tokens before, added up, mean over heads "
            "and queries, over relative depth.",
            (ATTENTION,),
        ),
        Picture(
            ("v1 4",),
            "local_attention",
            "Attention to each of the five tokens before",
            "Mean attention weight on one of the five tokens before, as in the first version of "
            "the paper (the total of figure 1 is five times as much).",
            (ATTENTION,),
        ),
    ),
    claims=(
        Claim(
            "C3.1",
            "Early layers attend locally, later ones progressively less.",
            "section 4.1",
            (
                Check(
                    "rank correlation of layer with attention to the five tokens before",
                    lambda files: rank_correlation(previous_five(files)),
                    most=0,
                ),
                Check(
                    "relative depth at which it is largest",
                    lambda files: place_of_largest(previous_five(files)),
                    most=1 / 3,
                ),
            ),
        ),
        Claim(
            "C3.2",
            "Attention to the five preceding tokens peaks at the published layer.",
            "the authors' notebook attention_prev5",
            (
                Check("layers between its peak and the published one", _away, most=2),
                Check(
                    "value there less the published one, on other text and context",
                    _off_published,
                ),
            ),
            only=_only_published,
        ),
    ),
)
