"""The documentation's blocks of code, and how they are run."""

import io
import re
import runpy
import shlex
import sys
import tempfile
from contextlib import redirect_stdout
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import pytest

import cli

matplotlib.use("Agg")

ROOT = Path(__file__).parents[1]


def blocks(page: str, language: str) -> list[str]:
    """Return the blocks of a language, such as `sh` or `sh no-run`, of a page below the root."""
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


def commands(page: str, language: str = "sh") -> list[list[str]]:
    """Return the words of every command."""
    lines = "".join(blocks(page, language)).splitlines()
    return [shlex.split(line, comments=True) for line in lines if line.strip()]


def places_of_tokens(words: list[str]) -> list[int]:
    """Return the places of numbers of tokens in a command."""
    return [place + 1 for place, word in enumerate(words) if word == "--tokens"]


def run_page(page: str, monkeypatch, share: int = 1) -> None:
    """Run a page's commands and its Python as one script, in the current directory.

    Commands read a share of the tokens that they name: `share` is 2 for half of them.
    """
    for words in commands(page):
        if words[0] == "stages":
            for place in places_of_tokens(words):
                words[place] = str(int(words[place]) // share)
            monkeypatch.setattr(sys, "argv", words)
            cli.main()
    code = "\n".join(blocks(page, "python"))
    if code:
        run_python(code)


def run_python(code: str, *arguments: str) -> str:
    """Run a script in the current directory, and return what it prints."""
    # Of a name of its own: nnsight reads the source of a name once.
    script = Path(tempfile.mkdtemp(dir=".", prefix="script-")).resolve() / "script.py"
    script.write_text(code)
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as monkeypatch, redirect_stdout(printed):
        monkeypatch.setattr(sys, "argv", [str(script), *arguments])
        runpy.run_path(str(script), run_name="__main__")
    plt.close("all")
    return printed.getvalue()
