"""E12: benchmark tasks under drop and swap."""

import xarray as xr

from recipes.evidence.curves import interior
from recipes.evidence.files import Absent, Files, task_metric
from recipes.recipe import TASKS, Check, Claim, Picture, Recipe
from robustness.statistics.uncertainty import bootstrap_means, interval

CHANCE = {"hellaswag": 0.25, "arc_easy": 0.25, "lambada_openai": 0.0}


def _lost(name: str, files: Files) -> xr.DataArray:
    """Return the share of items lost, (draw, layer), over the tasks that the clean model can do."""
    dataset = files[TASKS]
    lost = []
    for task in map(str, dataset["task"].values):
        items = (dataset["item_task"] == task).values
        chosen = dataset.sel(metric=task_metric(dataset, task), drop=True).isel(item=items)
        low, _ = interval(bootstrap_means(chosen["clean_correct"], "item"))
        if low > CHANCE.get(task, 0.0) + 0.02:
            lost.append(chosen["clean_correct"] - chosen["correct"].sel(intervention=name))
    if not lost:
        raise Absent("the clean model does no better than chance on any of the tasks")
    return bootstrap_means(xr.concat(lost, "item", coords="minimal"), "item")


def _ends_less_interior(name: str, layer: int, files: Files) -> xr.DataArray:
    lost = _lost(name, files)
    return lost.isel(layer=layer) - lost.isel(layer=interior(files)).mean("layer", skipna=False)


def _checks(name: str, last: int) -> tuple[Check, ...]:
    return (
        Check(
            f"share of items lost at the first layer less on interior layers, {name}",
            lambda files: _ends_less_interior(name, 0, files),
            least=0,
        ),
        Check(
            f"share of items lost at the last place less on interior layers, {name}",
            lambda files: _ends_less_interior(name, last, files),
            least=0,
        ),
        Check(
            f"share of items lost on interior layers, {name}",
            lambda files: (
                _lost(name, files).isel(layer=interior(files)).mean("layer", skipna=False)
            ),
            most=0.1,
        ),
    )


RECIPE = Recipe(
    name="E12",
    title="Benchmark tasks",
    question="Do tasks survive where predictions do?",
    sources=(TASKS,),
    cost="L - 1 forward passes over the tasks' items",
    data="HellaSwag, ARC-Easy, LAMBADA",
    notes=("Prompts and metrics are lm-eval's, without examples in the prompt.",),
    pictures=(
        Picture(
            ("15",),
            "tasks",
            "Tasks when blocks are swapped",
            "Share answered rightly when adjacent blocks are swapped, over relative depth, with "
            "95 % bands; dotted, the clean model.",
            (TASKS,),
            (("intervention", "swap"),),
        ),
        Picture(
            ("16",),
            "tasks",
            "Tasks when a block is dropped",
            "Share answered rightly when a block is dropped (the paper's caption says swapped), "
            "over relative depth, with 95 % bands; dotted, the clean model.",
            (TASKS,),
            (("intervention", "drop"),),
        ),
    ),
    claims=(
        Claim(
            "C12",
            "Tasks fail where first or last layers are changed, and survive changes in between.",
            "appendix A.3",
            (*_checks("drop", -1), *_checks("swap", -2)),
        ),
    ),
)
