"""Where an export is written: what is there stays, whole, whatever happens on the way."""

import json
import resource
import shutil
from collections import namedtuple
from pathlib import Path

import kills
import pytest
from families import tiny
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
)

from robustness.errors import Refusal
from robustness.files import directory, exchange
from robustness.models.opening import open_model
from robustness.reordered.exporting import export


@pytest.mark.slow
def test_a_directory_with_something_in_it_is_left_alone(tmp_path, gpt2):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text("{}")
    for fresh in (False, True):
        with pytest.raises(Refusal, match="the directory mine is not empty"):
            export(gpt2, (0, 1), tmp_path / "mine", fresh=fresh)
    assert [file.name for file in (tmp_path / "mine").iterdir()] == ["config.json"]
    (tmp_path / "file").write_text("mine")
    with pytest.raises(Refusal, match="file is a file"):
        export(gpt2, (0, 1), tmp_path / "file")
    (tmp_path / "empty").mkdir()
    path = export(gpt2, (0, 1), tmp_path / "empty")
    with pytest.raises(Refusal, match="not empty"):
        export(gpt2, (0, 2), path)
    export(gpt2, (0, 2), path, fresh=True)
    assert json.loads((path / "config.json").read_text())["stages"]["schedule"] == "0-2"
    (path / "sweep.nc").write_text("measured")
    with pytest.raises(Refusal, match="not empty"):
        export(gpt2, (0, 1), path, fresh=True)
    assert (path / "sweep.nc").read_text() == "measured"
    assert {file.name for file in tmp_path.iterdir()} == {"mine", "file", "empty"}


def test_a_full_disk_leaves_what_was_there(tmp_path, gpt2, monkeypatch):
    path = export(gpt2, (0, 1), tmp_path / "out")
    usage = namedtuple("usage", "total used free")
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "disk_usage", lambda _: usage(2e7, 1e7, 1e7))
        with pytest.raises(Refusal, match=r"out takes 0\.01\d+ GB, and 0\.01 GB are free"):
            export(gpt2, (0, 2), path, fresh=True)

    def full(_descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(directory.os, "fsync", full)
    with pytest.raises(Refusal, match=r"out cannot be written .*No space left"):
        export(gpt2, (0, 2), path, fresh=True)
    monkeypatch.undo()
    monkeypatch.setattr(exchange, "_exchange", lambda *_: False)
    rename = Path.rename

    def failing(self, target):
        if self.name == "new":
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(Refusal, match="out cannot be written"):
        export(gpt2, (0, 2), path, fresh=True)
    assert json.loads((path / "config.json").read_text())["stages"]["schedule"] == "0-1"
    assert [file.name for file in tmp_path.iterdir()] == ["out"]


def test_what_transformers_will_not_write_is_refused(tmp_path):
    model = open_model(tiny("gpt2"))
    model.traced._module.generation_config.max_new_tokens = -1
    with pytest.raises(Refusal, match="GPT2LMHeadModel cannot be written") as refused:
        export(model, (0, 1), tmp_path / "out")
    assert "\n" not in str(refused.value) and not list(tmp_path.iterdir())


def test_the_directory_that_one_is_in_is_left_alone(gpt2, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Refusal, match="is the directory that you are in"):
        export(gpt2, "0-2..", ".")


@pytest.mark.slow
def test_an_export_given_again_is_left_as_it_is(gpt2, tmp_path):
    said = []
    path = export(gpt2, (0, 1, 3), tmp_path / "out", notify=said.append)
    before = {file: file.stat().st_mtime_ns for file in path.iterdir()}
    export(gpt2, (0, 1, 3), path, notify=said.append, command="another")
    assert {file: file.stat().st_mtime_ns for file in path.iterdir()} == before
    assert said == [f"{path} holds this export already: nothing is written"]
    (path / "config.json").unlink()
    with pytest.raises(Refusal, match="not empty"):
        export(gpt2, (0, 1, 3), path)
    assert export(gpt2, (0, 1, 3), path, fresh=True) and (path / "config.json").exists()


@pytest.mark.parametrize("name", ["notes.md", "tokenizer.model", "my.safetensors", "my.txt"])
def test_what_others_put_beside_an_export_stays(gpt2, tmp_path, name):
    path = export(gpt2, (0, 1, 3), tmp_path / "out")
    (path / name).write_text("mine")
    with pytest.raises(
        Refusal, match=f"{name} in it is not of what stages wrote there; move it, or choose anot"
    ):
        export(gpt2, (0, 2, 3), path, fresh=True)
    (path / name).unlink()
    (path / "README.md").write_text("mine")
    with pytest.raises(Refusal, match=r"README.md in it was changed since; move it, or choose"):
        export(gpt2, (0, 2, 3), path, fresh=True)
    assert (path / "README.md").read_text() == "mine"
    assert json.loads((path / "config.json").read_text())["stages"]["schedule"] == "0-1-3"


def test_an_export_of_an_earlier_version_is_not_known_as_one(gpt2, tmp_path):
    path = export(gpt2, (0, 1, 3), tmp_path / "out")
    (path / "stages.json").unlink()
    with pytest.raises(Refusal, match=r"stages.json, .* is not there: choose another place, or e"):
        export(gpt2, (0, 2, 3), path, fresh=True)
    assert json.loads((path / "config.json").read_text())["stages"]["schedule"] == "0-1-3"


@pytest.fixture
def small(tmp_path, llama):
    """A directory with a model."""
    prepared = tmp_path / "prepared"
    shutil.copytree(llama, prepared / "model")
    return prepared


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fresh", "swapping"),
    [(False, True), (True, True), (True, False)],
    ids=["new", "swapped", "in turns"],
)
def test_a_killed_export_comes_to_the_end_of_an_undisturbed_one(
    tmp_path, small, monkeypatch, fresh, swapping
):
    words = ["export", "model", "--dtype", "auto", "--quiet", "new/pruned", "--schedule"]
    if not swapping:
        monkeypatch.setattr(exchange, "_exchange", lambda *_: False)
    if fresh:
        assert kills.run([*words, "0-1-2"], small)[0] == 0

    def there(where):
        if fresh and swapping:
            AutoModelForCausalLM.from_pretrained(where / "new" / "pruned")

    assert kills.survives(
        [*words, "0-2-3", *["--fresh"] * fresh],
        small,
        tmp_path,
        repeats=not fresh,
        after=there,
        volatile=["stages.json"],
    )


def test_no_code_is_named_in_what_is_written(tmp_path, small):
    (small / "model" / "evil.py").write_text("raise SystemExit\n")
    for file, entry in (
        ("config.json", {"AutoConfig": "evil.A", "AutoModelForCausalLM": "evil.B"}),
        ("tokenizer_config.json", {"AutoTokenizer": ["evil.C", "evil.C"]}),
    ):
        content = json.loads((small / "model" / file).read_text())
        (small / "model" / file).write_text(json.dumps(content | {"auto_map": entry}))
    model = open_model(small / "model", dtype="auto")
    path = export(model, (0, 1, 3), tmp_path / "out")
    texts = [file.read_text() for file in path.iterdir() if file.suffix in (".json", ".md")]
    assert texts and not any("evil" in text or str(tmp_path) in text for text in texts)
    assert AutoTokenizer.from_pretrained(path, trust_remote_code=True).bos_token == "<s>"


def test_a_tokenizer_that_cannot_be_written_for_want_of_room(tmp_path, small):
    """Its library raises no error of the system."""
    model = open_model(small / "model", dtype="auto")
    limit, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    for size in (4000, 12_000):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, most))
        try:
            with pytest.raises(Refusal, match=r"cannot be written \(File too large\): raise the"):
                export(model, (0, 1, 3), tmp_path / "out")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, most))
    assert {path.name for path in tmp_path.iterdir()} == {"prepared"}
