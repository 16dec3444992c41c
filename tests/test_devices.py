"""Every command on devices that are not there: nothing is refused, and the numbers are the CPU's.

How often numbers cross between host and device is in `test_device_traffic`.
"""

import os
from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import pretended
import pytest
import torch
import xarray as xr
from alike import SWEPT, one_of_each
from families import BLOCKS, DEEP, LAYERS, random_tokens, tiny
from task_items import data as task_data
from task_items import plain as task_model
from test_execution import corpus
from test_metrics import OWN
from test_observation import LOCAL
from test_subjoiner import by_hand, pieces
from test_subjoiner import text as words_in_pieces
from test_suffix import text as words
from test_wic import wic
from tokenizers_for_tests import byte_tokenizer, word_level

from probes import subjoiner, suffix
from probes import wic as word_in_context
from probes.settings import SubjoinerSettings, SuffixSettings, WicSettings
from robustness.errors import Refusal
from robustness.measurements.observation import observe
from robustness.models.model import Model
from robustness.models.opening import open_model
from robustness.reordered.exporting import export
from robustness.reordered.generation import generate
from robustness.reordered.settings import Sampling
from robustness.schedules import Attention, Mlp, Parallel, clean
from robustness.schedules.plan import compile_plan
from robustness.sweeps import residuals, rewire, sweep
from robustness.tasks import TaskSettings, evaluate_tasks
from robustness.tasks.evaluation import score_batch

__all__ = ["task_data", "wic", "words", "words_in_pieces"]

pytestmark = [pytest.mark.slow, pretended.needed]

EVERY = os.environ.get("STAGES_FUZZ") == "1"

NUMBERS = {"cuda": torch.float64, "mps": torch.float32}
"""The widest type that a kind of device has."""

ROUNDING = {torch.float64: 1e-12, torch.float32: 2e-5}
"""Torch computes some functions of one operation on the CPU by several on a device."""

SCHEDULE = (0, 2, Attention(1), 1, Parallel((2, 3)), Mlp(3))
"""A schedule with a step of every kind."""


def on(*pairs: str) -> pytest.MarkDecorator:
    """Run a test on some families, each on one kind of device; on all of `DEEP` where EVERY is."""
    every = [f"{family} {kind}" for family in DEEP for kind in NUMBERS]
    chosen = [pair.split() for pair in (every if EVERY else pairs)]
    return pytest.mark.parametrize(("family", "kind"), chosen)


@pytest.fixture(params=list(NUMBERS))
def kind(request) -> str:
    return request.param


@pytest.fixture
def log(kind: str) -> Iterator[pretended.Log]:
    with pretended.machine(kind) as log:
        yield log


def there(family: str, kind: str, dtype: torch.dtype | None = None, **opening: object) -> Model:
    """Open a model of a family on a device."""
    return open_model(tiny(family, dtype or NUMBERS[kind]).to(kind), **opening)


def here(family: str, kind: str, dtype: torch.dtype | None = None, **opening: object) -> Model:
    """Open the same model on the CPU."""
    return open_model(tiny(family, dtype or NUMBERS[kind]), **opening)


def assert_close(found: xr.Dataset, wanted: xr.Dataset, off: float) -> None:
    assert set(found.data_vars) == set(wanted.data_vars)
    for name, values in wanted.data_vars.items():
        if values.dtype.kind in "fiub":
            np.testing.assert_allclose(found[name], values, rtol=off, atol=off, err_msg=name)


@on("gpt2 cuda", "gpt_neox cuda", "qwen2 mps")
def test_sweeps_are_those_of_the_cpu(family, kind, log, tmp_path):
    text = corpus(6, 10)
    asked = ("drop", "swap", "attention-drop", "mlp-drop", "parallel-2", "repeat-2")
    device, cpu = there(family, kind), here(family, kind)
    assert device.identity["device"] == kind and cpu.identity["device"] == "cpu"
    off = ROUNDING[NUMBERS[kind]]
    for index, options in enumerate((
        {"interventions": asked, "metrics": OWN},
        {"interventions": ("drop-pair", "swap-pair"), "batch_tokens": 30},
        {"schedules": (SCHEDULE, "3-2-1-0"), "per_token": True},
    )):  # fmt: skip
        paths = [tmp_path / f"{place}{index}.nc" for place in ("device", "cpu")]
        found, wanted = (
            sweep(model, text, **options, out=path)
            for model, path in zip((device, cpu), paths, strict=True)
        )
        assert_close(found, wanted, off)
        if "per_token" in options:
            of_tokens = [xr.load_dataset(path.with_suffix(".tokens.nc")) for path in paths]
            assert_close(*of_tokens, off)


@pytest.mark.parametrize("family", one_of_each(SWEPT))
@pytest.mark.parametrize("kind", list(NUMBERS) if EVERY else ["cuda"])
def test_every_kind_of_family_is_swept(family, kind, log):
    text = corpus(2, 9)
    asked = ("drop", "swap")
    found, wanted = (sweep(opened(family, kind), text, asked) for opened in (there, here))
    assert_close(found, wanted, ROUNDING[NUMBERS[kind]])


def test_a_sweep_in_bfloat16_is_that_of_the_cpu(log, kind):
    text = corpus(4, 10)
    found, wanted = (sweep(opened("llama", kind, torch.bfloat16), text) for opened in (there, here))
    assert_close(found, wanted, 0.05)


@on("gpt2 cuda", "phi cuda", "llama mps")
def test_what_is_observed_is_what_the_cpu_observes(family, kind, log):
    text = corpus(16, 12)
    asked = ("lens", "cka", "norms", "similarity", LOCAL)
    found, wanted = (observe(opened(family, kind), text, asked) for opened in (there, here))
    for name in wanted:
        # Near 1, the arc cosine doubles the error of its argument.
        assert_close(found[name], wanted[name], 10 * ROUNDING[NUMBERS[kind]])


@on("gpt2 mps", "llama cuda")
def test_rewired_models_and_their_states_are_those_of_the_cpu(family, kind, log):
    tokens, off = random_tokens(2, 9), ROUNDING[NUMBERS[kind]]
    device, cpu = there(family, kind), here(family, kind)
    logits = []
    for model in (device, cpu):
        with torch.no_grad(), rewire(model, SCHEDULE).trace(tokens) as tracer:
            made = tracer.result.logits.save()
        logits.append(made.cpu())
    torch.testing.assert_close(*logits, rtol=off, atol=off)
    found, wanted = (residuals(model, tokens, SCHEDULE) for model in (device, cpu))
    np.testing.assert_allclose(found, wanted, rtol=off, atol=off)


@on("gpt2 mps", "llama cuda")
def test_what_is_generated_and_exported_is_what_the_cpu_writes(family, kind, log, tmp_path):
    schedules = (clean(LAYERS), (0, 2, 1, 3), SCHEDULE)
    device, cpu = there(family, kind), here(family, kind)
    for sampling in (Sampling(tokens=5), Sampling(tokens=4, temperature=0.7)):
        found, wanted = (generate(model, [1, 2, 3], schedules, sampling) for model in (device, cpu))
        assert found == wanted
    for name, model in (("device", device), ("cpu", cpu)):
        export(model, (0, 2, 2, 3), tmp_path / name)
    files = [tmp_path / name / "model.safetensors" for name in ("device", "cpu")]
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize("family", DEEP if EVERY else ["gpt2", "llama"])
def test_a_model_on_two_devices_has_the_numbers_of_the_cpu(family, tmp_path):
    plain = tiny(family)
    plain.save_pretrained(tmp_path)
    word_level(101).save_pretrained(tmp_path)
    blocks, text = BLOCKS[family], corpus(16, 10)
    places = {name: "cuda:0" for name, part in plain.named_modules()
              if not list(part.children()) and not name.startswith(blocks)}  # fmt: skip
    places |= {f"{blocks}.{layer}": f"cuda:{layer % 2}" for layer in range(LAYERS)}
    # A head that is the embedding is where that is.
    tied = plain.config.tie_word_embeddings
    maps = [places] if tied else [places, places | {"lm_head": "cuda:1"}]
    names = ("drop", "swap", "parallel-2", "attention-drop")
    asked = ("lens", "cka", "norms", "similarity", LOCAL)
    cpu = open_model(tmp_path, dtype="auto")
    swept, observed = sweep(cpu, text, names), observe(cpu, text, asked)
    with pretended.machine("cuda", 2) as log:
        for device_map in maps:
            model = open_model(tmp_path, dtype="auto", device_map=device_map)
            assert len({part.device for part in model.traced._module.parameters()}) == 2
            assert_close(sweep(model, text, names), swept, 1e-12)
        for name, found in observe(model, text, asked).items():
            assert_close(found, observed[name], 1e-11)
        assert log.kinds()[pretended.BETWEEN] > 0


@pytest.fixture
def unfitted(monkeypatch) -> None:
    """Probes end with what they capture."""
    for module, name in ((suffix, "fit_groups"), (word_in_context, "fit_depths")):
        monkeypatch.setattr(module, name, lambda dataset, *_: dataset)
    monkeypatch.setattr(subjoiner, "score_heads", lambda dataset, *_: dataset)


def test_probes_capture_what_they_capture_on_the_cpu(
    kind, log, unfitted, words, wic, words_in_pieces
):
    off = ROUNDING[NUMBERS[kind]]
    device, cpu = (opened("gpt2", kind, tokenizer=word_level(101)) for opened in (there, here))
    asked = SuffixSettings(words, suffix="7", items=400)
    net = tiny("gpt2", NUMBERS[kind])
    found, wanted = (suffix.probe_suffix(model, net, asked) for model in (device, cpu))
    assert_close(found, wanted, off)
    found, wanted = (word_in_context.probe_wic(model, WicSettings(wic)) for model in (device, cpu))
    assert_close(found, wanted, off)
    cpu = by_hand()
    device = open_model(by_hand().traced._module.to(kind), tokenizer=cpu.tokenizer)
    asked = SubjoinerSettings(words_in_pieces, pieces=pieces(), items=60)
    found, wanted = (subjoiner.probe_subjoiner(model, asked) for model in (device, cpu))
    assert_close(found, wanted, off)


def test_continuations_are_scored_as_on_the_cpu(kind, log):
    random = random_tokens(1, 60)[0].tolist()
    requests = [(random[at : at + 7], random[at + 7 : at + 9]) for at in range(0, 50, 10)]
    schedules, scores = [clean(LAYERS), (0, 2, 1, 3), SCHEDULE], []
    for model in (there("gpt2", kind), here("gpt2", kind)):
        prepared = SimpleNamespace(model=model, requests=requests, order=range(5), longest=20)
        plan = compile_plan(schedules, clean(LAYERS), cap=8)
        scores.append(score_batch(prepared, slice(0, 5), plan, model.unembedding()))
    off = ROUNDING[NUMBERS[kind]]
    np.testing.assert_allclose(scores[0]["loglikelihood"], scores[1]["loglikelihood"], atol=off)
    np.testing.assert_array_equal(scores[0]["greedy"], scores[1]["greedy"])


@pytest.mark.skipif(not EVERY, reason="loads the harness: with STAGES_FUZZ=1")
def test_tasks_have_the_metrics_that_they_have_on_the_cpu(kind, log, task_data):
    settings = TaskSettings(("lambada_openai", "hellaswag"), ("drop",), data=task_data, limit=4)
    found, wanted = (
        evaluate_tasks(open_model(net, tokenizer=byte_tokenizer()), settings)
        for net in (task_model.__wrapped__().to(kind), task_model.__wrapped__())
    )
    assert_close(found, wanted, 1e-4)


def test_commands_take_a_device_and_find_the_first_of_cuda(kind, run, llama, stories):
    text = ("--data", stories, "--context", 16, "--tokens", 256)
    asked = {
        "sweep": (*text, "--drop", "--per-token", "--out", "{}/sweep.nc"),
        "observe": ("lens", "norms", *text, "--out", "{}/observe"),
        "generate": ("Once", "--tokens", 3, "--schedule", "0-2-1-3"),
    }
    said, plain = {}, ("--dtype", "float32", "--quiet")
    with pretended.machine(kind) as log:
        for place in (kind, "cpu"):
            chosen = () if (place, kind) == ("cuda", "cuda") else ("--device", place)
            for command, words in asked.items():
                words = (str(word).format(place) for word in words)
                code, said[place, command], err = run(command, llama, *words, *chosen, *plain)
                assert (code, err) == (0, ""), err
            assert bool(log.events) == (place == kind)
            log.clear()
    assert said[kind, "generate"] == said["cpu", "generate"]
    for name in ("sweep", "sweep.tokens", "observe/lens", "observe/norms"):
        found, wanted = (xr.load_dataset(f"{place}/{name}.nc") for place in (kind, "cpu"))
        assert (found.device, wanted.device) == (kind, "cpu")
        assert_close(found, wanted, ROUNDING[torch.float32])


def test_a_checkpoint_of_a_type_that_the_device_lacks_is_refused(llama):
    with pretended.machine("mps"):
        for options in ({}, {"dtype": "auto"}, {"dtype": "float64"}):
            with pytest.raises(Refusal, match="device 'mps' has no float64: give `dtype` float32"):
                open_model(llama, device="mps", **options)
        assert open_model(llama, device="mps", dtype="float32").identity["dtype"] == "float32"
