"""What is on this machine is read without a cache, so that no home is needed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

PROGRAM = """
import sys
import cli
for words in {commands!r}:
    sys.argv = ["stages", *words]
    try:
        cli.main()
        code = 0
    except SystemExit as stop:
        code = stop.code
    print(code, flush=True)
"""


@pytest.mark.slow
def test_no_home_is_needed_for_what_is_here(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "The cat sat on the mat. " * 40}) + "\n")
    item = {"query": "The cat", "choices": [" sat", " flew"], "gold": 0}
    (tmp_path / "arc_easy.jsonl").write_text(json.dumps(item) + "\n")
    cut = ["--context", "16", "--tokens", "64", "--quiet"]
    commands = [
        ["sweep", "builtin", "--drop", *cut, "--data", "a.jsonl", "--out", "sweep.nc"],
        ["tasks", "builtin", "arc_easy", "--drop", "--task-data", ".", "--quiet", "--out", "t.nc"],
        ["sweep", "builtin", "--data", "nobody/nothing"],
    ]
    home = "/dev/null"
    kept = {"HOME": home, "PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}
    places = ("HF_HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "MPLCONFIGDIR")
    kept |= {place: f"{home}/cache" for place in places}
    found = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(commands=commands)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=kept | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )
    codes = [line for line in found.stdout.splitlines() if line.isdigit()]
    assert codes == ["0", "0", "1"], found.stderr
    assert "Errno" not in found.stderr and home not in found.stderr, found.stderr


def test_where_the_hub_keeps_its_files_is_named_if_it_cannot_be_written(monkeypatch):
    from robustness.errors import Refusal
    from robustness.text import hub, sources

    def fail(*_, **__):
        raise PermissionError(13, "Permission denied", "/home/somebody/.cache")

    monkeypatch.setattr(hub, "load_dataset", fail)
    with pytest.raises(
        Refusal, match=r"kept in /.*; set HF_HOME to a directory that can be written"
    ):
        list(sources.documents("owner/name"))
