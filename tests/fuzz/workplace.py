"""A directory like a user's: models, texts, runs, and files that are none of our business."""

import hashlib
import json
import os
import shutil
from pathlib import Path

import xarray as xr

PATIENCE = 20.0
"""Most seconds that a command may take."""


def share(default: float = 0.02) -> float:
    """Return what share of the cases is tried: STAGES_FUZZ in the environment, 1 for all."""
    return float(os.environ.get("STAGES_FUZZ", default))


def furnish(directory: Path, model: Path, call) -> None:
    """Fill a directory; `call` runs the command line in it."""
    (directory / "model").symlink_to(model)
    lines = [
        json.dumps({"text": f"Story {i}. " + "The cat sat on the mat and looked at the moon. " * 9})
        for i in range(12)
    ]
    (directory / "stories.jsonl").write_text("\n".join(lines) + "\n")
    (directory / "texts").mkdir()
    (directory / "texts/plain.txt").write_text("The cat sat.\n<|endoftext|>\nThe moon rose. " * 60)
    (directory / "texts/nested.jsonl").write_text("[" * 100_000)
    (directory / "tasks").mkdir()
    item = {"query": "The cat", "choices": [" sat", " flew"], "gold": 0}
    (directory / "tasks/arc_easy.jsonl").write_text((json.dumps(item) + "\n") * 3)
    words = ["model", "--data", "stories.jsonl", "--tokens", "900", "--context", "48", "--quiet"]
    for place in ("runs", "others"):
        status, err = call("sweep", *words, "--out", f"{place}/sweep.nc")
        assert status == 0, err
        status, err = call("observe", *words, "lens", "norms", "attention", "--out", place)
        assert status == 0, err
    for part in ("1", "2"):
        out = f"runs/shard-{part}.nc"
        few = [*words, "--batch-tokens", "96", "--shard", f"{part}/2"]
        assert call("sweep", *few, "--out", out)[0] == 0
    (directory / "empty-model").mkdir()
    (directory / "empty-model/config.json").write_text("{}")
    (directory / "empty.nc").touch()
    (directory / "torn.nc").write_bytes((directory / "runs/sweep.nc").read_bytes()[:3000])
    xr.Dataset({"rain": ("month", [1.0, 2.0])}).to_netcdf(directory / "climate.nc")
    (directory / "climate").mkdir()
    (directory / "climate/README.md").write_text("years of work\n")
    (directory / "notes.md").write_text("years of work\n")
    (directory / "photo.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>\n")
    (directory / "link.nc").symlink_to("climate.nc")
    (directory / "dangling.nc").symlink_to("gone/nowhere.nc")
    (directory / "loop.nc").symlink_to("loop.nc")
    os.mkfifo(directory / "fifo")


def copy(furnished: Path, directory: Path) -> None:
    """Make a directory anew as a copy of a furnished one."""
    shutil.rmtree(directory, ignore_errors=True)
    # A FIFO cannot be copied: whoever opens it waits.
    shutil.copytree(furnished, directory, symlinks=True, ignore=shutil.ignore_patterns("fifo"))
    os.mkfifo(directory / "fifo")


FOREIGN = (
    "stories.jsonl", "texts", "tasks", "empty-model", "climate.nc", "climate", "notes.md",
    "photo.svg",
)  # fmt: skip
"""What no command may change."""

LINKS = ("link.nc", "dangling.nc", "loop.nc", "model")


def state(directory: Path) -> dict[str, str]:
    """Return what the foreign files hold, and where links lead."""
    found = {name: os.readlink(directory / name) for name in LINKS}
    for name in FOREIGN:
        path = directory / name
        files = [path] if path.is_file() else sorted(each for each in path.rglob("*"))
        for file in files:
            if file.is_file():
                content = hashlib.sha256(file.read_bytes()).hexdigest()
                found[str(file.relative_to(directory))] = content
    return found


def hidden(directory: Path) -> list[str]:
    """Return the hidden files that a command has left, but for one that a user may ask for."""
    left = {str(file.relative_to(directory)) for file in directory.rglob(".*")}
    return sorted(left - {".nc"})
