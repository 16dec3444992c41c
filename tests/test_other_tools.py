"""Files for mergekit, PEFT and llama.cpp, read as these tools read them."""

import re

import pytest
import yaml
from families import config, tiny
from transformers import AutoModelForCausalLM

from robustness.errors import Refusal
from robustness.models.opening import open_model
from robustness.reordered.other_tools import TOOLS, describe, ranges
from robustness.schedules import Mlp, check

SCHEDULES = ((0, 2, 3), (0, 1, 1, 2, 3, 2), (3,), (1, 0, 3), (0, 1, 2, 3, 2, 3))


@pytest.fixture(scope="module")
def model():
    return open_model(tiny("llama"))


def joined(pairs: list[list[int]]) -> tuple[int, ...]:
    """The blocks of half-open ranges, one after the other."""
    return tuple(block for first, end in pairs for block in range(first, end))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_ranges_of_mergekit_and_peft_are_the_schedule(model, schedule):
    files = describe(model, schedule, ["mergekit", "peft"])
    merge = yaml.safe_load(files["mergekit.yaml"])
    assert merge.keys() == {"merge_method", "dtype", "slices"}
    assert (merge["merge_method"], merge["dtype"]) == ("passthrough", "float64")
    pairs = []
    for each in merge["slices"]:
        (source,) = each["sources"]
        assert each.keys() == {"sources"} and source.keys() == {"model", "layer_range"}
        assert source["model"] == "LlamaForCausalLM"
        pairs.append(source["layer_range"])
    assert joined(pairs) == schedule
    replication = yaml.safe_load(files["peft.yaml"])
    assert replication.keys() == {"layer_replication"}
    assert joined(replication["layer_replication"]) == schedule
    assert all("counted from 0" in text for text in files.values())


def test_ranges_are_as_few_as_can_be():
    assert ranges((0, 1, 2, 5, 6, 6, 7)) == [[0, 3], [5, 7], [6, 8]]


@pytest.mark.parametrize("schedule", [(0, 2, 3), (3,), (1, 2)])
def test_llama_cpp_keeps_the_blocks_of_the_schedule(model, schedule):
    text = describe(model, schedule, ["llama.cpp"])["llama.cpp.txt"]
    *comments, listed = text.splitlines()
    assert all(line.startswith("# ") for line in comments) and "counted from 0" in comments[0]
    assert f"--prune-layers {listed} " in comments[1]
    # Tensors of the blocks that are named go, and the rest are renumbered in order.
    pruned = {int(number) for number in listed.split(",")}
    assert tuple(block for block in range(4) if block not in pruned) == schedule


def test_what_a_tool_cannot_make_has_no_file_and_a_reason(model, gpt2):
    told: list[str] = []
    assert describe(model, (0, 0, 1), ["llama.cpp"], told.append) == {}
    assert "neither repeats nor exchanges" in told.pop()
    assert describe(model, (0, 1, 2, 3), ["llama.cpp"], told.append) == {}
    assert "no block is left out" in told.pop()
    assert list(describe(gpt2, (0, 1), list(TOOLS), told.append)) == [
        "mergekit.yaml", "llama.cpp.txt",
    ]  # fmt: skip
    assert "looks for blocks in model.layers" in told.pop() and "transformer.h" not in told


def test_factors_are_in_no_weight_of_the_original(model):
    told: list[str] = []
    assert describe(model, check("0-a1-m1*0.5-3", 4), list(TOOLS), told.append) == {}
    assert len(told) == 3 and all("factors and maps are in no weight" in line for line in told)
    whole = describe(model, check("0-a1-m1-3", 4), ["llama.cpp"])
    assert whole["llama.cpp.txt"].endswith("\n2\n")


def test_settings_of_single_blocks_stop_what_would_not_follow_them():
    told: list[str] = []
    windowed = open_model(tiny("gemma2"))
    assert describe(windowed, (0, 2), list(TOOLS), told.append) == {}
    assert len(told) == 3 and all("differ in layer_types" in line for line in told)
    even = config("qwen2")
    even.layer_types, even.sliding_window = ["full_attention"] * 4, None
    even = open_model(AutoModelForCausalLM.from_config(even))
    told.clear()
    assert list(describe(even, (0, 2), list(TOOLS), told.append)) == ["peft.yaml", "llama.cpp.txt"]
    assert re.search("no file for mergekit: .*layer_types for 4 blocks, not for 2", told[0])
    assert describe(even, (0, 1, 1, 2, 3), ["peft"]) == {}


def test_a_revision_is_named_with_the_model(model):
    from dataclasses import replace

    identity = {**model.identity, "model": 'a/b "c"', "revision": "abc"}
    text = describe(replace(model, identity=identity), (0,), ["mergekit"])["mergekit.yaml"]
    assert yaml.safe_load(text)["slices"][0]["sources"][0]["model"] == 'a/b "c"@abc'


def test_unknown_tools_and_sublayers_are_refused(model):
    with pytest.raises(Refusal, match=r"no tool 'gguf' .*there are: mergekit, peft, llama\.cpp"):
        describe(model, (0,), ["gguf"])
    with pytest.raises(Refusal, match="m1"):
        describe(model, (0, Mlp(1)), ["peft"])
