"""Files of fitted maps: what is written comes back, and hostile files are refused in one line."""

import json
import os

import numpy as np
import pytest
import torch
from families import tiny
from safetensors.torch import save_file
from test_execution import corpus

from robustness.errors import Refusal
from robustness.files.ownership import kind
from robustness.healing import fit, heal, save_maps
from robustness.models.maps_file import KIND, read_maps
from robustness.models.opening import open_model
from robustness.sweeps import sweep


@pytest.fixture(scope="module")
def maps(gpt2):
    return fit(gpt2, corpus(sequences=6), ["~1..2", "m0~1", "2~3"])


def test_maps_come_back_as_they_were(maps, gpt2, tmp_path):
    path = save_maps(maps, tmp_path / "maps.safetensors")
    read = read_maps(path)
    assert read.sha256() == maps.sha256()
    assert read.attributes == maps.attributes and read.ridges == maps.ridges
    assert kind(path) == "fitted maps"
    save_maps(read, path)
    assert path.stat().st_mode & 0o777 == 0o666 & ~_umask()
    opened = open_model(tiny("gpt2"), maps=path)
    schedules = ["0-~1..2-3", "a0-m0~1-2-3"]
    data = sweep(opened, corpus(), schedules=schedules)
    own = sweep(gpt2.with_maps(maps), corpus(), schedules=schedules)
    np.testing.assert_array_equal(data.kl, own.kl)
    assert data.attrs["maps_sha256"] == maps.sha256()


def _umask():
    value = os.umask(0)
    os.umask(value)
    return value


def test_nothing_of_others_is_replaced(maps, tmp_path):
    mine = tmp_path / "mine.safetensors"
    save_file({"a": torch.zeros(2)}, mine)
    training = tmp_path / "checkpoint.safetensors"
    save_file({"a": torch.zeros(2)}, training, metadata={"stages": "pretraining 1"})
    for path in (mine, training):
        before = path.read_bytes()
        with pytest.raises(Refusal, match="would be lost"):
            save_maps(maps, path)
        assert path.read_bytes() == before
    with pytest.raises(Refusal, match=r"must end in \.safetensors"):
        save_maps(maps, tmp_path / "maps.pt")


def square(width=32, dtype=torch.float64, fill=0.5):
    return torch.full((width, width), fill, dtype=dtype)


@pytest.mark.parametrize(
    ("tensors", "metadata", "problem"),
    [
        ({"~1": square()}, {}, "holds no fitted maps of this version"),
        ({"~1": square()}, {"stages": "maps 99"}, "holds no fitted maps of this version"),
        ({"~1": square(dtype=torch.float32)}, {"stages": KIND}, "no map in ~1"),
        ({"~1": torch.zeros(3, 4).double()}, {"stages": KIND}, "no map in ~1"),
        ({"~1": torch.tensor(1.0).double()}, {"stages": KIND}, "is damaged"),
        ({"~1": square(), "~1.offset": torch.zeros(3).double()}, {"stages": KIND}, "no map in ~1"),
        ({"~1.offset": torch.zeros(3).double()}, {"stages": KIND}, "there is no '~1'"),
        ({"~1": square(fill=float("nan"))}, {"stages": KIND}, "not finite"),
        ({"weight": square()}, {"stages": KIND}, "character 1"),
        ({"0-~1": square()}, {"stages": KIND}, "no fitted maps"),
        ({"~1-0": square()}, {"stages": KIND}, "no fitted maps"),
        ({"5*2": square()}, {"stages": KIND}, "no fitted maps"),
        ({"~01": square()}, {"stages": KIND}, "no fitted maps"),
        ({"~1": square()}, {"stages": KIND, "ridges": "{"}, "is damaged"),
        ({"~1": square()}, {"stages": KIND, "ridges": "[]"}, "is damaged"),
        ({"~1": square()}, {"stages": KIND, "model": "a\x1b[31m"}, "cannot be printed"),
    ],
)
def test_a_hostile_file_is_refused_in_one_line(tensors, metadata, problem, tmp_path):
    path = tmp_path / "maps.safetensors"
    save_file(tensors, path, metadata=metadata)
    with pytest.raises(Refusal, match=problem) as caught:
        read_maps(path)
    assert str(caught.value).isprintable()


def test_what_is_no_file_of_maps_is_refused(tmp_path, maps):
    with pytest.raises(Refusal, match="cannot be read"):
        read_maps(tmp_path / "none.safetensors")
    os.mkfifo(tmp_path / "pipe")
    for place in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(Refusal, match="is no file"):
            read_maps(place)
    path = save_maps(maps, tmp_path / "maps.safetensors")
    whole = path.read_bytes()
    for cut in (whole[:7], whole[:-1], b"\xff" * 8 + whole[8:], b""):
        path.write_bytes(cut)
        with pytest.raises(Refusal, match=r"maps\.safetensors"):
            read_maps(path)


def test_maps_of_another_model_or_width_are_refused(maps, tmp_path):
    path = save_maps(maps, tmp_path / "maps.safetensors")
    with pytest.raises(
        Refusal, match="fitted to GPT2LMHeadModel, whose configuration LlamaForCausalLM"
    ):
        open_model(tiny("llama"), maps=path)
    changed = tiny("gpt2")
    with torch.no_grad():
        changed.transformer.h[0].mlp.c_proj.weight += 1e-3
    with pytest.raises(Refusal, match="whose weights GPT2LMHeadModel does not"):
        open_model(changed, maps=path)
    save_file({"~1": square(8)}, path, metadata={"stages": KIND, "ridges": json.dumps({})})
    with pytest.raises(Refusal, match="the map ~1 is of width 8, and GPT2LMHeadModel of width 32"):
        open_model(tiny("gpt2"), maps=path)


@pytest.mark.slow
def test_commands_take_maps(run, llama, stories, tmp_path):
    from robustness.text import cut

    opened = open_model(llama)
    text = cut(stories, opened.tokenizer, context=32, tokens=1024)
    healed = heal(opened, "0-3", text)
    path = save_maps(healed.maps, tmp_path / "fitted.safetensors")
    words = ("--data", stories, "--context", 32, "--tokens", 256, "--out", "a.nc")
    code, _, error = run("sweep", llama, "--schedule", "0-~1..2-3", "--maps", path, *words)
    assert code == 0, error
    code, out, error = run(
        "generate", llama, "--schedule", "a0-m0~1..2-3", "--maps", path, "The cat"
    )
    assert code == 0 and "a0-m0~1..2-3:" in out, error
    code, _, error = run("generate", llama, "--schedule", "a0-m0~1..2-3", "The cat")
    assert code == 1 and "--maps" in error and "no fitted maps" in error
    code, _, error = run("generate", llama, "--maps", stories, "--schedule", "0", "The cat")
    assert code == 1 and len(error.strip().splitlines()) <= 2, error
