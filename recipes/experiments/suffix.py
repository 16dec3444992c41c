"""E9: neurons that say whether the next token ends in -ing."""

import xarray as xr

from recipes.evidence.files import Absent, Files
from recipes.paper_models import named
from recipes.recipe import SUFFIX, Check, Claim, Picture, Recipe
from robustness.statistics.uncertainty import bootstrap_means


def _group(kind: str, size: int, files: Files) -> xr.DataArray:
    """Return the test accuracy of a group of the best neurons on dev; size 0 is the largest."""
    dataset = files[SUFFIX]
    there = dataset["accuracy"].sel(kind=kind).notnull()
    if not there.any():
        raise Absent(f"none of the neurons is a {kind} neuron")
    largest = int(dataset["size"].where(there).max())
    return bootstrap_means(dataset["correct"].sel(kind=kind, size=size or largest), "item")


def _model(files: Files) -> xr.DataArray:
    return bootstrap_means(files[SUFFIX]["model_correct"].sel(reading="hard"), "item")


def _able(files: Files) -> str:
    """Return the reason why claims cannot be judged, if the model itself cannot do the task."""
    if not files.has(SUFFIX):
        return ""
    # Balanced windows: half is chance.
    low = float(files[SUFFIX]["model_accuracy_low"].sel(reading="hard"))
    return "the model itself does no better than chance" if low <= 0.5 else ""


def _signed(files: Files) -> str:
    gated = files.has(SUFFIX) and files[SUFFIX].attrs["gated"]
    if gated:
        return "in gated MLPs activations have no fixed sign: no neuron is one of either"
    return _able(files)


RECIPE = Recipe(
    name="E9",
    title="Probing for a suffix",
    question="Do neurons, one by one or together, know that the next token ends in -ing?",
    sources=(SUFFIX,),
    cost="10,000 windows of 24 tokens, and about 250 probes",
    models=named("gpt2-xl"),
    notes=(
        "Balanced windows, divided by document; neurons are ranked on dev and measured on test. "
        "The model's own answer is whether its top-1 token has the suffix.",
        "A prediction neuron is here one that raises the logits of tokens with the suffix, a "
        "suppression neuron one that lowers them; in E8 they are told apart over the whole "
        "vocabulary.",
    ),
    pictures=(
        Picture(
            ("12a", "v1 10"),
            "suffix_probes",
            "Single neurons and groups of them",
            "Share of test windows of which a probe says rightly whether the next token ends in "
            "-ing: single neurons (points), groups of the best (line), the model's own top-1 "
            "(dotted). Right: what the strongest neuron of either sign does to the logits of "
            "tokens with the suffix and without.",
            (SUFFIX,),
        ),
        Picture(
            ("23",),
            "effects",
            "What the neurons do to logits",
            "Distribution of a neuron's effect on the logits of tokens with the suffix and of all "
            "others, for the neurons that are probed (32; the paper shows 36), by how far apart "
            "the two are.",
            (SUFFIX,),
            most=1,
        ),
    ),
    claims=(
        Claim(
            "C9.1",
            "Suppression neurons give the strongest probes of single neurons, on par with the "
            "model.",
            "section 4.3",
            (
                Check(
                    "accuracy of the best suppression neuron less the best prediction neuron",
                    lambda f: _group("suppression", 1, f) - _group("prediction", 1, f),
                    least=0,
                ),
                Check(
                    "accuracy of the best suppression neuron less the model's",
                    lambda f: _group("suppression", 1, f) - _model(f),
                    least=-0.05,
                ),
            ),
            only=_signed,
        ),
        Claim(
            "C9.2",
            "Groups of neurons do better than single ones, and sometimes than the model.",
            "section 4.3",
            (
                Check(
                    "accuracy of all neurons together less the best single one",
                    lambda f: _group("mixed", 0, f) - _group("mixed", 1, f),
                    least=0,
                ),
                Check(
                    "accuracy of all neurons together less the model's",
                    lambda f: _group("mixed", 0, f) - _model(f),
                ),
            ),
            only=_able,
        ),
        Claim(
            "C9.3",
            "Groups of prediction neurons do better than single ones and than the model.",
            "section 4.3",
            (
                Check(
                    "accuracy of all prediction neurons less the best single neuron",
                    lambda f: _group("prediction", 0, f) - _group("mixed", 1, f),
                    least=0,
                ),
                Check(
                    "accuracy of all prediction neurons less the model's",
                    lambda f: _group("prediction", 0, f) - _model(f),
                    least=0,
                ),
            ),
            only=_signed,
        ),
    ),
)
