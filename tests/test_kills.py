"""What a kill leaves, of every command: see `kills`."""

import os
import shutil
from functools import cache
from pathlib import Path

import kills
import pytest
from stand_ins import leave_undrawn
from test_wic import rows

from recipes.reproduce import reproduction
from robustness.files import netcdf, output
from robustness.models import opening


@pytest.fixture(scope="module", autouse=True)
def saving():
    """What is done is saved after every batch, and a model is opened once for all kills."""
    opened = cache(opening.open_settings)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(output, "SAVING_SHARE", float("inf"))
        for module in (opening, reproduction):
            patch.setattr(module, "open_settings", lambda settings, *_, **__: opened(settings))
        yield


@pytest.fixture
def undrawn(monkeypatch):
    leave_undrawn(monkeypatch)


def prepare(directory: Path) -> Path:
    """Fill a directory with data of every kind."""
    directory.mkdir()
    lines = (f'{{"text": "Story {i}. {"The cat sat and looked. " * (i + 2)}"}}' for i in range(12))
    (directory / "text.jsonl").write_text("\n".join(lines) + "\n")
    (directory / "pairs").mkdir()
    for seed, part in enumerate(("train", "dev", "test")):
        lines, labels = rows(30, seed, longest=5)
        (directory / "pairs" / f"{part}.data.txt").write_text("\n".join(lines) + "\n")
        (directory / "pairs" / f"{part}.gold.txt").write_text("\n".join(labels) + "\n")
    (directory / "tasks").mkdir()
    items = ('{"query": "A", "choices": ["b", "c"], "gold": 0}\n',) * 6
    (directory / "tasks" / "arc_easy.jsonl").write_text("".join(items))
    return directory


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    return prepare(tmp_path / "prepared")


TEXT = ("--data", "text.jsonl", "--context", 32, "--batch-tokens", 128, "--tokens", 300, "--quiet")

COMMANDS = {
    "sweep": ("sweep", "MODEL", "--drop", *TEXT, "--out", "new/a.nc"),
    "sweep-per-token": ("sweep", "MODEL", "--drop", "--per-token", *TEXT, "--out", "a.nc"),
    "sweep-shard": ("sweep", "MODEL", "--drop", "--shard", "1/2", *TEXT, "--out", "a.nc"),
    "observe": ("observe", "MODEL", "norms", "lens", *TEXT, "--out", "new"),
    "probe": ("probe", "MODEL", "wic", "--data", "pairs", "--quiet", "--out", "wic.nc"),
    "tasks": ("tasks", "MODEL", "arc_easy", "--drop", "--task-data", "tasks", "--quiet",
        "--out", "tasks.nc"),
    "prune": ("prune", "MODEL", "--remove", 1, "--layers", "1..2", "--pack", "--holdout", 0.5,
        "--heal", *TEXT, "--out", "a.nc"),
}  # fmt: skip
"""What is measured, and gone on with."""


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_what_is_measured_comes_to_the_same_end_wherever_it_is_killed(
    llama, prepared, undrawn, tmp_path, name
):
    words = [llama if word == "MODEL" else word for word in COMMANDS[name]]
    # A finished search draws its figure again.
    assert kills.survives(words, prepared, tmp_path, repeats=name != "prune")


REPLACED = [
    "sweep-per-token",
    "observe",
    *(["sweep", "tasks"] if os.environ.get("STAGES_FUZZ") else []),
]
"""Commands of which an old result is in place; each of the others is like one of the first two."""


@pytest.mark.slow
@pytest.mark.parametrize("name", REPLACED)
def test_an_old_result_stays_until_the_new_one_is_there(llama, prepared, tmp_path, name):
    words = [llama if word == "MODEL" else word for word in COMMANDS[name]]
    kills.run([*words, "--seed", 1], prepared)
    there = [path.relative_to(prepared) for path in prepared.rglob("*.nc")]

    def whole(directory):
        for path in there:
            netcdf.load(directory / path)

    assert kills.survives([*words, "--fresh"], prepared, tmp_path, repeats=False, after=whole)


@pytest.fixture(scope="module")
def once_measured(llama, saving, tmp_path_factory) -> Path:
    """Two models' directories, in which there is enough to be drawn, judged and divided."""
    prepared = prepare(tmp_path_factory.mktemp("measured") / "prepared")
    words = [llama, *TEXT, "--out"]
    assert kills.run(["sweep", *words, "one/sweep.nc"], prepared)[0] == 0
    assert kills.run(["observe", words[0], "norms", "lens", *words[1:], "one"], prepared)[0] == 0
    shutil.copytree(prepared / "one", prepared / "two")
    for index in (1, 2):
        shard = ("--shard", f"{index}/2", "--per-token")
        assert kills.run(["sweep", *words, f"s{index}.nc", *shard], prepared)[0] == 0
    return prepared


@pytest.fixture
def measured(once_measured, tmp_path) -> Path:
    return shutil.copytree(once_measured, tmp_path / "prepared")


MADE = {
    "merge": ("merge", "s1.nc", "s2.nc", "-o", "whole.nc"),
    "segment": ("segment", "one"),
    "report": ("report", "one", "--figures", "figures", "--quiet"),
    "compare": ("compare", "one", "two", "--out", "new/compare.nc", "--quiet"),
    "plot": ("plot", "one/sweep.nc", "--out", "new/sweep.png"),
}
"""What is made from files in a moment, and made anew each time but for a merge."""


@pytest.mark.slow
@pytest.mark.parametrize("name", MADE)
def test_what_is_made_of_files_comes_to_the_same_end_wherever_it_is_killed(
    measured, undrawn, tmp_path, name
):
    assert kills.survives(MADE[name], measured, tmp_path, repeats=name == "merge", most=3)


@pytest.mark.slow
@pytest.mark.parametrize("fresh", [False, True])
def test_a_reproduction_comes_to_the_same_end_wherever_it_is_killed(
    llama, prepared, undrawn, tmp_path, fresh
):
    words = ["reproduce", llama, "E1", *TEXT, "--out", "r"]
    there = []
    if fresh:
        assert kills.run([*words, "--seed", 1], prepared)[0] == 0
        there = [path.relative_to(prepared) for path in prepared.rglob("*.nc")]

    def whole(directory):
        for path in there:
            netcdf.load(directory / path)

    words += ["--fresh"] if fresh else []
    assert kills.survives(words, prepared, tmp_path, repeats=not fresh, after=whole, most=3)
