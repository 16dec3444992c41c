"""The floor of half precision: KL from a model converted to float32, measured once for a run."""

import copy
import re

import numpy as np
import pretended
import pytest
import torch
import xarray as xr
from accelerate import cpu_offload
from click.testing import CliRunner
from commands import COMMANDS
from families import random_tokens, tiny
from test_execution import corpus
from test_shard import assert_same_bits, run_shards
from tokenizers_for_tests import word_level
from torch.distributions import Categorical, kl_divergence

from recipes.evidence.files import Files
from recipes.report import ReportFiles, report
from recipes.views import as_text, draw, table
from robustness.files import netcdf, precision_floor
from robustness.files.precision_floor import (
    FLOOR,
    FLOOR_ATTRIBUTES,
    describe_near,
    floor_attributes,
)
from robustness.models import float32_pass
from robustness.models.opening import open_model, open_settings
from robustness.models.settings import ModelSettings
from robustness.statistics.paired import difference
from robustness.sweeps import execution, sweep
from robustness.sweeps.merging import merge
from robustness.sweeps.precision_floor import choose_sequences, measure_floor
from robustness.trace import readout

BATCH = 24
"""Two sequences of twelve tokens."""

FAMILIES = (
    "bloom codegen cohere falcon gemma2 gpt2 gpt_neox granite llama mixtral opt-350m phi".split()
)
"""Families that differ in positions, norms, scales of logits, experts, and parts besides blocks."""


def half(family="llama", dtype=torch.bfloat16):
    return open_model(tiny(family).to(dtype))


def types_of(model):
    return [tensor.dtype for tensor in model.traced._module.state_dict().values()]


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_the_float32_pass_is_that_of_the_model_converted_to_float32(family):
    model, tokens = half(family), random_tokens(2, 11)
    before = types_of(model)
    states = float32_pass.final_states(model, tokens, wide=True)
    found = readout.logits_of(
        states.flatten(0, 1), {"matrix": model.unembedding(copied=False)}
    ).unflatten(0, tokens.shape)
    assert types_of(model) == before
    with torch.no_grad():
        plain = copy.deepcopy(model.traced._module).float()
        expected = plain(input_ids=tokens, use_cache=False).logits
        rounded = model.traced._module(input_ids=tokens, use_cache=False).logits.float()
    off = float((found - expected).abs().max())
    assert off <= 1e-5 * max(1.0, float(expected.abs().max()))
    assert off < 1e-2 * float((rounded - expected).abs().max())


def test_one_block_at_a_time_is_float32_with_all_that_it_keeps():
    model = half()
    blocks = [block._module for block in model.blocks]
    seen = []
    for block in blocks:
        block.register_buffer("kept", torch.ones(1, dtype=torch.bfloat16))
        block.mlp.register_forward_pre_hook(
            lambda *_: seen.append(
                [{tensor.dtype for tensor in each.state_dict().values()} for each in blocks]
            )
        )
    float32_pass.final_states(model, random_tokens(1, 5), wide=True)
    for called, types in enumerate(seen):
        expected = [{torch.bfloat16}] * len(blocks)
        expected[called] = {torch.float32}
        assert types == expected
    assert len(seen) == len(blocks)


def test_an_error_in_a_pass_leaves_the_weights_and_the_hooks_as_they_were(monkeypatch):
    model, tokens = half(), random_tokens(1, 5)
    before, block = types_of(model), model.blocks[2]._module
    with monkeypatch.context() as patched:
        patched.setattr(block.mlp, "forward", lambda *_: 1 / 0)
        # Kept, so that what the error has seen is not freed.
        with pytest.raises(ZeroDivisionError) as error:
            float32_pass.final_states(model, tokens, wide=True)
    assert types_of(model) == before and error.value is not None
    assert not any(part._forward_pre_hooks for part in model.traced._module.modules())
    assert float32_pass.final_states(model, tokens, wide=False).dtype == torch.bfloat16


@pytest.mark.parametrize("lengths", [None, [12, 9, 12, 4, 7, 12]])
def test_the_floor_is_kl_from_the_converted_model(lengths):
    model, text = half("gpt2"), corpus(6, lengths=lengths)
    found = measure_floor(model, text, print)
    net = model.traced._module
    plain, caught, kls, agreeing = copy.deepcopy(net).float(), [], [], []
    net.lm_head.register_forward_pre_hook(lambda _, args: caught.append(args[0]))
    with torch.no_grad():
        for row, length in zip(torch.from_numpy(text.tokens), text.lengths, strict=True):
            tokens = row[None, :length]
            net(input_ids=tokens, use_cache=False)
            # A sweep reads the head's matrix in float32.
            rounded = plain.lm_head(caught[-1].float())[0].double()
            exact = plain(input_ids=tokens, use_cache=False).logits[0].double()
            read = slice(1, length if text.authors_alignment else length - 1)
            p, q = (Categorical(logits=logits[read]) for logits in (exact, rounded))
            kls.append(float(kl_divergence(p, q).mean()))
            agreeing.append(
                float((exact[read].argmax(-1) == rounded[read].argmax(-1)).float().mean())
            )
    assert found[FLOOR] == pytest.approx(np.mean(kls), rel=1e-3) and found[FLOOR] > 1e-6
    assert found["precision_floor_agreement"] == pytest.approx(np.mean(agreeing))
    assert found["precision_floor_tokens"] == text.lengths.sum()
    of_documents = np.reshape(kls, (3, 2)).sum(1) - 2 * np.mean(kls)
    error = np.sqrt(3 / 2 * np.square(of_documents).sum()) / 6
    if lengths is None:
        assert found["precision_floor_standard_error"] == pytest.approx(error, rel=1e-2)


def test_float16_has_a_64th_of_the_floor_of_bfloat16():
    text = corpus(16, 12)
    # With three bits more, rounding is an eighth, and KL grows as its square.
    net = tiny("gpt_neox").to(torch.bfloat16)
    found = {}
    for dtype in (torch.bfloat16, torch.float16):
        model = open_model(copy.deepcopy(net).to(dtype))
        found[dtype] = measure_floor(model, text, print)[FLOOR]
    assert 32 < found[torch.bfloat16] / found[torch.float16] < 128


@pytest.mark.parametrize("sequences", [1, 3, 4, 5, 100])
@pytest.mark.parametrize("length", [3, 12, 30])
def test_chosen_sequences_are_evenly_spaced_over_all_of_the_text(monkeypatch, sequences, length):
    monkeypatch.setattr("robustness.sweeps.precision_floor.TOKENS", 100)
    text = corpus(sequences, length)
    chosen = choose_sequences(text)
    assert len(chosen) == min(sequences, max(4, 100 // length))
    steps = np.diff(np.append(chosen, sequences))
    assert chosen[0] == 0 and (steps >= 1).all() and steps.max() - steps.min() <= 1


def test_what_cannot_be_measured_is_told_and_left_out(monkeypatch):
    text, said = corpus(), []
    model = half()
    cpu_offload(model.traced._module)
    assert measure_floor(model, text, said.append) == {}
    monkeypatch.setattr(float32_pass, "final_states", lambda *_, **__: 1 / 0)
    assert measure_floor(half(), text, said.append) == {}
    assert "loaded for each call" in said[0] and "division by zero" in said[1]
    assert all("floor that bfloat16 puts under KL is not measured" in line for line in said)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_files_of_wider_types_have_no_floor(monkeypatch, dtype):
    monkeypatch.setattr(float32_pass, "final_states", lambda *_, **__: 1 / 0)
    found = sweep(open_model(tiny("llama").to(dtype)), corpus(2), ("drop",))
    assert not found.attrs.keys() & {*FLOOR_ATTRIBUTES}


@pytest.fixture
def measured(monkeypatch):
    """The number of times that a floor was measured."""
    calls = []

    def counting(*args):
        calls.append(args)
        return measure_floor(*args)

    monkeypatch.setattr(execution, "measure_floor", counting)
    return calls


def test_a_resumed_run_keeps_the_floor_that_it_began_with(measured, tmp_path):
    model, text = half(), corpus(8)

    def stop(done, total):
        if done == 4:
            raise KeyboardInterrupt

    asked = {"interventions": ("drop",), "batch_tokens": BATCH, "per_token": True}
    with pytest.raises(KeyboardInterrupt):
        sweep(model, text, out=tmp_path / "a.nc", progress=stop, **asked)
    found = sweep(model, text, out=tmp_path / "a.nc", **asked)
    sweep(model, text, out=tmp_path / "a.nc", **asked)
    assert len(measured) == 1
    whole = sweep(model, text, out=tmp_path / "b.nc", **asked)
    floor = floor_attributes(whole.attrs)
    assert len(floor) == 4 and floor_attributes(found.attrs) == floor
    of_tokens = netcdf.load(tmp_path / "a.tokens.nc")
    assert floor_attributes(of_tokens.attrs) == floor
    assert "floor of bfloat16 under KL" in as_text(table(of_tokens))


def test_a_run_that_goes_on_to_a_smaller_error_keeps_its_floor(measured, tmp_path):
    model, text = half(), corpus(70)
    asked = {"interventions": ("drop",), "batch_tokens": 120, "out": tmp_path / "a.nc"}
    stopped = sweep(model, text, until_se=5.0, **asked)
    further = sweep(model, text, **asked)
    assert stopped.sizes["sequence"] < further.sizes["sequence"] and len(measured) == 1
    assert floor_attributes(stopped.attrs) == floor_attributes(further.attrs) != {}


def test_merged_shards_have_the_floor_of_the_whole_run(tmp_path):
    model, text = half(), corpus(7)
    asked = {"interventions": ("swap",), "per_token": True}
    whole = sweep(model, text, batch_tokens=BATCH, out=tmp_path / "whole.nc", **asked)
    files = run_shards(model, text, tmp_path, 2, **asked)
    # Another card rounds otherwise.
    with netcdf.load(files[1]) as other:
        assert floor_attributes(other.attrs) == floor_attributes(whole.attrs)
    merged = merge(files, tmp_path / "merged.nc")
    assert_same_bits(whole, merged)
    assert floor_attributes(merged.attrs) == floor_attributes(whole.attrs) != {}
    of_tokens = netcdf.load(tmp_path / "merged.tokens.nc")
    assert floor_attributes(of_tokens.attrs) == floor_attributes(whole.attrs)


@pretended.needed
@pytest.mark.parametrize("kind", ["cuda", "mps"])
def test_on_a_device_the_floor_is_that_of_the_cpu(kind):
    text = corpus(4)
    here = measure_floor(half("gemma2"), text, print)
    with pretended.machine(kind):
        there = measure_floor(open_model(tiny("gemma2").to(torch.bfloat16).to(kind)), text, print)
    assert there.keys() == here.keys()
    assert there[FLOOR] == pytest.approx(here[FLOOR], rel=0.2)


@pretended.needed
def test_a_model_on_two_devices_has_the_floor_of_the_cpu(tmp_path):
    tiny("llama", torch.bfloat16).save_pretrained(tmp_path)
    word_level(101).save_pretrained(tmp_path)
    text, here = corpus(4), measure_floor(half(), corpus(4), print)
    ends = dict.fromkeys(("model.embed_tokens", "model.rotary_emb", "model.norm"), "cuda:0")
    blocks = {f"model.layers.{layer}": f"cuda:{layer % 2}" for layer in range(4)}
    with pretended.machine("cuda", 2):
        there = measure_floor(
            open_model(tmp_path, device_map={**ends, **blocks, "lm_head": "cuda:1"}), text, print
        )
    assert there[FLOOR] == pytest.approx(here[FLOOR], rel=0.2)


@pretended.needed
def test_by_default_a_gpu_keeps_the_checkpoints_type_which_is_told_once_and_has_a_floor(tmp_path):
    tiny("llama", torch.bfloat16).save_pretrained(tmp_path)
    word_level(101).save_pretrained(tmp_path)
    said = []
    with pretended.machine("cuda"):
        model = open_settings(ModelSettings(tmp_path), said.append)
        found = sweep(model, corpus(4), ("drop",), layers=[1], tell=said.append)
    assert (found.dtype, found.device) == ("bfloat16", "cuda") and FLOOR in found.attrs
    assert len(said) == 1 and said[0].startswith("weights stay bfloat16, as in the checkpoint")


def dataset(kl, **attrs):
    """A sweep of two interventions with means of KL, (intervention, layer)."""
    kl = np.array(kl, np.float32)[..., None] * np.array([0.5, 1.5], np.float32)
    coords = {
        "intervention": ["drop", "swap"],
        "layer": range(kl.shape[1]),
        "document": ("sequence", [0, 1]),
    }
    return xr.Dataset({"kl": (("intervention", "layer", "sequence"), kl)}, coords, attrs)


def test_means_below_ten_floors_are_counted_and_the_smallest_is_named():
    some = dataset([[0.5, 0.02], [0.003, np.nan]], **{FLOOR: 1e-3, "dtype": "bfloat16"})
    said = describe_near(some)
    assert said.startswith("1 of 3 mean KLs are less than 10 times the floor of bfloat16, 0.001")
    assert "the smallest is 0.003 (swap at layer 0)" in said
    assert describe_near(some.assign_attrs({FLOOR: 1e-4})) is None
    assert describe_near(some.assign_attrs({FLOOR: 2.1e-3})).startswith("2 of 3")


def test_a_schedule_that_changes_nothing_is_near_no_floor():
    some = dataset([[0.5, 0.02], [0.0, np.nan]], **{FLOOR: 1e-3})
    assert describe_near(some) is None


def test_a_difference_and_a_file_without_kl_have_no_floor():
    some = dataset([[0.5, 0.002], [0.003, 1]], **{FLOOR: 1e-3})
    some["kl"].attrs["units"] = "nat"
    assert describe_near(some.drop_vars("kl").assign(loss=some["kl"])) is None
    assert describe_near(difference(some, "drop")) is None


def test_pairs_and_schedules_near_the_floor_are_named(tmp_path):
    model, text = half(), corpus(4)
    pairs = sweep(model, text, ("drop-pair",), out=tmp_path / "pairs.nc")
    free = sweep(model, text, schedules=["0-1-2", "0-1-3-2", "0..3"])
    for found, where in ((pairs, r"drop-pair at layer \d and \d"), (free, r"\(0\.\.")):
        large = found.assign_attrs({FLOOR: 1e3})
        number = 10 if found is pairs else 2
        assert f"{number} of {number} mean KLs" in describe_near(large)
        assert re.search(where, describe_near(large))
        assert "measure with --dtype float32" in as_text(table(large))
        draw(large)


@pytest.fixture
def run(tmp_path):
    def invoke(*words):
        done = CliRunner().invoke(COMMANDS[words[0]], words[1:], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done

    return invoke


@pytest.mark.slow
def test_commands_and_pages_say_what_is_near_the_floor_and_figures_shade_it(
    run, monkeypatch, tmp_path
):
    out = tmp_path / "sweep.nc"
    asked = ("builtin-parallel", "--tokens", "64", "--context", "32", "--swap", "--layers", "3..4")
    with monkeypatch.context() as patched:
        patched.setattr(precision_floor, "NEAR", 1e5)
        done = run("sweep", *asked, "--dtype", "float16", "--out", str(out))
        assert "warning: 2 of 2 mean KLs are less than" in done.stderr
        assert done.stderr.count("--dtype float32") == 1
        assert "--dtype float32" in run("show", str(out)).output
        report([Files(tmp_path)], ReportFiles(tmp_path / "page.html"))
        assert "sweep.nc: 2 of 2 mean KLs are less" in (tmp_path / "page.html").read_text()
    shown = run("show", str(out)).output
    assert "floor of float16 under KL: " in shown and "--dtype" not in shown
    found = netcdf.load(out)
    axis = draw(found.assign_attrs({FLOOR: 1e-3})).axes[0]
    assert "less than 10 floors of float16" in axis.get_legend_handles_labels()[1]
    assert "floors" not in str(draw(found).axes[0].get_legend_handles_labels()[1])
