"""From which slices of which variables every number of a claim and every figure comes.

A slice is upset, all else is left as it is: the claims whose numbers change, and the figures whose
data change, are those that are defined by it, and no others.
"""

from functools import cache

import numpy as np
import pytest
from planted import plant

from recipes.evidence import files as files_of_models
from recipes.evidence.files import Absent, Files
from recipes.evidence.stages import stages
from recipes.experiments.catalogue import RECIPES
from recipes.figures import draw
from recipes.judging.verdicts import measure
from robustness.files.netcdf import load, save

GPT2, PYTHIA, QWEN = ARCHITECTURES = (
    "GPT2LMHeadModel",
    "GPTNeoXForCausalLM",
    "Qwen2ForCausalLM",
)

ENTROPY = {"C7.1 recomputed", "C7.2", "T1.3", "T1.4"}
HELLASWAG, ARC = {"item_task": "hellaswag"}, {"item_task": "arc_easy"}

SLICES = [
    (GPT2, "sweep", "kl", {"intervention": "drop"}, {"C1.2", "C1.5", "T1.1"}, {"1", "5a", "v1-3"}),
    (GPT2, "sweep", "kl", {"intervention": "swap"}, {"C1.2", "C1.5", "T1.1"}, {"5a", "v1-3"}),
    (GPT2, "sweep", "agreement", {"intervention": "drop"}, {"C1.1"}, {"5a", "v1-3"}),
    (GPT2, "sweep", "agreement", {"intervention": "swap"}, {"C1.1", "C1.4"}, {"5a", "v1-3"}),
    (GPT2, "sweep", "entropy", {"intervention": "drop"}, {"C1.3"}, {"v1-3"}),
    (GPT2, "sweep", "entropy", {"intervention": "swap"}, {"C1.3"}, {"v1-3"}),
    (GPT2, "sweep", "clean_entropy", {}, {"C1.3"}, {"v1-3"}),
    (GPT2, "sweep", "modal_share", {"intervention": "drop"}, {"C1.3"}, set()),
    (GPT2, "lens", "kl", {"lens": "recomputed"}, {"C8.3", "T1.2"}, {"8"}),
    (GPT2, "lens", "kl", {"lens": "frozen"}, set(), set()),
    (GPT2, "lens", "entropy", {"lens": "recomputed"}, ENTROPY, {"21"}),
    (GPT2, "lens", "entropy", {"lens": "frozen"}, {"C7.1 frozen"}, {"21"}),
    (GPT2, "attention", "previous", {"window": 4}, set(), {"6a"}),
    (GPT2, "attention", "previous", {"window": 5}, {"C3.1", "T1.1"}, {"1", "v1-4"}),
    (GPT2, "attention", "previous", {"window": 8}, set(), {"6a"}),
    *(
        (GPT2, "norms", name, {"processing": processing, "statistic": statistic}, claims, pictures)
        for name, wanted, of, found in (
            ("attention_mlp_ratio", "median", {"C5.1", "C5.2"}, {"v1-5"}),
            ("mlp_norm", "mean", {"C10", "T1.4"}, {"22"}),
        )
        for processing in ("raw", "centred")
        for statistic in ("mean", "median", "first")
        for here in [(processing, statistic) == ("centred", wanted)]
        for claims, pictures in [(of if here else set(), found if here else set())]
    ),
    *(
        (
            architecture,
            "similarity",
            "cosine",
            {"comparison": comparison, "component": component, "processing": "centred"},
            claims,
            {"18"},
        )
        for architecture, component, comparison, claims in (
            (GPT2, "attention", "self_first", {"C13.1"}),
            (GPT2, "attention", "self_second", {"C13.1"}),
            (GPT2, "attention", "adjacent", {"C13.3"}),
            (GPT2, "attention", "index_early", set()),
            (PYTHIA, "attention", "adjacent", {"C13.2"}),
            (PYTHIA, "attention", "index_early", {"C13.2"}),
            (PYTHIA, "attention", "index_late", {"C13.2"}),
            (GPT2, "mlp", "self_first", {"C13.1", "C13.4", "C13.5"}),
            (GPT2, "mlp", "self_second", {"C13.1", "C13.4", "C13.5"}),
            (GPT2, "mlp", "adjacent", {"C13.4", "C13.5"}),
            (GPT2, "mlp", "index_early", {"C13.4", "C13.5"}),
            (GPT2, "mlp", "index_late", {"C13.5"}),
        )
    ),
    (GPT2, "similarity", "cosine", {"processing": "raw"}, set(), set()),
    (GPT2, "cka", "hsic", {"processing": "raw"}, {"C2"}, set()),
    (GPT2, "cka", "cka", {"processing": "raw"}, set(), {"14"}),
    (GPT2, "cka", "hsic", {"processing": "centred"}, set(), set()),
    (
        GPT2,
        "neurons",
        "share",
        {"neuron_class": "prediction"},
        {"C8.1", "C8.2", "C8.3", "T1.3"},
        {"1", "8"},
    ),
    (
        GPT2,
        "neurons",
        "share",
        {"neuron_class": "suppression"},
        {"C7.2", "C8.2", "T1.4"},
        {"1", "8"},
    ),
    (GPT2, "neurons", "share", {"neuron_class": "partition"}, set(), set()),
    (GPT2, "repeat", "entropy", {"intervention": "repeat-5"}, {"C11.1"}, {"25"}),
    (GPT2, "repeat", "entropy", {"intervention": "repeat-3"}, set(), {"24"}),
    (GPT2, "repeat", "entropy", {"intervention": "repeat-5-contiguous"}, set(), set()),
    (GPT2, "repeat", "loss", {"intervention": "repeat-5"}, {"C11.1"}, set()),
    (GPT2, "repeat", "clean_entropy", {}, {"C11.1"}, {"24", "25"}),
    (GPT2, "wic", "correct", {"probe": "pair"}, {"C6", "T1.2"}, set()),
    (GPT2, "wic", "correct", {"probe": "concatenation"}, set(), set()),
    (GPT2, "wic", "accuracy", {"probe": "pair"}, set(), {"20"}),
    (GPT2, "wic", "dev_accuracy", {"probe": "pair"}, {"C6"}, set()),
    (GPT2, "ing", "correct", {"kind": "mixed", "size": 1}, {"C9.2", "C9.3"}, set()),
    (GPT2, "ing", "correct", {"kind": "mixed", "size": 32}, {"C9.2"}, set()),
    (GPT2, "ing", "correct", {"kind": "prediction", "size": 1}, {"C9.1"}, set()),
    (GPT2, "ing", "correct", {"kind": "prediction", "size": 32}, {"C9.3"}, set()),
    (GPT2, "ing", "correct", {"kind": "suppression", "size": 1}, {"C9.1"}, set()),
    (GPT2, "ing", "correct", {"kind": "random"}, set(), set()),
    (GPT2, "ing", "model_correct", {"reading": "hard"}, {"C9.1", "C9.2", "C9.3"}, set()),
    (GPT2, "ing", "model_correct", {"reading": "tuned"}, set(), set()),
    (GPT2, "ing", "single_accuracy", {}, set(), {"12a"}),
    (GPT2, "subjoiner", "monotone", {}, {"C4.2"}, set()),
    (GPT2, "subjoiner", "found", {}, {"C4.3"}, set()),
    (GPT2, "subjoiner", "finding_score", {}, {"C4.1"}, {"6b"}),
    (GPT2, "tasks", "correct", {"metric": "acc_norm", **HELLASWAG}, {"C12"}, set()),
    (GPT2, "tasks", "correct", {"metric": "acc", **HELLASWAG}, set(), set()),
    (GPT2, "tasks", "correct", {"metric": "acc", **ARC}, {"C12"}, set()),
    (GPT2, "tasks", "correct", {"metric": "acc_norm", **ARC}, set(), set()),
    *(
        (
            GPT2,
            "tasks",
            "value",
            {"task": task, "metric": metric, "intervention": name},
            set(),
            pictures if metric == wanted else set(),
        )
        for task, wanted in (("hellaswag", "acc_norm"), ("arc_easy", "acc"))
        for metric in ("acc", "acc_norm")
        for name, pictures in (("swap", {"15"}), ("drop", {"16"}))
    ),
    (QWEN, "tasks-repeat", "correct", {"metric": "acc_norm"}, {"C11.2"}, set()),
    (QWEN, "tasks-repeat", "correct", {"metric": "acc"}, set(), set()),
    (GPT2, "tasks-repeat", "value", {"metric": "acc_norm"}, set(), {"26"}),
    (GPT2, "tasks-repeat", "value", {"metric": "acc"}, set(), set()),
]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Return the directories of one planted model of every architecture."""
    found = {}
    for architecture in ARCHITECTURES:
        path = plant(tmp_path_factory.mktemp(architecture), architecture=architecture)
        stages(path, out=path / "stages.nc")
        found[architecture] = path
    return found


@pytest.fixture(scope="module", autouse=True)
def read_once():
    """Read every file once, wherever links to it are."""
    kept = cache(files_of_models.load)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files_of_models, "load", lambda path: kept(path.resolve()))
        yield


@pytest.mark.slow
@pytest.mark.parametrize(
    ("architecture", "file", "variable", "chosen", "claims", "pictures"),
    SLICES,
    ids=lambda value: " ".join(map(str, value.values())) if isinstance(value, dict) else None,
)
def test_claims_and_figures_come_from_the_slices_that_define_them(
    models, tmp_path, architecture, file, variable, chosen, claims, pictures
):
    for source in Files(models[architecture]).sources:
        (tmp_path / f"{source.file}.nc").symlink_to(models[architecture] / f"{source.file}.nc")
    data = load(tmp_path / f"{file}.nc")
    (tmp_path / f"{file}.nc").unlink()
    save(data.assign({variable: upset(data, variable, chosen)}), tmp_path / f"{file}.nc")
    assert changed(numbers, models[architecture], tmp_path, file) == claims
    assert changed(figures, models[architecture], tmp_path, file) == pictures


def upset(data, variable, chosen):
    """Return a variable with a slice turned round along layers or depths, and other than it was."""
    values = data[variable]
    turned = values
    for dim in {"layer", "depth", "depth_to"} & set(values.dims):
        turned = turned.isel({dim: slice(None, None, -1)}).assign_coords({dim: values[dim]})
    if set(np.unique(values.values[np.isfinite(values.values)])) <= {0, 1}:
        turned = 1 - turned if values.equals(turned) or "item" in values.dims else turned
    else:
        turned = turned * np.linspace(0.7, 0.9, values.shape[-1])
    where = True
    for name, label in chosen.items():
        where = (data[name] == label) & where
    return turned.where(where, values).transpose(*values.dims).assign_attrs(values.attrs)


def changed(read, before, after, file):
    old, new = read(before, file), read(after, file)
    return {name for name in old if old[name] != new[name]}


@cache
def numbers(directory, file):
    """Return the numbers of all claims about one model that may come from a file."""
    files, found = Files(directory), {}
    for recipe in RECIPES:
        for claim in recipe.claims:
            asked = claim.models == 1 and not claim.only(files)
            if asked and file in {source.file for source in recipe.sources}:
                try:
                    all_of = [measure(check, files) for check in claim.checks]
                    found[claim.name] = [(each.value, each.low, each.high) for each in all_of]
                except Absent as error:
                    found[claim.name] = str(error)
    return found


@cache
def figures(directory, file):
    """Return what is drawn in all figures of one model that may come from a file."""
    files, found = Files(directory), {}
    for picture in (picture for recipe in RECIPES for picture in recipe.pictures):
        if picture.fewest == 1 and file in {source.file for source in picture.sources}:
            found[picture.name] = [shown(axis) for axis in draw(picture, [files]).axes]
    return found


def shown(axis):
    lines = [np.asarray(line.get_xydata()) for line in axis.lines]
    images = [np.asarray(image.get_array()) for image in axis.images]
    areas = [path.vertices for each in axis.collections for path in each.get_paths()]
    return [np.nan_to_num(each).round(12).tobytes() for each in (*lines, *images, *areas)]
