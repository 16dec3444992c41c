"""A checkpoint of what a search chose."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from searches import planted_search, unfinished
from transformers import AutoModelForCausalLM

from robustness.errors import Refusal
from robustness.files import netcdf
from robustness.files.netcdf import save
from robustness.models.opening import open_model
from robustness.pruning.choice import schedule_of
from robustness.schedules import from_text

DAMAGE = (3, 0.2, 0.5, 0.9)


@pytest.fixture(scope="module")
def model(llama):
    return open_model(llama, dtype="auto")


@pytest.fixture(scope="module")
def search(model):
    known = ("model", "weights_sha256", "config_sha256", "architecture")
    identity = {name: model.identity[name] for name in known}
    return planted_search(DAMAGE, sizes=(1, 2), noise=0.01, identity=identity)


def with_healing(data):
    healed = np.array(["0-3", "0-a1-m1~2-3"], dtype=object)
    return data.assign_coords(healing=["cut", "fold"]).assign(healed=("healing", healed))


def test_the_choice_is_the_largest_of_the_first_method_or_what_is_asked_for(model, search):
    assert schedule_of(search, model) == (0, 3)
    assert schedule_of(search, model, remove=1) == (0, 2, 3)
    other = search.copy(deep=True)
    other["chosen"].loc["greedy", 2] = "0-2"
    assert schedule_of(other, model, method="greedy", remove=2) == (0, 2)
    assert schedule_of(other, model, method="pairwise") == (0, 3)
    other["chosen"].loc["pairwise", 2] = ""
    assert schedule_of(other, model) == (0, 2, 3)


@pytest.mark.parametrize(
    ("change", "options", "says"),
    [
        (lambda data: data, {"remove": 3}, "no choice without 3 by pairwise: .* without 1, 2"),
        (with_healing, {"healed": "glue"}, "no healing glue: it has cut, fold"),
        (lambda data: data, {"healed": "fold"}, "no healing fold: search with `heal`"),
        (lambda data: data, {"method": "beam"}, "no method beam: it has pairwise, greedy"),
        (lambda data: data.assign_attrs(weights_sha256="0" * 64), {}, "of other weights, not of"),
        (
            lambda data: data.assign_attrs(weights_sha256="0" * 64, model="gpt2"),
            {},
            "is of gpt2, not of this tiny-llama: search this model",
        ),
        (unfinished, {}, "unfinished: run its command again"),
        (lambda data: data.assign_attrs(measurement="sweep"), {}, "holds sweep, not a search"),
    ],
)
def test_a_file_without_the_choice_is_refused(model, search, change, options, says):
    with pytest.raises(Refusal, match=says):
        schedule_of(change(search), model, **options)


def test_a_name_alone_does_not_vouch_for_the_weights(model, search):
    nameless = search.copy()
    del nameless.attrs["weights_sha256"]
    with pytest.raises(Refusal, match="of other weights"):
        schedule_of(nameless, model)


def test_a_choice_of_sublayers_is_refused_with_what_to_do(model, search):
    other = search.copy(deep=True)
    other["chosen"] = other["chosen"].astype(object)
    other["chosen"].loc["pairwise", 1] = "0-a1-2..3"
    with pytest.raises(Refusal, match=r"a1 is no whole block.*search with `units` block"):
        schedule_of(other, model, remove=1)


@pytest.mark.slow
def test_the_command_exports_the_choice_with_files_for_other_tools(
    run, tmp_path, llama, model, search
):
    save(search, tmp_path / "search.nc")
    words = ("export", llama, tmp_path / "two", "--from", tmp_path / "search.nc")
    code, out, err = run(*words, "--also", "mergekit, llama.cpp")
    assert (code, out.strip()) == (0, str(tmp_path / "two")), err
    assert "the search chose 0-3" in err
    listed = json.loads((tmp_path / "two" / "stages.json").read_text())
    assert {"mergekit.yaml", "llama.cpp.txt"} <= listed["files"].keys()
    assert (tmp_path / "two" / "llama.cpp.txt").read_text().endswith("\n1,2\n")
    tokens = torch.arange(12)[None]
    net = AutoModelForCausalLM.from_pretrained(tmp_path / "two")
    hidden = model.traced._module.model.embed_tokens(tokens)
    assert net.config.num_hidden_layers == 2 and net(tokens).logits.shape == (1, 12, 257)
    twin = net.model.layers[1].mlp.up_proj.weight
    block = model.traced._module.model.layers[3].mlp.up_proj.weight
    torch.testing.assert_close(twin, block)
    assert hidden.dtype == twin.dtype
    # The same again is already there; with other tools it is another export.
    code, _, err = run(*words, "--also", "mergekit,llama.cpp")
    assert code == 0 and "holds this export already" in err
    code, _, err = run(*words)
    assert code == 1 and "is not empty" in err and "--fresh" in err


@pytest.mark.slow
def test_a_choice_that_is_not_there_leaves_nothing(run, tmp_path, llama, search):
    save(search, tmp_path / "search.nc")
    words = ("export", llama, tmp_path / "out", "--from", tmp_path / "search.nc")
    for more, status, says in (
        (("--remove", 3), 1, "no choice without 3"),
        (("--also", "gguf"), 1, "no tool 'gguf' is known to --also"),
        (("--schedule", "0-1"), 2, "by --schedule or by --from: one of the two"),
    ):
        code, _, err = run(*words, *more)
        assert (code, says in err) == (status, True), err
    code, _, err = run("export", llama, tmp_path / "out")
    assert code == 2 and "by --schedule or by --from" in err
    code, _, err = run("export", llama, tmp_path / "out", "--schedule", "0", "--remove", 1)
    assert code == 2 and "--remove, --method and --healed say which" in err
    assert not (tmp_path / "out").exists()


def test_a_planted_choice_is_a_schedule_of_the_model(search):
    for text in np.ravel(search["chosen"].values):
        assert len(from_text(str(text), 4)) < 4


@pytest.mark.slow
def test_a_healed_choice_is_exported_with_the_maps_beside_the_search(run, llama, stories):
    words = ("--data", stories, "--pack", "--context", 24, "--tokens", 480, "--holdout", 0.4)
    code, _, err = run("prune", llama, "--remove", 1, "--layers", "1..2", "--heal", *words)
    assert code == 0, err
    (search,) = Path("outputs").glob("*/search.nc")
    code, _, err = run("export", llama, "--from", search, "--healed", "fold", "healed")
    assert code == 0 and "m" in err.partition("the search chose ")[2], err
    text = str(netcdf.load(search)["healed"].sel(healing="fold").item())
    healed = open_model("healed").identity["made_from"]
    assert text in healed
    code, _, err = run("export", llama, "--schedule", "0", "--healed", "fold", "other")
    assert code == 2 and "--healed" in err
