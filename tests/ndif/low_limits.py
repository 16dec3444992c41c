"""A real NDIF server with so little memory, or time, for a request that usual sizes fail.

Every command ends right, with what it lowered in its file.
"""

import json

import numpy as np
import pytest
import xarray as xr
from suite import (
    DIRECTORY,
    KEYS,
    NAME,
    assert_close,
    here,
    served,
    stages,
)

BYTES = 12_000_000
"""Memory of a request. The model's own pass over 2,048 tokens takes about half of it."""

SECONDS = 8
"""Time of a request, which takes one of 8,192 tokens far longer on a processor."""


@pytest.fixture(scope="module")
def short_of_memory():
    yield from served(STAGES_GPU_BYTES=str(BYTES))


@pytest.fixture(scope="module")
def short_of_time():
    yield from served(NDIF_DEFAULT_EXECUTION_TIMEOUT_SECONDS=str(SECONDS))


@pytest.fixture(params=KEYS)
def key(request):
    return KEYS[request.param]


def lowered(path, lacking):
    """How often a file says that something was made smaller."""
    notes = str(xr.load_dataset(path).attrs.get(f"out_of_{lacking}", ""))
    return len([note for note in notes.split("; ") if note])


def assert_lowered(path, lacking):
    count = lowered(path, lacking)
    print(f"\n{path.name}: {count} halvings, {xr.load_dataset(path).attrs[f'out_of_{lacking}']}")
    assert count


NAMES = ("kl", "loss", "agreement", "clean_loss")


def test_a_sweep_that_memory_has_no_room_for(short_of_memory, key, tmp_path):
    words = ["--tokens", 4096, "--context", 64, "--batch-tokens", 4096, "--state-cap", 16]
    there = tmp_path / "there.nc"
    stages(short_of_memory, key, "sweep", NAME, "--remote", *words, "--out", there)
    here("sweep", DIRECTORY, *words[:4], "--out", tmp_path / "here.nc")
    assert_lowered(there, "memory")
    assert_close(there, tmp_path / "here.nc", NAMES)


def test_observations_that_memory_has_no_room_for(short_of_memory, tmp_path):
    # In a sandbox, what is captured is in another process, whose memory is not counted.
    key = KEYS["trusted"]
    words = ["lens", "norms", "--tokens", 4096, "--context", 64, "--batch-tokens", 4096]
    stages(short_of_memory, key, "observe", NAME, "--remote", *words, "--out", tmp_path / "there")
    here("observe", DIRECTORY, *words[:6], "--out", tmp_path / "here")
    for kind in ("lens", "norms"):
        names = tuple(xr.load_dataset(tmp_path / "here" / f"{kind}.nc").data_vars)
        assert_lowered(tmp_path / "there" / f"{kind}.nc", "memory")
        assert_close(tmp_path / "there" / f"{kind}.nc", tmp_path / "here" / f"{kind}.nc", names)


def test_a_probe_that_memory_has_no_room_for(short_of_memory, key, tmp_path):
    words = ["wic", "--every", 6, "--batch-tokens", 16384]
    there = tmp_path / "there.nc"
    stages(short_of_memory, key, "probe", NAME, "--remote", *words, "--out", there)
    here("probe", DIRECTORY, *words, "--out", tmp_path / "here.nc")
    assert_lowered(there, "memory")
    found = [xr.load_dataset(path).accuracy for path in (there, tmp_path / "here.nc")]
    assert abs(found[0] - found[1]).mean() < 0.02


def test_tasks_that_memory_has_no_room_for(short_of_memory, key, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    beginning = "Once upon a time there was a king, who lived in a house by the sea. " * 3
    items = [
        {"query": f"{beginning}He had a {noun}. The", "choices": [noun, "sun"], "gold": 0}
        for noun in ("cat", "dog", "bird", "boat") * 16
    ]
    (data / "arc_easy.jsonl").write_text("\n".join(map(json.dumps, items)))
    words = ["arc_easy", "--drop", "--task-data", data, "--batch-tokens", 16384]
    there = tmp_path / "there.nc"
    stages(short_of_memory, key, "tasks", NAME, "--remote", *words, "--out", there)
    here("tasks", DIRECTORY, *words, "--out", tmp_path / "here.nc")
    # In a sandbox no states are stacked beside the weights, and there is room for a pass.
    if key == KEYS["trusted"]:
        assert_lowered(there, "memory")
    assert_close(there, tmp_path / "here.nc", ("value",))


def test_a_sweep_that_takes_too_long(short_of_time, tmp_path):
    words = ["--tokens", 8192, "--context", 64]
    there = tmp_path / "there.nc"
    trusted = KEYS["trusted"]
    sizes = ["--batch-tokens", 8192, "--request-seconds", 600]
    stages(short_of_time, trusted, "sweep", NAME, "--remote", *words, *sizes, "--out", there)
    here("sweep", DIRECTORY, *words, "--out", tmp_path / "here.nc")
    assert_lowered(there, "time")
    assert_close(there, tmp_path / "here.nc", NAMES)
    assert np.isfinite(xr.load_dataset(there).clean_loss).all()
