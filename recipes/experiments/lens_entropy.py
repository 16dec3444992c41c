"""E7: how sure the logit lens is at every depth."""

from functools import partial

import xarray as xr

from recipes.evidence.curves import change, part, place_of_largest, rank_correlation
from recipes.evidence.files import Files
from recipes.experiments.prediction_neurons import share
from recipes.recipe import LENS, NEURONS, Check, Claim, Picture, Recipe
from robustness.statistics.uncertainty import bootstrap_means


def entropy(lens: str, files: Files) -> xr.DataArray:
    """Return the entropy of the lens in nats, (draw, depth)."""
    return bootstrap_means(files[LENS]["entropy"].sel(lens=lens))


def _lowest_early(lens: str, files: Files) -> xr.DataArray:
    values = entropy(lens, files)
    return part(values, 0, 0.5).min("depth", skipna=False) / values.max("depth", skipna=False)


def _fall_late(lens: str, files: Files) -> xr.DataArray:
    return rank_correlation(part(entropy(lens, files), 0.5, 1))


def _fall_at_the_end(files: Files) -> xr.DataArray:
    return change(entropy("recomputed", files), 0.75, 1)


def _high_then_falls(lens: str) -> Claim:
    return Claim(
        f"C7.1 {lens}",
        "Entropy stays high until mid-depth and then falls steadily "
        + ("(norm recomputed)." if lens == "recomputed" else "(norm's scale frozen, as plotted)."),
        "sections 4.2 and 4.3",
        (
            Check(
                "lowest entropy in the first half over the highest at any depth",
                partial(_lowest_early, lens),
                least=0.8,
            ),
            Check(
                "rank correlation of depth with entropy in the second half",
                partial(_fall_late, lens),
                most=-0.8,
            ),
        ),
    )


RECIPE = Recipe(
    name="E7",
    title="Entropy of the logit lens",
    question="When does the prediction become sure?",
    sources=(LENS, NEURONS),
    cost="1 forward pass, shared, and an unembedding at every depth",
    data="10 documents, 500 characters of each",
    notes=(
        "The paper divided every residual stream by the scale that the final norm found in the "
        "last one, which makes early predictions look uniform; the claim is judged for that lens "
        "and for one that computes the norm anew.",
    ),
    pictures=(
        Picture(
            ("21", "7b", "v1 8"),
            "lens_entropy",
            "Entropy of the logit lens",
            "Entropy of what the residual stream at every depth predicts, in bits as published: "
            "norm recomputed (solid), and its scale frozen, as the paper plotted it (dashed).",
            (LENS,),
        ),
    ),
    claims=(
        _high_then_falls("frozen"),
        _high_then_falls("recomputed"),
        Claim(
            "C7.2",
            "The fall of entropy in the final layers goes along with suppression neurons.",
            "section 4.4",
            (
                Check(
                    "entropy at the last depth less at three quarters",
                    _fall_at_the_end,
                    most=0,
                    unit="nat",
                ),
                Check(
                    "relative depth at which suppression neurons are densest",
                    lambda files: place_of_largest(share(files, "suppression")),
                    least=0.75,
                ),
            ),
        ),
    ),
)
