"""A pruned model is trained towards its original, and comes to the same end wherever it stops."""

import json
import random
import sys
from dataclasses import replace
from types import SimpleNamespace

import kills
import numpy as np
import pytest
import torch
import xarray as xr
from click.testing import CliRunner
from safetensors.torch import load_file
from tokenizers_for_tests import byte_tokenizer
from torch.nn import functional
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from recipes import training
from recipes.commands.heal import heal as command
from recipes.training import Distillation, TrainingOptions, distill, distilling
from recipes.training.adapters import count
from recipes.training.divergence import divergence
from recipes.training.loop import train
from recipes.training.state import CHECKPOINT, Course
from recipes.training.text import encode, read, share
from robustness.errors import Refusal
from robustness.files.manifest import MANIFEST
from robustness.models.opening import open_model
from robustness.reordered.exporting import export

SMALL = Distillation(steps=6, batch=3, context=16, warmup=2, held_out=0.3)

pytestmark = pytest.mark.filterwarnings("ignore:.*pkg_resources.*", "ignore:.*torchao.*")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A directory with a teacher in float32, a student without its second block, and a text."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("distillation")
    config = GPT2Config(
        vocab_size=257, n_positions=24, n_embd=16, n_layer=3, n_head=2, bos_token_id=0,
        eos_token_id=0, initializer_range=0.3,
    )  # fmt: skip
    GPT2LMHeadModel(config).save_pretrained(path / "teacher")
    byte_tokenizer().save_pretrained(path / "teacher")
    export(open_model(path / "teacher"), "0-2", path / "student")
    words = random.Random(0)
    rows = []
    for _ in range(12):
        text = " ".join(words.choices(["the", "sea", "hill", "moon", "and", "rain"], k=12))
        rows.append(json.dumps({"text": text}) + "\n")
    (path / "text.jsonl").write_text("".join(rows))
    return path


def heal(place, out, settings=SMALL, student="student", **options):
    return distill(
        place / student, place / "teacher", [place / "text.jsonl"], out, settings,
        TrainingOptions(**{"checkpoint_every": 2, **options}),
    )  # fmt: skip


def opened(place, settings, student="student"):
    """A student and a teacher with their losses, before any step."""
    pair = [open_model(place / name, dtype="float32") for name in (student, "teacher")]
    source = read(place / "text.jsonl", seed=0, held_out=settings.held_out)
    data = encode([source], share([], 1), settings.context, pair[0].tokenizer)
    return distilling._trainee(settings, data, *pair), data, *pair


def test_the_divergence_is_torchs_and_its_gradient_is_0_where_nothing_differs():
    torch.manual_seed(0)
    student = torch.randn(5, 11, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(5, 11, dtype=torch.float64)
    own = divergence(student, teacher, 1.7)
    expected = 1.7**2 * functional.kl_div(
        (student / 1.7).log_softmax(-1), (teacher / 1.7).log_softmax(-1),
        reduction="sum", log_target=True,
    )  # fmt: skip
    assert own.item() == pytest.approx(expected.item(), rel=1e-12)
    gradients = [torch.autograd.grad(value, student)[0] for value in (own, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-14)
    same = teacher.float().requires_grad_()
    nothing = divergence(same, teacher.float())
    (gradient,) = torch.autograd.grad(nothing, same)
    assert nothing.item() == 0 and not gradient.any()


@pytest.mark.slow
@pytest.mark.parametrize("at_once", [1, 10**9])
def test_the_gradient_of_a_batch_is_that_of_plain_torch(place, monkeypatch, at_once):
    settings = replace(SMALL, kl_weight=0.7, temperature=2.0)
    monkeypatch.setattr(distilling, "LOGITS", at_once)
    trainee, data, learner, original = opened(place, settings)
    tokens = data.batch(0, seed=0, size=settings.batch, context=settings.context)
    loss = trainee.learn(tokens)
    net = AutoModelForCausalLM.from_pretrained(place / "student", dtype=torch.float32).eval()
    logits = net(tokens).logits[:, :-1].flatten(0, 1)
    with torch.no_grad():
        target = original.traced._module(tokens).logits[:, :-1].flatten(0, 1)
    kl = functional.kl_div(
        (logits / 2).log_softmax(-1), (target / 2).log_softmax(-1),
        reduction="batchmean", log_target=True,
    )  # fmt: skip
    expected = 0.7 * 4 * kl + 0.3 * functional.cross_entropy(logits, tokens[:, 1:].flatten())
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    own = dict(learner.traced._module.named_parameters())
    assert expected.item() > 0.1
    for name, parameter in net.named_parameters():
        torch.testing.assert_close(own[name].grad, parameter.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_a_model_that_lost_nothing_stays_as_it_is(place, tmp_path):
    log = heal(place, tmp_path / "out", replace(SMALL, kl_weight=1.0), student="teacher")
    assert not log.held_out_kl.any() and not log.loss.any()
    assert log.evaluation.values.tolist() == [0, 2, 4, 6]
    before, after = (
        load_file(where / "model.safetensors") for where in (place / "teacher", tmp_path / "out")
    )
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.slow
def test_a_model_that_lost_a_block_comes_closer(place, tmp_path):
    settings = replace(SMALL, steps=40, batch=8, highest_rate=5e-3)
    log = heal(place, tmp_path / "out", settings, checkpoint_every=20)
    kl = log.held_out_kl.values[:, 0]
    assert log.evaluation.values.tolist() == [0, 20, 40] and kl[2] < kl[1] < 0.7 * kl[0]
    # What the log says of the beginning and the end is what plain models compute.
    source = read(place / "text.jsonl", seed=0, held_out=0.3)
    windows = encode([source], share([], 1), 16, byte_tokenizer()).windows(0, 16)
    nets = [
        AutoModelForCausalLM.from_pretrained(where).eval()
        for where in (place / "teacher", place / "student", tmp_path / "out")
    ]
    with torch.no_grad():
        teacher, *rest = [net(windows).logits[:, :-1].log_softmax(-1) for net in nets]
    for logits, row in zip(rest, (0, -1), strict=True):
        expected = (teacher.exp() * (teacher - logits)).sum(-1).mean()
        assert kl[row] == pytest.approx(float(expected), rel=1e-4)
        loss = functional.nll_loss(logits.flatten(0, 1), windows[:, 1:].flatten())
        assert float(log.held_out_loss[row, 0]) == pytest.approx(float(loss), rel=1e-4)


@pytest.mark.slow
def test_a_stopped_training_comes_to_the_end_of_an_undisturbed_one(place, tmp_path):
    whole = heal(place, tmp_path / "whole")

    def stop(step, *_):
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        heal(place, tmp_path / "cut", progress=stop)
    assert [path.name for path in (tmp_path / "cut").iterdir()] == [CHECKPOINT]
    steps = []
    resumed = heal(place, tmp_path / "cut", progress=lambda step, *_: steps.append(step))
    assert steps == [3, 4, 5, 6]
    xr.testing.assert_equal(whole, resumed)
    for name in ("model.safetensors", "config.json"):
        left, right = ((tmp_path / run / name).read_bytes() for run in ("whole", "cut"))
        assert left == right
    said = []
    again = heal(place, tmp_path / "cut", tell=said.append)
    xr.testing.assert_identical(again, resumed)
    assert said == [f"{tmp_path / 'cut'} holds this model already: nothing is trained"]
    with pytest.raises(Refusal, match="trained with steps 6, not 7: choose another directory"):
        heal(place, tmp_path / "cut", replace(SMALL, steps=7))


@pytest.mark.slow
def test_a_killed_training_comes_to_the_same_end(place, tmp_path):
    words = [
        "heal", place / "student", "--teacher", place / "teacher", "--data", place / "text.jsonl",
        "--out", "new/model", "--steps", 3, "--batch", 2, "--context", 16, "--quiet",
    ]  # fmt: skip
    empty = tmp_path / "empty"
    empty.mkdir()
    assert kills.survives(words, empty, tmp_path, most=1, volatile=[MANIFEST])


@pytest.mark.slow
def test_blocks_that_repeat_and_tied_embeddings_are_trained(place, tmp_path):
    half = open_model(place / "teacher", dtype="float16")
    export(half, "0-1-1-2", tmp_path / "repeating")
    before = {path.name: path.read_bytes() for path in (tmp_path / "repeating").iterdir()}
    settings = replace(SMALL, highest_rate=1e-2)
    log = distill(
        tmp_path / "repeating",
        place / "teacher",
        [place / "text.jsonl"],
        tmp_path / "out",
        settings,
    )
    assert log.held_out_kl.values[-1] < log.held_out_kl.values[0]
    assert {path.name: path.read_bytes() for path in (tmp_path / "repeating").iterdir()} == before
    net = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert net.dtype == torch.float16 and len(net.transformer.h) == 4
    assert net.lm_head.weight is net.transformer.wte.weight
    first, second = (net.transformer.h[at].mlp.c_fc.weight for at in (1, 2))
    assert not torch.equal(first, second)
    origin = json.loads((tmp_path / "out" / "config.json").read_text())["stages"]
    assert origin["schedule"] == "0-1-1-2" and origin["teacher"] == "teacher"
    assert origin["trained"] == "all weights, 6 steps" and origin["teacher_weights_sha256"]
    card = (tmp_path / "out" / "README.md").read_text()
    kl = log.held_out_kl.values[[0, -1], 0]
    assert "`0-1-1-2`" in card and f"| {kl[0]:.3f} | {kl[1]:.3f} |" in card
    # A model that was healed is opened as any other, and may be healed further.
    assert open_model(tmp_path / "out").layers == 4


REFUSED = {
    "no directory": ({"student": "nowhere"}, "there is no directory"),
    "another tokenizer": ({"teacher": "other"}, "other has another tokenizer than student"),
    "more tokens": ({"teacher": "wide"}, "wide predicts 300 tokens, and student 257"),
    "a short teacher": ({"settings": replace(SMALL, context=32)}, "takes 24 tokens.*`context`"),
    "a short text": ({"text": "short.jsonl"}, "tokens .*, fewer than one sequence of 16"),
    "the student itself": ({"out": "student"}, "stays as it is: choose another place"),
    "a steep rate": ({"settings": replace(SMALL, highest_rate=1e38)}, "lower `learning_rate`"),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_trained_is_refused(place, tmp_path, case):
    chosen, message = REFUSED[case]
    if case == "another tokenizer":
        rules = json.loads((place / "teacher" / "tokenizer.json").read_text())
        vocabulary = rules["model"]["vocab"]
        # As many tokens, and the same ones, of which two have changed places.
        one, two = list(vocabulary)[60:62]
        vocabulary[one], vocabulary[two] = vocabulary[two], vocabulary[one]
        copy_of(place / "teacher", tmp_path / "other")
        (tmp_path / "other" / "tokenizer.json").write_text(json.dumps(rules))
    elif case == "more tokens":
        net = AutoModelForCausalLM.from_pretrained(place / "teacher")
        net.resize_token_embeddings(300, mean_resizing=False)
        net.save_pretrained(tmp_path / "wide")
        byte_tokenizer().save_pretrained(tmp_path / "wide")
    (tmp_path / "short.jsonl").write_text('{"text": "a"}\n{"text": "b"}\n')
    copy_of(place / "student", tmp_path / "student")
    teacher = tmp_path / chosen["teacher"] if "teacher" in chosen else place / "teacher"
    text = tmp_path / chosen["text"] if "text" in chosen else place / "text.jsonl"
    with pytest.raises(Refusal, match=message) as refused:
        distill(
            tmp_path / chosen.get("student", "student"), teacher, [text],
            tmp_path / chosen.get("out", "out"), chosen.get("settings", SMALL),
        )  # fmt: skip
    assert "\n" not in str(refused.value)
    assert not list((tmp_path / "out").glob("model*"))


@pytest.mark.parametrize("last", ["learn", "evaluate"])
def test_memory_that_runs_out_is_told_in_one_line(place, tmp_path, last):
    trainee, data, *_ = opened(place, SMALL)

    def fail(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    course = Course(tmp_path / CHECKPOINT, "distillation", {})
    with pytest.raises(Refusal, match="memory ran out: lower `batch` or `context`, or train adap"):
        train(course, replace(trainee, **{last: fail}), data, SMALL, TrainingOptions())
    assert not list(tmp_path.iterdir())


def test_adapters_that_are_too_large_are_refused_before_they_are_made(place, monkeypatch):
    _, _, learner, _ = opened(place, SMALL)
    # Of the narrowest matrices, 16 × 16.
    with pytest.raises(Refusal, match=r"rank of 16 at most, .*not `lora` 100000"):
        distilling._check_memory(replace(SMALL, lora=100000), learner)
    # In each of two blocks 16 × 48, 16 × 16, 16 × 64 and 64 × 16; weight, gradient, two moments.
    needed = 16 * 16 * 2 * (64 + 32 + 80 + 80)
    for free in (needed, needed - 1):
        memory = SimpleNamespace(available=free)
        monkeypatch.setattr(distilling.psutil, "virtual_memory", lambda now=memory: now)
        if free == needed:
            distilling._check_memory(replace(SMALL, lora=16), learner)
    with pytest.raises(Refusal, match=r"adapters of rank 16 take .* are free: lower `lora`"):
        distilling._check_memory(replace(SMALL, lora=16), learner)


@pytest.mark.slow
def test_adapters_have_as_many_weights_as_were_counted(place):
    pytest.importorskip("peft")
    trainee, _, learner, _ = opened(place, SMALL)
    counted = count(learner, 3)
    trainee, *_ = opened(place, replace(SMALL, lora=3))
    trained = [part for part in trainee.model.parameters() if part.requires_grad]
    assert sum(part.numel() for part in trained) == counted


@pytest.mark.slow
def test_a_teacher_that_a_student_was_not_made_of_is_told_of(place, tmp_path):
    told = []
    settings = replace(SMALL, steps=1)
    heal(place, tmp_path / "one", settings, tell=told.append)
    # The same weights at another path are the same model.
    copy_of(place / "teacher", tmp_path / "moved")
    text = [place / "text.jsonl"]
    options = TrainingOptions(tell=told.append)
    distill(place / "student", tmp_path / "moved", text, tmp_path / "two", settings, options)
    assert not told
    net = AutoModelForCausalLM.from_pretrained(place / "teacher")
    net.transformer.wte.weight.data[0] += 1
    for where in (tmp_path / "other", tmp_path / "elsewhere" / "teacher"):
        net.save_pretrained(where)
        byte_tokenizer().save_pretrained(where)
        out = tmp_path / f"out-{where.parent.name}"
        log = distill(place / "student", where, text, out, settings, options)
        assert log.sizes["step"] == 1
    others = {"other": "teacher", "teacher": "teacher with other weights"}
    assert told == [
        f"student was made of {made_of}, and is trained towards {name}"
        for name, made_of in others.items()
    ]


@pytest.mark.parametrize(
    ("given", "beside"),
    [(".", "../ex-healed"), ("sub/..", "../ex-healed"), ("sub", "sub-healed"), ("/", None)],
)
def test_a_healed_model_is_written_beside_the_pruned_one(tmp_path, monkeypatch, given, beside):
    (tmp_path / "ex" / "sub").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "ex")
    written = []
    monkeypatch.setattr(training, "distill", lambda *given, **_: written.append(given[3]) or 1 / 0)
    made = CliRunner().invoke(command, [given, "--teacher", "builtin", "--data", "builtin"])
    if beside is None:
        assert isinstance(made.exception, Refusal) and not written
        assert str(made.exception) == "nothing can be written beside /: say where with `out`"
    else:
        assert isinstance(made.exception, ZeroDivisionError)
        assert [path.resolve() for path in written] == [(tmp_path / "ex" / beside).resolve()]


def copy_of(directory, target):
    target.mkdir()
    for path in directory.iterdir():
        (target / path.name).write_bytes(path.read_bytes())


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"kl_weight": 1.5}, "`kl_weight` must be between 0 and 1"),
        ({"steps": 0}, "`steps` must be 1 or more"),
        ({"lora": 0}, "`lora` must be 1 or more"),
        ({"temperature": 0.0}, "`temperature` must be above 0"),
        ({"highest_rate": float("nan")}, "`learning_rate` must be above 0"),
        ({"held_out": 1.0}, "`held_out` must be between 0 and 1"),
    ],
)
def test_settings_out_of_range_are_refused(setting, message):
    with pytest.raises(Refusal, match=message):
        Distillation(**setting)


def test_without_peft_it_says_what_to_install(place, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(Refusal, match=r'pip install -e "\.\[heal\]"'):
        heal(place, tmp_path / "out", replace(SMALL, lora=2))
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_adapters_added_to_the_weights_are_the_model_that_was_trained(place, tmp_path):
    pytest.importorskip("peft")
    settings = replace(SMALL, lora=2, highest_rate=1e-2)
    trainee, data, learner, _ = opened(place, settings)
    course = Course(tmp_path / CHECKPOINT, "distillation", {})
    log = train(course, trainee, data, settings, TrainingOptions(checkpoint_every=3))
    assert log["held_out_kl"][-1] < log["held_out_kl"][0]
    # Checkpoints hold the adapters alone: two matrices for each of four layers of two blocks.
    weights = [name for name in load_file(tmp_path / CHECKPOINT) if name.startswith("weight.")]
    assert len(weights) == 16 and all("lora" in name for name in weights)
    tokens = data.windows(0, 16)
    with torch.no_grad():
        before = learner.traced._module(tokens).logits
        net = distilling._as_written(trainee, learner, torch.float32, settings)
        torch.testing.assert_close(net(tokens).logits, before, rtol=1e-4, atol=1e-5)
    assert not [name for name, _ in net.named_parameters() if "lora" in name]


@pytest.mark.slow
def test_a_stopped_training_of_adapters_comes_to_the_same_end(place, tmp_path):
    pytest.importorskip("peft")
    settings = replace(SMALL, lora=2)
    whole = heal(place, tmp_path / "whole", settings)

    def stop(step, *_):
        if step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        heal(place, tmp_path / "cut", settings, progress=stop)
    xr.testing.assert_equal(heal(place, tmp_path / "cut", settings), whole)
    left, right = ((tmp_path / run / "model.safetensors").read_bytes() for run in ("whole", "cut"))
    assert left == right
    assert whole.attrs["lora"] == 2 and np.isfinite(whole.loss).all()
