"""What a training leaves in a directory, of others and of its own, and what it goes on from."""

import json
import os
import resource
from functools import partial
from pathlib import Path

import kills
import pytest
import torch
import xarray as xr
from safetensors import safe_open
from safetensors.torch import save_file

from recipes.training import Pretraining, TrainingOptions, loop, pretrain, pretraining
from recipes.training.state import CHECKPOINT
from robustness.errors import Refusal
from robustness.files.manifest import MANIFEST
from robustness.runs.settings import silent

SMALL = {
    "layers": 2, "width": 16, "heads": 2, "context": 8, "vocabulary": 257, "batch": 2, "warmup": 2,
    "tokens": 2 * 8 * 6,
}  # fmt: skip

WORDS = (
    "--layers", 2, "--width", 16, "--heads", 2, "--context", 8, "--vocabulary", 257, "--batch", 2,
    "--tokens", 2 * 8 * 6, "--quiet",
)  # fmt: skip

WRITTEN = {
    "README.md", "config.json", "generation_config.json", "model.safetensors", "pretraining.nc",
    "stages.json", "tokenizer.json", "tokenizer_config.json",
}  # fmt: skip


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """A checkpoint after every second step, and no card, which has tests of its own."""
    options = partial(TrainingOptions, checkpoint_every=2)
    monkeypatch.setattr(pretraining, "TrainingOptions", options)
    monkeypatch.setattr(pretraining, "prose", lambda *_: None)
    monkeypatch.setattr(pretraining, "card", lambda *_: "The card.\n")


def train(
    directory: Path,
    *sources: Path,
    seed: int = 0,
    progress: object = None,
    tell: object = silent,
    **more: object,
) -> xr.Dataset:
    options = TrainingOptions(2, progress, tell)
    return pretrain(directory, sources, Pretraining(**SMALL, seed=seed), options, **more)


def interrupt_at(last: int):
    def stop(step: int, *_: object) -> None:
        if step == last:
            raise KeyboardInterrupt

    return stop


def cut(directory: Path, *sources: Path, last: int = 5) -> Path:
    """Begin a training and interrupt it after a step; return its checkpoint."""
    with pytest.raises(KeyboardInterrupt):
        train(directory, *sources, progress=interrupt_at(last))
    return directory / CHECKPOINT


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.mark.slow
def test_a_killed_training_comes_to_the_end_of_an_undisturbed_one(tmp_path, stories):
    prepared = tmp_path / "prepared"
    prepared.mkdir()
    stories.rename(prepared / "text.jsonl")
    words = ["pretrain", "new/model", "--data", "text.jsonl", *WORDS]
    # The mark holds the hash of the log, which holds the moment at which it was made.
    assert kills.survives(words, prepared, tmp_path, most=8, volatile=[MANIFEST])


def test_other_text_of_the_same_name_is_not_gone_on_with(tmp_path, stories):
    checkpoint = cut(tmp_path / "out", stories)
    before = checkpoint.read_bytes()
    other = tmp_path / "other" / stories.name
    other.parent.mkdir()
    other.write_text(stories.read_text().replace("moon", "door"))
    with pytest.raises(Refusal, match=r"made with sha256 of text 1 \(stories.jsonl\) \w{12}…, not"):
        train(tmp_path / "out", other)
    assert checkpoint.read_bytes() == before
    train(tmp_path / "out", stories)


@pytest.mark.parametrize("name", ["README.md", "config.json", "model.safetensors", "notes"])
def test_a_directory_of_others_is_left_alone(tmp_path, stories, name):
    directory = tmp_path / "mine"
    directory.mkdir()
    (directory / name).write_text("mine")
    with pytest.raises(Refusal, match=f"holds {name}, and no training of stages: choose another"):
        train(directory, stories)
    assert contents(directory) == {name: b"mine"}


@pytest.mark.slow
def test_files_of_others_beside_a_training_stay(tmp_path, stories):
    checkpoint = cut(tmp_path / "out", stories)
    (tmp_path / "out" / "notes.md").write_text("mine")
    (tmp_path / "out" / "README.md").write_text("mine as well")
    for _ in range(2):
        with pytest.raises(Refusal, match=r"README.md is not of stages.* move it, and the same"):
            train(tmp_path / "out", stories)
        assert checkpoint.exists()
        assert contents(tmp_path / "out").keys() == {"notes.md", "README.md", CHECKPOINT}
    (tmp_path / "out" / "README.md").rename(tmp_path / "out" / "read me.md")
    steps: list[int] = []
    train(tmp_path / "out", stories, progress=lambda step, *_: steps.append(step))
    assert not steps, "all was done"
    found = contents(tmp_path / "out")
    assert found["notes.md"] == b"mine" and found["read me.md"] == b"mine as well"
    assert found.keys() == WRITTEN | {"notes.md", "read me.md"}


def test_a_finished_training_does_nothing_and_says_so(tmp_path, stories):
    whole = train(tmp_path / "out", stories)
    before, said = contents(tmp_path / "out"), []
    assert before.keys() == WRITTEN

    def never(*_: object) -> None:
        raise AssertionError

    again = train(tmp_path / "out", stories, progress=never, tell=said.append)
    xr.testing.assert_identical(whole, again)
    assert contents(tmp_path / "out") == before
    assert said == [f"{tmp_path / 'out'} holds this model already: nothing is trained"]
    with pytest.raises(Refusal, match="trained with seed 0, not 1: choose another directory"):
        train(tmp_path / "out", stories, seed=1)
    (tmp_path / "out" / "README.md").write_text("changed")
    with pytest.raises(Refusal, match=r"README.md is not what was written: choose another dir"):
        train(tmp_path / "out", stories)
    assert contents(tmp_path / "out") == before | {"README.md": b"changed"}


def test_an_export_is_not_trained_over(tmp_path, stories):
    (tmp_path / "out").mkdir()
    content = {"stages": 1, "kind": "export", "made_of": {}, "files": {}}
    (tmp_path / "out" / MANIFEST).write_text(json.dumps(content))
    with pytest.raises(Refusal, match="holds a export: choose another directory"):
        train(tmp_path / "out", stories)


def test_an_interruption_while_the_card_is_written_loses_no_step(run, monkeypatch, stories):
    words = ("pretrain", "out", "--data", stories, *WORDS)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(pretraining, "card", interrupt)
        assert run(*words)[0] == 130
    assert contents(Path("out")).keys() == {CHECKPOINT}
    monkeypatch.setattr(loop, "_step", interrupt)
    assert run(*words)[:2] == (0, "out\n")
    assert contents(Path("out")).keys() == WRITTEN
    code, out, err = run(*words[:-1])
    assert (code, out) == (0, "out\n") and "holds this model already" in err


def damaged(file: Path, how: str) -> None:
    """Damage a checkpoint, or put something else in its place."""
    whole = file.read_bytes()
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}
    file.unlink()
    weight = "weight.transformer.h.0.mlp.c_fc.weight"
    if how == "torn":
        file.write_bytes(whole[: len(whole) // 2])
    elif how == "empty":
        file.write_bytes(b"")
    elif how == "a directory":
        file.mkdir()
    elif how == "a pipe":
        os.mkfifo(file)
    elif how == "a link":
        file.symlink_to(file.with_name("nowhere"))
    elif how == "foreign":
        save_file({"a": torch.zeros(2)}, file)
    elif how == "of an earlier version":
        save_file(tensors, file, {"settings": "(Pretraining(), …)"})
    elif how == "of another shape":
        save_file(tensors | {weight: torch.zeros(3, 3)}, file, metadata)
    elif how == "without a weight":
        del tensors[weight]
        save_file(tensors, file, metadata)
    elif how == "not a number":
        save_file(tensors | {weight: tensors[weight] * torch.nan}, file, metadata)
    elif how == "of too many steps":
        save_file(tensors | {"log.loss": torch.zeros(400).double()}, file, metadata)


def identity(path: Path) -> tuple[int, int, int, int]:
    """Return what a file is, apart from when it was read."""
    found = os.lstat(path)
    return found.st_ino, found.st_mode, found.st_size, found.st_mtime_ns


@pytest.mark.parametrize(
    ("how", "remedy"),
    [
        ("torn", "remove checkpoint.safetensors to start again if it is of stages, or choose"),
        ("empty", "remove checkpoint.safetensors to start again if it is of stages, or choose"),
        ("foreign", "is no checkpoint of this version of stages: remove"),
        ("of an earlier version", "is no checkpoint of this version of stages: remove"),
        ("a directory", "not a file that stages wrote: choose another directory"),
        ("a pipe", "not a file that stages wrote: choose another directory"),
        ("a link", "not a file that stages wrote: choose another directory"),
        ("of another shape", r"damaged or changed \(.*shape.*: remove checkpoint.safetensors"),
        ("without a weight", "damaged or changed .*: remove checkpoint.safetensors to start again"),
        ("not a number", r"damaged or changed \(.*finite.*: remove checkpoint.safetensors"),
        ("of too many steps", r"damaged or changed \(.*steps.*: remove checkpoint.safetensors"),
    ],
)
def test_a_checkpoint_that_is_none_is_refused_and_stays(tmp_path, stories, how, remedy):
    checkpoint = cut(tmp_path / "out", stories)
    damaged(checkpoint, how)
    before = identity(checkpoint)
    with pytest.raises(Refusal, match=remedy) as refused:
        train(tmp_path / "out", stories)
    assert "\n" not in str(refused.value)
    assert identity(checkpoint) == before
    assert [path.name for path in (tmp_path / "out").iterdir()] == [CHECKPOINT]


@pytest.mark.slow
def test_a_full_disk_keeps_what_there_is_and_the_same_call_goes_on(tmp_path, stories):
    whole = train(tmp_path / "whole", stories)
    checkpoint = cut(tmp_path / "out", stories)
    before = checkpoint.read_bytes()
    limit, most = resource.getrlimit(resource.RLIMIT_FSIZE)

    def with_limit(size: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, most))
        try:
            train(tmp_path / "out", stories)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, most))

    with pytest.raises(Refusal, match=r"cannot be written \(File too large\): raise the limit"):
        with_limit(len(before) // 2)
    assert contents(tmp_path / "out") == {CHECKPOINT: before}
    # The last checkpoint there is, and no file of the model.
    cut(tmp_path / "out", stories, last=6)
    for size in (100, 5000, 12_000):  # in the configuration, the tokenizer, the log
        with pytest.raises(Refusal, match=r"cannot be written \(File too large\): raise the limit"):
            with_limit(size)
        assert contents(tmp_path / "out").keys() == {CHECKPOINT}
    xr.testing.assert_equal(train(tmp_path / "out", stories), whole)
    assert contents(tmp_path / "out").keys() == WRITTEN


def test_a_loss_that_is_no_number_ends_the_training_before_it_is_kept(tmp_path, stories):
    checkpoint = cut(tmp_path / "out", stories, last=2)
    calls: list[int] = []
    loss = pretraining.next_token_loss

    def diverging(model, tokens, bfloat16):
        calls.append(1)
        return loss(model, tokens, bfloat16) * (torch.nan if len(calls) == 2 else 1)

    before = checkpoint.read_bytes()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(pretraining, "next_token_loss", diverging)
        with pytest.raises(
            Refusal,
            match="no number at step 4 of 6; the checkpoint of step 2 stays: lower `learning_rate`",
        ):
            train(tmp_path / "out", stories)
    assert checkpoint.read_bytes() == before


def test_a_learning_rate_beyond_all_measure_is_refused_when_it_shows(tmp_path, stories):
    settings = Pretraining(**SMALL, learning_rate=1e38)
    with pytest.raises(Refusal, match=r"no number at step \d of 6.*lower `learning_rate` from 1e"):
        pretrain(tmp_path / "out", [stories], settings=settings)
    if (tmp_path / "out" / CHECKPOINT).exists():
        with safe_open(tmp_path / "out" / CHECKPOINT, "pt") as file:
            assert all(bool(file.get_tensor(name).isfinite().all()) for name in file.keys())


@pytest.mark.parametrize("place", ["a file", "a file/in it", "\udcff"])
def test_a_place_where_no_directory_can_be_is_refused(tmp_path, stories, place):
    (tmp_path / "a file").write_text("mine")
    with pytest.raises(Refusal, match=r"choose (another place|a place)"):
        train(tmp_path / place, stories)
    assert {path.name for path in tmp_path.iterdir()} == {"a file", stories.name}


def test_nothing_is_left_where_nothing_was_trained(tmp_path):
    with pytest.raises(Refusal, match="there is no file"):
        train(tmp_path / "out", tmp_path / "nothing.jsonl")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_sources_may_have_one_name_and_names_that_are_no_text(tmp_path, stories):
    (tmp_path / "b").mkdir()
    odd = tmp_path / "b" / os.fsdecode(b"stories\xff.jsonl")
    for path in (tmp_path / "b" / stories.name, odd):
        path.write_text(stories.read_text())
    log = train(tmp_path / "out", stories, tmp_path / "b" / stories.name, odd, weights=(1, 1, 2))
    *same, third = log["source"].values.tolist()
    assert same == [stories.name] * 2 and third.encode().isascii()
    assert log["weight"].values.tolist() == [0.25, 0.25, 0.5]


@pytest.mark.parametrize("weights", [(float("nan"),), (float("inf"),), (0.0,), (-1.0,), (1.0, 1.0)])
def test_weights_that_are_no_shares_are_refused(tmp_path, stories, weights):
    with pytest.raises(Refusal, match=r"1 source\(s\) take as many weights, finite and above 0"):
        train(tmp_path / "out", stories, weights=weights)


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"learning_rate": float("nan")}, "`learning_rate` must be above 0 and finite, not nan"),
        ({"learning_rate": float("inf")}, "`learning_rate` must be above 0 and finite, not inf"),
        ({"learning_rate": -1e-3}, "`learning_rate` must be above 0"),
        ({"heads": 3}, "a width of 16 does not divide among 3 heads"),
        ({"heads": 0}, "`heads` must be 1 or more, not 0"),
        ({"context": 2}, "`context` must be 3 or more"),
        ({"vocabulary": 256}, "`vocabulary` must be 257 or more, not 256"),
        ({"tokens": 15}, "15 tokens are fewer than one step of 2 × 8: raise `tokens`, or lower"),
        ({"seed": -1}, "`seed` must be 0 or more"),
        ({"held_out": 1.0}, "`held_out` must be between 0 and 1"),
    ],
)
def test_settings_that_cannot_be_trained_with_are_refused(changed, problem):
    with pytest.raises(Refusal, match=problem):
        Pretraining(**SMALL | changed)


def test_what_cannot_be_trained_is_refused_before_it_is(tmp_path, stories):
    for changed, problem in (
        ({"context": 2000, "tokens": 4000}, r"has \d+ tokens held out, fewer than one sequence of"),
        ({"width": 2**20}, r"training takes more than [\d,]+ GB of memory, and there are \d+ GB"),
    ):
        with pytest.raises(Refusal, match=problem):
            pretrain(tmp_path / "out", [stories], settings=Pretraining(**SMALL | changed))
    assert not (tmp_path / "out").exists()


def test_another_run_into_the_directory_is_told_of(tmp_path, stories):
    refused = []

    def second(*_: object) -> None:
        with pytest.raises(Refusal, match=f"is being written by process {os.getpid()}") as found:
            train(tmp_path / "out", stories)
        refused.append(found)

    train(tmp_path / "out", stories, progress=second)
    assert len(refused) == 6 and contents(tmp_path / "out").keys() == WRITTEN
