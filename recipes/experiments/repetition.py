"""E11: blocks executed twice."""

from functools import partial

import xarray as xr

from recipes.evidence.files import Absent, Files, task_metric
from recipes.recipe import REPEAT, TASKS_REPEAT, Check, Claim, Picture, Recipe
from robustness.statistics.uncertainty import bootstrap_means

SPAN = 5


def _change(metric: str, late: bool, files: Files) -> xr.DataArray:
    """Return the change of a readout under repetition in one half of the layers, (draw, layer).

    A span of blocks is in the half that its middle is in.
    """
    if files.layers < 2 * SPAN:
        raise Absent(f"{files.layers} layers have no halves of {SPAN} blocks: {2 * SPAN} needed")
    dataset = files[REPEAT]
    change = dataset[metric].sel(intervention=f"repeat-{SPAN}") - dataset[f"clean_{metric}"]
    change = change.isel(layer=slice(0, files.layers - SPAN + 1))
    # By its middle, so that every span is in one half and none in both.
    in_half = (change["layer"] + SPAN / 2 > files.layers / 2) == late
    return bootstrap_means(change.isel(layer=in_half.values))


def _mean(metric: str, late: bool, files: Files) -> xr.DataArray:
    return _change(metric, late, files).mean("layer", skipna=False)


def _share_sharper(files: Files) -> xr.DataArray:
    change = _change("entropy", True, files)
    return (change < 0).where(change.notnull()).mean("layer", skipna=False)


def _qwen(files: Files) -> xr.DataArray:
    dataset = files[TASKS_REPEAT]
    dataset = dataset.sel(metric=task_metric(dataset, "hellaswag"))
    gained = dataset["correct"].sel(intervention=f"repeat-{SPAN}") - dataset["clean_correct"]
    gained = gained.where(dataset["item_task"] == "hellaswag", drop=True)
    place = gained["relative_depth"]
    late = gained.isel(layer=((place >= 0.8) & (place <= 0.9)).values).dropna("layer", how="all")
    if not late.sizes["layer"]:
        raise Absent(f"no span of {SPAN} blocks starts between 80 and 90 % of depth")
    return bootstrap_means(late.mean("layer"), "item")


def _only_qwen(files: Files) -> str:
    return "" if files.architecture.startswith("Qwen") else "it is about Qwen models"


def _picture(name: tuple[str, ...], span: int) -> Picture:
    return Picture(
        name,
        "repetition",
        f"Each of {span} blocks executed twice",
        f"Entropy of the prediction, in bits, when each of {span} blocks is executed twice in a "
        "row, over where the span starts; dotted, the clean model.",
        (REPEAT,),
        (("span", span),),
    )


RECIPE = Recipe(
    name="E11",
    title="Repetition",
    question="Does executing late blocks twice sharpen the prediction?",
    sources=(REPEAT, TASKS_REPEAT),
    cost="about 2 L forward passes for four kinds of repetition",
    notes=(
        "Each block twice in a row (4-4-5-5), as in the paper's example; the file also has whole "
        "spans twice (4-5-4-5).",
    ),
    pictures=(
        _picture(("25", "12c"), 5),
        _picture(("24",), 3),
        Picture(
            ("26",),
            "repeated_tasks",
            "HellaSwag with repeated blocks",
            "Share of HellaSwag items answered rightly when each of 5 blocks is executed twice, "
            "over where the span starts, with 95 % bands; dotted, the clean model.",
            (TASKS_REPEAT,),
        ),
    ),
    claims=(
        Claim(
            "C11.1",
            "Repeating blocks of the second half lowers entropy; of the first it does not.",
            "section 4.4",
            (
                Check(
                    "change of entropy, spans in the second half",
                    partial(_mean, "entropy", True),
                    most=0,
                    unit="nat",
                ),
                Check(
                    "share of these spans with less entropy",
                    _share_sharper,
                    least=0.9,
                ),
                Check(
                    "change of entropy, spans in the first half",
                    partial(_mean, "entropy", False),
                    least=0,
                    unit="nat",
                ),
                Check(
                    "what it costs: change of loss, spans in the second half",
                    partial(_mean, "loss", True),
                    unit="nat",
                ),
            ),
        ),
        Claim(
            "C11.2",
            "In Qwen models, repeating at 80 to 90 % of depth improves HellaSwag.",
            "appendix A.10",
            (Check("change of the share answered rightly", _qwen, least=0),),
            only=_only_qwen,
        ),
    ),
)
