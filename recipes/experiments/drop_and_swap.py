"""E1: every block dropped, and every adjacent pair swapped."""

from collections.abc import Callable, Sequence

import xarray as xr

from recipes.evidence.curves import interior, rank_correlation_of_models, with_interior
from recipes.evidence.files import Files
from recipes.paper_models import of
from recipes.recipe import SWEEP, Check, Claim, Picture, Recipe
from robustness.statistics.uncertainty import bootstrap_means


def _means(files: Files, metric: str, name: str) -> xr.DataArray:
    return bootstrap_means(files[SWEEP][metric].sel(intervention=name))


def interior_agreement(name: str, files: Files) -> xr.DataArray:
    """Return the mean agreement with the clean model over interior layers, by draw."""
    return _means(files, "agreement", name).isel(layer=interior(files)).mean("layer", skipna=False)


def against_interior(name: str, layer: int, files: Files) -> xr.DataArray:
    """Return the ratio of the KL at a layer to the median KL of interior layers, by draw."""
    kl = _means(files, "kl", name)
    return kl.isel(layer=layer) / kl.isel(layer=interior(files)).median("layer", skipna=False)


def _entropy_gained(name: str, files: Files) -> xr.DataArray:
    gained = files[SWEEP]["entropy"].sel(intervention=name, layer=0) - files[SWEEP]["clean_entropy"]
    return bootstrap_means(gained)


def _milder(files: Files) -> xr.DataArray:
    kl = files[SWEEP]["kl"].isel(layer=interior(files))
    difference = kl.sel(intervention="drop") - kl.sel(intervention="swap")
    return bootstrap_means(difference.mean("layer", skipna=False))


def _milder_than_both(files: Files) -> xr.DataArray:
    kl = files[SWEEP]["kl"]
    # A swap changes two blocks: it is compared with what dropping each of them does.
    both = (kl + kl.shift(layer=-1)).sel(intervention="drop") / 2
    difference = both - kl.sel(intervention="swap")
    return bootstrap_means(difference.isel(layer=interior(files)).mean("layer", skipna=False))


def _share_milder(files: Files) -> xr.DataArray:
    kl = bootstrap_means(files[SWEEP]["kl"].isel(layer=interior(files)))
    less = kl.sel(intervention="drop") - kl.sel(intervention="swap")
    return (less > 0).where(less.notnull()).mean("layer", skipna=False)


def _only_gpt2(files: Files) -> str:
    return "" if files.architecture.startswith("GPT2") else "it is about GPT-2 models"


def _with_layers(name: str, models: Sequence[Files]) -> tuple[float, float, float]:
    able = with_interior(models)
    values = [float(interior_agreement(name, files).isel(draw=0)) for files in able]
    return rank_correlation_of_models(values, [files.layers for files in able])


def _worst_last_pair(models: Sequence[Files]) -> xr.DataArray:
    able = with_interior(models)
    ratios = [against_interior("swap", files.layers - 2, files) for files in able]
    return xr.concat(ratios, "model", coords="minimal", compat="override").max("model")


def _both(check: Callable[[str], Check]) -> tuple[Check, ...]:
    return tuple(check(name) for name in ("drop", "swap"))


RECIPE = Recipe(
    name="E1",
    title="Drop and swap",
    question="Which blocks can a model lose, or run in another order, and still predict alike?",
    sources=(SWEEP,),
    cost="L - 1 forward passes for both interventions at all L layers",
    models=of("GPT-NeoX", "GPT-2"),
    data="1,000,000 tokens",
    notes=(
        "Agreement is with the clean model's top-1 prediction, which the paper calls accuracy; "
        "accuracy proper is in the file too.",
        "The paper does not say over which layers its 72 to 95 % are taken; here over layers 2 to "
        "L - 3.",
    ),
    pictures=(
        Picture(
            ("5a",),
            "interventions",
            "Effect of swapping and dropping",
            "KL divergence from the clean model (left) and agreement with its top-1 predictions "
            "(right) when adjacent blocks are swapped (top) or a block is dropped (bottom), over "
            "relative depth, with 95 % bands over documents.",
            (SWEEP,),
        ),
        Picture(
            ("13", "v1 2"),
            "schedules",
            "The two interventions",
            "The order in which blocks run: clean, with block 2 dropped, and with blocks 2 and 3 "
            "swapped. The drop is the control of the swap: it leaves out the same block.",
        ),
        Picture(
            ("v1 3",),
            "changes",
            "Divergence, agreement and change in entropy",
            "As figure 5a, with the change in entropy (intervened less clean, in bits), and the KL "
            "of both interventions on interior layers side by side.",
            (SWEEP,),
        ),
        Picture(
            ("layers",),
            "agreement_by_layers",
            "Robustness and the number of layers",
            "Agreement with the clean model, mean over interior layers, of every model by its "
            "number of layers, with 95 % intervals.",
            (SWEEP,),
            fewest=2,
        ),
    ),
    claims=(
        Claim(
            "C1.1",
            "Dropping or swapping blocks retains 72 to 95 % of top-1 predictions.",
            "abstract",
            _both(
                lambda name: Check(
                    f"agreement with the clean model, mean over interior layers, {name}",
                    lambda files: interior_agreement(name, files),
                    least=0.72,
                    most=0.95,
                )
            ),
        ),
        Claim(
            "C1.2",
            "Intervening on the first layer is catastrophic.",
            "section 3.1",
            _both(
                lambda name: Check(
                    f"KL at layer 0 over the median of interior layers, {name}",
                    lambda files: against_interior(name, 0, files),
                    least=5,
                )
            ),
        ),
        Claim(
            "C1.3",
            "At the first layer predictions become uncertain, and do not collapse on one token.",
            "section 3.1",
            (
                *_both(
                    lambda name: Check(
                        f"entropy gained at layer 0, {name}",
                        lambda files: _entropy_gained(name, files),
                        least=0,
                        unit="nat",
                    )
                ),
                *_both(
                    lambda name: Check(
                        f"share of the most frequent prediction at layer 0, {name}",
                        lambda files: files[SWEEP]["modal_share"].sel(intervention=name, layer=0),
                        most=0.5,
                    )
                ),
            ),
        ),
        Claim(
            "C1.4",
            "GPT-2 models largely preserve their predictions when the last two layers are swapped.",
            "section 3.1",
            (
                Check(
                    "agreement with the clean model when the last pair is swapped",
                    lambda files: _means(files, "agreement", "swap").isel(layer=files.layers - 2),
                    least=0.5,
                ),
            ),
            only=_only_gpt2,
        ),
        Claim(
            "C1.4b",
            "In some models, swapping the last two layers is catastrophic.",
            "section 3.1",
            (
                Check(
                    "KL of swapping the last pair over the median of interior layers, worst model",
                    _worst_last_pair,
                    least=5,
                ),
            ),
            models=2,
        ),
        Claim(
            "C1.5",
            "On interior layers, swapping is less harmful than dropping.",
            "section 3.1",
            (
                Check("KL dropped less KL swapped, interior layers", _milder, least=0, unit="nat"),
                Check("share of interior layers where swapping has less KL", _share_milder),
                Check(
                    "KL dropped, mean of both blocks of the pair, less KL swapped",
                    _milder_than_both,
                    unit="nat",
                ),
            ),
        ),
        Claim(
            "C1.6",
            "Models with more layers are more robust.",
            "abstract of the first version",
            _both(
                lambda name: Check(
                    f"rank correlation of layers with interior agreement, {name}",
                    lambda models: _with_layers(name, models),
                    least=0,
                )
            ),
            models=4,
        ),
        Claim(
            "C1.7",
            "The first layer is a function of the current token alone.",
            "section 4.1",
            unjudged="no experiment tests it; the first block attends to earlier tokens",
        ),
    ),
)
