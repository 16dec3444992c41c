"""Every command on a device: nothing is refused, and the numbers are as good as the CPU's.

How often numbers cross between host and device is in `test_device_traffic`.
"""

from types import SimpleNamespace

import pretended
import pytest
import torch
import xarray as xr
from alike import SWEPT, one_of_each
from device_cases import EVERY, NOT_THERE, case_of, compare, compare_made, device, labelled, on
from families import LAYERS, SPECS, random_tokens, tiny
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

SCHEDULE = (0, 2, Attention(1), 1, Parallel((2, 3)), Mlp(3))
"""A schedule with a step of every kind."""

SCHEDULES = [clean(LAYERS), (0, 2, 1, 3), SCHEDULE]

SWEEPS = {
    "layers": {
        "interventions": ("drop", "swap", "attention-drop", "mlp-drop", "parallel-2", "repeat-2"),
        "metrics": OWN,
    },
    "pairs": {"interventions": ("drop-pair", "swap-pair"), "batch_tokens": 30},
    "schedules": {"schedules": (SCHEDULE, "3-2-1-0"), "per_token": True},
}

WIDE = ("float64", "float32")
"""Types in which the likeliest token is the same everywhere."""

FEW = on("gpt2 cuda float64", "llama mps float32")


@on("gpt2 cuda float64", "gpt_neox cuda bfloat16", "qwen2 mps float32", "llama cuda float32")
def test_sweeps_have_the_numbers_of_the_cpu(case, tmp_path):
    text = corpus(6, 10)

    def measure(model: Model) -> dict[str, xr.Dataset]:
        made = {}
        for name, options in SWEEPS.items():
            path = tmp_path / f"{model.device.type}-{model.identity['dtype']}-{name}.nc"
            made[name] = sweep(model, text, **options, out=path)
        # Its path is that of the last sweep.
        made["tokens"] = xr.load_dataset(path.with_suffix(".tokens.nc"))
        return made

    assert case.there().identity["device"] == case.kind
    compare(case, measure)


@pytest.mark.parametrize(
    "case",
    [
        *(
            pytest.param(case_of(f"{family} cuda float64"), marks=NOT_THERE)
            for family in one_of_each(SWEPT)
        ),
        *(
            pytest.param(case_of(f"{family} cuda float32", False), marks=pytest.mark.gpu)
            for family in SPECS
        ),
    ],
    ids=lambda case: f"{case.family}{' not' if case.pretended else ''}",
    indirect=True,
)  # fmt: skip
def test_every_kind_of_family_is_swept(case):
    text = corpus(2, 9)
    compare(case, lambda model: {"sweep": sweep(model, text, ("drop", "swap"))})


@on("gpt2 cuda float64", "phi cuda bfloat16", "llama mps float32")
def test_what_is_observed_is_what_the_cpu_observes(case):
    text, asked = corpus(16, 12), ("lens", "cka", "norms", "similarity", LOCAL)
    compare(case, lambda model: observe(model, text, asked))


@FEW
def test_rewired_models_and_their_states_are_those_of_the_cpu(case):
    tokens = random_tokens(2, 9)

    def measure(model: Model) -> dict[str, xr.Dataset]:
        with torch.no_grad(), rewire(model, SCHEDULE).trace(tokens) as tracer:
            made = tracer.result.logits.save()
        logits, states = made.cpu().double(), residuals(model, tokens, SCHEDULE)
        return {"rewired": labelled(logits=logits, states=states)}

    compare(case, measure)


@on("gpt2 mps float32", "llama cuda float64", types=WIDE)
def test_what_is_generated_and_exported_is_what_the_cpu_writes(case, tmp_path):
    models = case.there(), case.here()
    found, wanted = (generate(model, [1, 2, 3], SCHEDULES, Sampling(tokens=5)) for model in models)
    assert found == wanted
    random = Sampling(tokens=4, temperature=0.7)
    found, again, wanted = (
        generate(model, [1, 2, 3], SCHEDULES, random) for model in (models[0], *models)
    )
    # A real device has random numbers of its own.
    assert found == again and (found == wanted or not case.pretended)
    for name, model in zip(("device", "cpu"), models, strict=True):
        export(model, (0, 2, 2, 3), tmp_path / name)
    files = [tmp_path / name / "model.safetensors" for name in ("device", "cpu")]
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.fixture
def unfitted(monkeypatch) -> None:
    """Probes end with what they capture."""
    for module, name in ((suffix, "fit_groups"), (word_in_context, "fit_depths")):
        monkeypatch.setattr(module, name, lambda dataset, *_: dataset)
    monkeypatch.setattr(subjoiner, "score_heads", lambda dataset, *_: dataset)


@on("gpt2 cuda float64", "gpt2 mps float32", families=["gpt2"])
def test_probes_capture_what_they_capture_on_the_cpu(case, unfitted, words, wic, words_in_pieces):
    asked = SuffixSettings(words, suffix="7", items=400)
    # Neurons are chosen by weights that are folded on the CPU.
    net = tiny(case.family, case.dtype)

    def measure(model: Model) -> dict[str, xr.Dataset]:
        found = word_in_context.probe_wic(model, WicSettings(wic))
        return {"wic": found, "suffix": suffix.probe_suffix(model, net, asked)}

    compare(case, measure, tokenizer=word_level(101))
    of_heads = SubjoinerSettings(words_in_pieces, pieces=pieces(), items=60)
    cpu = by_hand()
    rounded = cpu.traced._module.to(case.dtype)
    exact = by_hand().traced._module.to(case.dtype).double()
    made = [
        {"heads": subjoiner.probe_subjoiner(open_model(net, tokenizer=cpu.tokenizer), of_heads)}
        for net in (by_hand().traced._module.to(case.kind, case.dtype), rounded, exact)
    ]
    compare_made(case, *made)


@FEW
def test_continuations_are_scored_as_on_the_cpu(case):
    random = random_tokens(1, 60)[0].tolist()
    requests = [(random[at : at + 7], random[at + 7 : at + 9]) for at in range(0, 50, 10)]

    def measure(model: Model) -> dict[str, xr.Dataset]:
        prepared = SimpleNamespace(model=model, requests=requests, order=range(5), longest=20)
        plan = compile_plan(SCHEDULES, clean(LAYERS), cap=8)
        scores = score_batch(prepared, slice(0, 5), plan, model.unembedding())
        return {"scores": labelled(**scores)}

    compare(case, measure)


@on(*(["gpt2 cuda float32"] if EVERY else []), families=["gpt2"], types=["float32"])
def test_tasks_have_the_metrics_that_they_have_on_the_cpu(case, task_data):
    pytest.importorskip("lm_eval")
    settings = TaskSettings(("lambada_openai", "hellaswag"), ("drop",), data=task_data, limit=4)
    make = task_model.__wrapped__
    made = [
        {"tasks": evaluate_tasks(open_model(net, tokenizer=byte_tokenizer()), settings)}
        for net in (make().to(case.kind), make(), make().double())
    ]
    compare_made(case, *made)


@on("gpt2 cuda float32", "gpt2 mps float32", families=["gpt2"], types=["float32"])
def test_commands_take_a_device_and_find_the_first_of_cuda(case, run, llama, stories):
    kind, text = case.kind, ("--data", stories, "--context", 16, "--tokens", 256)
    asked = {
        "sweep": (*text, "--drop", "--per-token", "--out", "{}/sweep.nc"),
        "observe": ("lens", "norms", *text, "--out", "{}/observe"),
        "generate": ("Once", "--tokens", 3, "--schedule", "0-2-1-3"),
    }
    said, plain = {}, ("--dtype", "float32", "--quiet")
    for place in (kind, "cpu"):
        chosen = () if place == "cuda" else ("--device", place)
        for command, given in asked.items():
            given = (str(word).format(place) for word in given)
            pretended.LOG.clear()
            code, said[place, command], err = run(command, llama, *given, *chosen, *plain)
            assert (code, err) == (0, ""), err
            assert not case.pretended or bool(pretended.LOG.events) == (place == kind)
    assert said[kind, "generate"] == said["cpu", "generate"]
    for name in ("sweep", "sweep.tokens", "observe/lens", "observe/norms"):
        found, near = ({name: xr.load_dataset(f"{place}/{name}.nc")} for place in (kind, "cpu"))
        assert (found[name].device, near[name].device) == (kind, "cpu")
        compare_made(case, found, near, near)


@pretended.needed
@pytest.mark.slow
def test_a_checkpoint_of_a_type_that_the_device_lacks_is_refused(llama):
    with device("mps", True):
        for options in ({}, {"dtype": "auto"}, {"dtype": "float64"}):
            with pytest.raises(Refusal, match="device 'mps' has no float64: give `dtype` float32"):
                open_model(llama, device="mps", **options)
        assert open_model(llama, device="mps", dtype="float32").identity["dtype"] == "float32"
