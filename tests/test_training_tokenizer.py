"""Tokenizers that others made, of which nothing is run and all is checked."""

import builtins
import json
import pickle
from pathlib import Path

import pytest
from tokenizers_for_tests import byte_tokenizer

from recipes.training.tokenizer import open_tokenizer, size_of
from robustness.errors import Refusal


class Running:
    """What runs a program when it is unpickled."""

    def __reduce__(self):
        return Path.touch, (Path("ran"),)


@pytest.fixture
def saved(tmp_path, monkeypatch) -> Path:
    """A directory with a tokenizer, beside which every kind of code lies in wait."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "given"
    byte_tokenizer().save_pretrained(path)
    for name in ("vocab.pkl", "tokenizer.pkl", "tokenizer.bin", "pytorch_model.bin"):
        (path / name).write_bytes(pickle.dumps(Running()))
    (path / "evil.py").write_text("from pathlib import Path\nPath('ran').touch()\nTokenizer = 1\n")
    return path


def change(path: Path, **entries: object) -> None:
    content = json.loads(path.read_text()) if path.exists() else {}
    kept = {key: value for key, value in (content | entries).items() if value is not None}
    path.write_text(json.dumps(kept))


@pytest.mark.parametrize(
    "named", [{"AutoTokenizer": ["evil.Tokenizer", "evil.Tokenizer"]}, ["evil.Tokenizer", None]]
)
@pytest.mark.parametrize("known", [True, False])
def test_code_that_comes_with_a_tokenizer_is_not_run_and_not_asked_about(
    run, saved, monkeypatch, named, known
):
    config = saved / "tokenizer_config.json"
    change(config, auto_map=named)
    if not known:
        change(config, tokenizer_class="Tokenizer")
        change(saved / "config.json", model_type="evil", auto_map={"AutoConfig": "evil.Tokenizer"})
    monkeypatch.setattr(builtins, "input", lambda *_: "y")
    code, _, err = run("pretrain", "out", "--data", "builtin", "--tokenizer", saved, "--quiet")
    assert code == 1 and not Path("ran").exists() and not Path("out").exists()
    assert err == (
        "stages: the tokenizer of given is code of its own (auto_map), which is not run: take a "
        "model with a tokenizer.json that transformers reads\n"
    )


def test_code_of_the_model_is_not_run_for_its_tokenizer(saved, monkeypatch):
    change(saved / "config.json", model_type="evil", auto_map={"AutoConfig": "evil.Tokenizer"})
    monkeypatch.setattr(builtins, "input", lambda *_: "y")
    assert open_tokenizer(saved).bos_token_id == 0
    assert not Path("ran").exists()


def test_a_tokenizer_without_a_model_and_the_built_in_one_open(saved):
    assert open_tokenizer(saved)("ab", add_special_tokens=False)["input_ids"]
    assert size_of(open_tokenizer("builtin")) == 2048
    assert not Path("ran").exists()


@pytest.mark.parametrize(
    ("file", "content", "problem"),
    [
        ("tokenizer.json", None, "no tokenizer that can be loaded|gives no tokens|damaged"),
        ("tokenizer.json", "", "damaged or changed|no tokenizer that can be loaded"),
        ("tokenizer.json", '{"model": 1}', "damaged or changed|no tokenizer that can be loaded"),
        ("tokenizer.json", "[" * 100_000, "damaged or changed|no tokenizer that can be loaded"),
        ("tokenizer_config.json", "[" * 100_000, "damaged or changed"),
        ("tokenizer_config.json", "[]", "damaged or changed"),
        ("tokenizer_config.json", "{", "damaged or changed"),
    ],
)
def test_a_tokenizer_that_is_none_is_refused_in_one_line(saved, file, content, problem):
    (saved / file).unlink()
    if content is not None:
        (saved / file).write_text(content)
    with pytest.raises(Refusal, match=problem) as refused:
        open_tokenizer(saved)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("end", ["bos", "eos"])
def test_a_tokenizer_without_an_end_of_text_is_refused(saved, end):
    change(saved / "tokenizer_config.json", **{f"{end}_token": None})
    with pytest.raises(Refusal, match=f"has no {end.upper()}, which training sets between"):
        open_tokenizer(saved)


def test_a_model_has_a_place_for_every_token_of_a_vocabulary_with_holes(saved):
    content = json.loads((saved / "tokenizer.json").read_text())
    added = {"id": 300, "content": "<far>", "special": True, "single_word": False, "lstrip": False}
    content["added_tokens"].append(added | {"rstrip": False, "normalized": False})
    (saved / "tokenizer.json").write_text(json.dumps(content))
    tokenizer = open_tokenizer(saved)
    (far,) = tokenizer("<far>", add_special_tokens=False)["input_ids"]
    assert size_of(tokenizer) == far + 1 == max(tokenizer.get_vocab().values()) + 1


def test_there_is_no_tokenizer_where_there_is_no_model(tmp_path):
    with pytest.raises(Refusal, match="there is no directory"):
        open_tokenizer(tmp_path / "nothing")
    with pytest.raises(Refusal, match="has no tokenizer that can be loaded"):
        open_tokenizer("nobody/nothing")
