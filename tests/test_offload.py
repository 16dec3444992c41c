"""Models whose weights are loaded from memory or disk for each call, by accelerate."""

from collections import Counter

import numpy as np
import pytest
import torch
import xarray as xr
from accelerate import cpu_offload
from accelerate.hooks import AlignDevicesHook
from families import BLOCKS, DIFFERENT, LAYERS, random_tokens, rebuilt, tiny
from test_execution import corpus
from tokenizers_for_tests import word_level
from transformers import AutoModelForCausalLM

from robustness.errors import Refusal
from robustness.measurements.observation import observe
from robustness.models.model import Model
from robustness.models.opening import open_model
from robustness.models.weight_processing import process
from robustness.reordered.exporting import export
from robustness.reordered.generation import generate
from robustness.reordered.settings import Sampling
from robustness.schedules import clean, swap
from robustness.schedules.interventions import schedules
from robustness.schedules.plan import RUN, compile_plan
from robustness.sweeps import residuals, rewire, sweep

MEASURED = ("lens", "cka", "norms", "similarity")


@pytest.fixture(scope="session", params=DIFFERENT)
def family(request) -> str:
    """One of those that differ in where weights are, and in who asks for them."""
    return request.param


@pytest.fixture(scope="session")
def plain(family) -> torch.nn.Module:
    # Of its own: the one of all tests would stay that of a family of this file in the next.
    return tiny(family)


@pytest.fixture(scope="session")
def saved(family, tmp_path_factory):
    """A model of a family on the disk."""
    path = tmp_path_factory.mktemp("models") / family
    tiny(family).save_pretrained(path)
    word_level(101).save_pretrained(path)
    return path


@pytest.fixture
def offloaded(saved) -> Model:
    model = open_model(saved, dtype="auto", device_map="disk")
    assert {weight.device.type for weight in model.traced._module.parameters()} == {"meta"}
    return model


@pytest.fixture
def loads(monkeypatch):
    """Counts how often the weights of a part are loaded."""
    counted = Counter()
    original = AlignDevicesHook.pre_forward

    def counting(hook, module, *args, **kwargs):
        counted[module] += hook.offload
        return original(hook, module, *args, **kwargs)

    monkeypatch.setattr(AlignDevicesHook, "pre_forward", counting)
    return counted


def assert_same(one: xr.Dataset, other: xr.Dataset) -> None:
    assert set(one.data_vars) == set(other.data_vars)
    for name in one.data_vars:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


@pytest.mark.slow
def test_a_sweep_from_the_disk_is_bit_for_bit_that_from_memory(offloaded, saved):
    text = corpus()
    here = sweep(open_model(saved, dtype="auto"), text, ("drop", "swap", "repeat-2"))
    there = sweep(offloaded, text, ("drop", "swap", "repeat-2"))
    assert_same(here, there)
    assert here.kl.sel(intervention="drop").mean() > 0.1
    assert there.attrs["device_map"] == "disk" and there.attrs["device"] == "cpu"
    assert "device_map" not in here.attrs
    assert there.attrs["weights_sha256"] == here.attrs["weights_sha256"]


@pytest.mark.slow
@pytest.mark.parametrize(("interventions", "visits"), [(("drop",), 1), (("drop", "swap"), 2)])
def test_a_batch_loads_each_weight_of_a_block_so_often_and_once_for_the_clean_run(
    offloaded, family, loads, interventions, visits
):
    module = offloaded.traced._module
    sweep(offloaded, corpus(), interventions, batch_tokens=1000, state_cap=100)
    runs = list(schedules(interventions, LAYERS).values())
    planned = Counter(
        step for kind, step, *_ in compile_plan(runs, clean(LAYERS), cap=100).rows if kind == RUN
    )
    assert max(planned.values()) == visits
    for index, block in enumerate(module.get_submodule(BLOCKS[family])):
        found = {loads[part] for part in block.modules() if part._parameters}
        assert found == {1 + planned[index]}
    assert loads[module.get_output_embeddings()] == 1, "the head is read once, for the whole run"


@pytest.mark.slow
def test_what_is_rewired_observed_and_generated_is_the_same(offloaded, saved, plain):
    here = open_model(saved, dtype="auto")
    tokens, schedule = random_tokens(2, 9), (0, 2, 1, 1)
    with torch.no_grad(), rewire(offloaded, schedule).trace(tokens) as tracer:
        logits = tracer.result.logits.save()
    with torch.no_grad():
        expected = rebuilt(plain, schedule)(tokens, use_cache=False).logits
    torch.testing.assert_close(logits, expected, atol=1e-10, rtol=0)
    xr.testing.assert_equal(
        residuals(offloaded, tokens, schedule), residuals(here, tokens, schedule)
    )
    text = corpus(sequences=32)
    found, wanted = (observe(model, text, MEASURED) for model in (offloaded, here))
    for name in wanted:
        assert_same(found[name], wanted[name])
    prompt = [1, 2, 3]
    assert generate(offloaded, prompt, [schedule], Sampling(tokens=6)) == generate(
        here, prompt, [schedule], Sampling(tokens=6)
    )


def test_parts_may_be_in_different_places(saved, family, plain):
    prefix = BLOCKS[family]
    places = {name: "cpu" for name, part in plain.named_modules()
              if not list(part.children()) and not name.startswith(prefix)}  # fmt: skip
    places |= {f"{prefix}.{index}": "disk" if index % 2 else "cpu" for index in range(LAYERS)}
    model = open_model(saved, dtype="auto", device_map=places)
    kinds = [
        {weight.device.type for weight in block._module.parameters()} for block in model.blocks
    ]
    assert kinds == [{"cpu"}, {"meta"}] * (LAYERS // 2)
    assert f"{prefix}.1: disk" in model.identity["device_map"]
    text = corpus()
    assert_same(sweep(model, text), sweep(open_model(saved, dtype="auto"), text))


@pytest.mark.parametrize("name", ["auto", "cpu"])
def test_without_a_gpu_a_model_with_room_is_in_memory(saved, name):
    model = open_model(saved, dtype="auto", device_map=name)
    assert not model.offloaded and model.identity["device_map"] == name
    assert generate(model, [1, 2], [clean(LAYERS)], Sampling(tokens=2))


def test_a_module_that_was_offloaded_before_is_used_as_it_is(family):
    kept = open_model(tiny(family))
    module = tiny(family)
    # Tied weights are kept twice by accelerate; none of these families counts on them.
    cpu_offload(module, execution_device="cpu")
    model = open_model(module)
    assert model.offloaded
    assert model.identity["weights_sha256"] == kept.identity["weights_sha256"]
    text = corpus()
    assert_same(sweep(model, text), sweep(kept, text))


def test_a_dispatched_module_keeps_its_map(saved):
    module = AutoModelForCausalLM.from_pretrained(saved, dtype="auto", device_map={"": "disk"})
    model = open_model(module)
    assert module.hf_device_map == {"": "disk"} and model.offloaded


def test_what_needs_all_weights_is_refused(offloaded, tmp_path):
    with pytest.raises(Refusal, match=r"weights of .* are offloaded: open it without a device map"):
        export(offloaded, swap(clean(LAYERS), 1), tmp_path / "out")
    with pytest.raises(Refusal, match="are offloaded: open it without a device map"):
        process(offloaded)
    assert not list(tmp_path.iterdir())


def test_maps_that_cannot_be_are_refused(saved):
    for options, problem in (
        ({"device_map": "gpu"}, "no device map 'gpu'; there are: auto, balanced, sequential"),
        ({"device_map": "auto", "device": "cpu"}, "leave out `device`"),
        ({"device_map": "auto", "remote": True}, "leave out `device_map`"),
        ({"device_map": {"nothing": "cpu"}}, "has no part 'nothing'"),
        ({"device_map": {"": 9}}, "device 'cuda:9' cannot be used"),
    ):
        with pytest.raises(Refusal, match=problem) as refused:
            open_model(saved, **options)
        assert "\n" not in str(refused.value)
    with pytest.raises(Refusal, match="a module is used as it is"):
        open_model(tiny("gpt2"), device_map="auto")


@pytest.mark.slow
def test_the_command_takes_a_map(run, llama, stories):
    words = ("sweep", llama, "--data", stories, "--context", 32, "--tokens", 300, "--drop")
    assert run(*words, "--out", "here.nc")[0] == 0
    code, _, err = run(*words, "--device-map", "disk", "--out", "there.nc", "--quiet")
    assert (code, err) == (0, "")
    here, there = xr.load_dataset("here.nc"), xr.load_dataset("there.nc")
    assert_same(here, there)
    assert there.device_map == "disk"
    code, _, err = run(*words, "--device-map", "disk", "--device", "cpu")
    assert code == 2 and "leave out --device" in err
    code, _, err = run(*words, "--offload", "somewhere")
    assert code == 2 and "--offload goes with --device-map" in err
    code, _, err = run("sweep", "a/b", "--remote", "--device-map", "auto")
    assert code == 2 and "leave out --device-map" in err
