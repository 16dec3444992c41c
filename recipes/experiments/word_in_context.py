"""E6: at which depth the meaning of a word in context can be read."""

import xarray as xr

from recipes.evidence.curves import place_of_largest
from recipes.evidence.files import Files
from recipes.recipe import WIC, Check, Claim, Picture, Recipe
from robustness.statistics.uncertainty import bootstrap_means


def accuracy(files: Files) -> xr.DataArray:
    """Return the test accuracy of the pair probe, (draw, depth)."""
    return bootstrap_means(files[WIC]["correct"].sel(probe="pair"), "item")


def at_peak(files: Files) -> xr.DataArray:
    """Return the test accuracy at the depth with the largest dev accuracy, by draw.

    Chosen on what it is measured on, the largest of many depths would be too large.
    """
    chosen = files[WIC]["dev_accuracy"].sel(probe="pair").argmax("depth")
    return accuracy(files).isel(depth=int(chosen))


def _above(end: int, files: Files) -> xr.DataArray:
    """Return the accuracy at its peak less that at the first or the last depth."""
    return at_peak(files) - accuracy(files).isel(depth=end)


RECIPE = Recipe(
    name="E6",
    title="Word in context",
    question="At which depth can the meaning of a word in its context be read out best?",
    sources=(WIC,),
    cost="two sentences a pair, and four probes at every depth",
    data="WiC: 5,428 pairs to train on, 1,400 to test on",
    notes=(
        "The probe sees |g - h| and g * h of the word's two representations: one that sees only "
        "one after the other can add, and so not compare. The paper does not say what it took.",
    ),
    pictures=(
        Picture(
            ("20", "7a"),
            "word_in_context",
            "Word-in-context accuracy over depth",
            "Share of test pairs of which the probe says rightly whether a word means the same in "
            "two sentences, with 95 % bands; half is chance.",
            (WIC,),
        ),
    ),
    claims=(
        Claim(
            "C6",
            "Accuracy rises through early layers, peaks at middle depth and falls.",
            "section 4.2",
            (
                Check(
                    "relative depth at which accuracy is highest",
                    lambda files: place_of_largest(accuracy(files)),
                    least=0.25,
                    most=0.75,
                ),
                Check("accuracy at the best depth on dev", at_peak, least=0.5),
                Check("accuracy there less at the embedding", lambda f: _above(0, f), least=0),
                Check("accuracy there less at the last depth", lambda f: _above(-1, f), least=0),
            ),
        ),
    ),
)
