"""E8: the lens's way to the final prediction, and the neurons that write to the vocabulary."""

from collections.abc import Sequence

import numpy as np
import xarray as xr

from recipes.evidence.curves import part, place_of_largest
from recipes.evidence.files import Absent, Files
from recipes.recipe import LENS, NEURONS, Check, Claim, Picture, Recipe
from robustness.statistics.uncertainty import bootstrap_means, draw_coordinates

FEWEST_NEURONS = 10
"""Neurons of both classes without which their place says nothing."""

PHI = ("phi-1", "phi-1_5", "phi-2")


def share(files: Files, name: str) -> xr.DataArray:
    """Share of a layer's neurons that are of a class, (layer,).

    Raises
    ------
    Absent
        If the model has next to no such neurons, or gated MLPs, where there is no telling.
    """
    dataset = files[NEURONS]
    if dataset.attrs["gated"]:
        raise Absent("in gated MLPs skew does not tell prediction from suppression neurons")
    shares = dataset["share"].sel(neuron_class=["prediction", "suppression"])
    count = round(float(shares.sum()) * dataset.sizes["neuron"])
    if count < FEWEST_NEURONS:
        raise Absent(
            f"the model has {count} prediction and suppression neurons, and {FEWEST_NEURONS} are "
            "needed"
        )
    return shares.sel(neuron_class=name, drop=True)


def lens_kl(files: Files) -> xr.DataArray:
    """Return the KL between the final prediction and the recomputed lens, (draw, depth)."""
    return bootstrap_means(files[LENS]["kl"].sel(lens="recomputed"))


def _late_rise(files: Files) -> float:
    found = share(files, "prediction")
    return float(part(found, 0.5, 1).mean() - part(found, 0, 0.5).mean())


def _last_over_peak(files: Files) -> float:
    found = share(files, "prediction")
    return float(found.isel(layer=-1) / found.max())


def _overtakes(files: Files) -> float:
    last = {name: share(files, name).isel(layer=-1) for name in ("prediction", "suppression")}
    return float(last["suppression"] - last["prediction"])


def _apart(files: Files) -> xr.DataArray:
    """Return the distance between the steepest fall of KL and the steepest rise of neurons."""
    kl = lens_kl(files)
    if files.layers < 3:
        raise Absent(f"{files.layers} layers have no steepest rise")
    # A fall is placed between its two depths, a rise at the layer that it leads to.
    falls = -kl.diff("depth").values
    fall = (falls.argmax(-1) + 0.5) / (kl.sizes["depth"] - 1)
    rises = np.diff(share(files, "prediction").values)
    rise = (rises.argmax() + 1) / max(1, len(rises))
    apart = np.where(np.isfinite(falls).all(-1), np.abs(fall - rise), np.nan)
    return xr.DataArray(apart, dims="draw", coords=draw_coordinates(kl))


def _named(models: Sequence[Files], names: Sequence[str]) -> list[Files]:
    """Return the models with some names, in the order of the names."""
    there = {files.name: files for files in models}
    missing = [name for name in names if name not in there]
    if missing:
        raise Absent(f"it is about {', '.join(names)}; missing: {', '.join(missing)}")
    return [there[name] for name in names]


def _phi_1_fewer(models: Sequence[Files]) -> float:
    first, *others = (float(share(each, "prediction").max()) for each in _named(models, PHI))
    return min(others) - first


def _phi_1_shallower(models: Sequence[Files]) -> xr.DataArray:
    slopes = [-lens_kl(each).diff("depth").min("depth") for each in _named(models, PHI)]
    return xr.concat(slopes[1:], "other").min("other") - slopes[0]


def _phi_peak(name: str, models: Sequence[Files]) -> float:
    return max(float(share(each, name).max()) for each in _named(models, PHI))


def _over(prefix: str, models: Sequence[Files]) -> float:
    others = [float(share(each, "prediction").max()) for each in models if prefix in each.name]
    if not others:
        raise Absent(f"it is about Phi and {prefix}; missing: {prefix}")
    return _phi_peak("prediction", models) / max(others)


RECIPE = Recipe(
    name="E8",
    title="Lens and prediction neurons",
    question="Does the prediction take shape where prediction neurons are?",
    sources=(LENS, NEURONS),
    cost="1 forward pass, shared; neurons from weights alone",
    notes=(
        "Neurons of which the cosine with the vocabulary has kurtosis above 10; positive skew is "
        "prediction, negative suppression. In gated MLPs (Llama, Qwen) activations have no fixed "
        "sign, and the skew does not tell the two apart.",
    ),
    pictures=(
        Picture(
            ("8", "19", "v1 6"),
            "lens_and_neurons",
            "The lens's distance from the final prediction, and neurons",
            "KL from the final prediction to what the residual stream predicts (left axis, norm "
            "recomputed), and the share of prediction and suppression neurons in each layer (right "
            "axis).",
            (LENS, NEURONS),
        ),
    ),
    claims=(
        Claim(
            "C8.1",
            "Prediction neurons appear at mid-depth, peak at about 85 % and decline at the end.",
            "section 4.3",
            (
                Check(
                    "share of prediction neurons, second half of the layers less first",
                    _late_rise,
                    least=0,
                ),
                Check(
                    "relative depth at which they are densest",
                    lambda files: place_of_largest(share(files, "prediction")),
                    least=0.75,
                    most=0.95,
                ),
                Check("share at the last layer over the largest", _last_over_peak, most=0.9),
            ),
        ),
        Claim(
            "C8.2",
            "Suppression neurons outnumber prediction neurons in the last layer.",
            "section 4.4",
            (
                Check(
                    "share of suppression less prediction neurons, last layer", _overtakes, least=0
                ),
            ),
        ),
        Claim(
            "C8.3",
            "KL falls most sharply where prediction neurons become denser.",
            "section 4.3",
            (
                Check(
                    "relative depth between the steepest fall and the steepest rise",
                    _apart,
                    most=0.15,
                ),
            ),
        ),
        Claim(
            "C8.4",
            "Phi-1 has fewer prediction neurons and a shallower fall of KL than Phi-1.5 and Phi-2.",
            "section 4.3",
            (
                Check("densest layer of Phi-1.5 or 2 less that of Phi-1", _phi_1_fewer, least=0),
                Check(
                    "steepest fall of Phi-1.5 or 2 less that of Phi-1",
                    _phi_1_shallower,
                    least=0,
                    unit="nat",
                ),
            ),
            models=3,
        ),
        Claim(
            "C8.5",
            "Phi has up to 15 % prediction and 25 % suppression neurons in a layer, 5 to 8 times "
            "GPT-2's and 3 to 7 times Pythia's.",
            "section 4.3",
            (
                Check(
                    "most prediction neurons in a layer of Phi",
                    lambda models: _phi_peak("prediction", models),
                    least=0.12,
                    most=0.18,
                ),
                Check(
                    "most suppression neurons in a layer of Phi",
                    lambda models: _phi_peak("suppression", models),
                    least=0.2,
                    most=0.3,
                ),
                Check(
                    "prediction, over GPT-2's",
                    lambda models: _over("gpt2", models),
                    least=3,
                    most=9,
                ),
                Check(
                    "prediction, over Pythia's",
                    lambda models: _over("pythia", models),
                    least=3,
                    most=7,
                ),
            ),
            models=3,
        ),
    ),
)
