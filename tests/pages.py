"""The documentation's blocks of code, and how they are run."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import cli

ROOT = Path(__file__).parents[1]


def blocks(page: str, language: str) -> list[str]:
    """Return the blocks of a language, such as `sh` or `sh no-run`, of a page below the root."""
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


def commands(page: str, language: str = "sh") -> list[list[str]]:
    """Return the words of every command."""
    lines = "".join(blocks(page, language)).splitlines()
    return [shlex.split(line, comments=True) for line in lines if line.strip()]


def run_page(page: str, monkeypatch) -> None:
    """Run a page's commands and its Python as one script, in the current directory."""
    for words in commands(page):
        if words[0] == "stages":
            monkeypatch.setattr(sys, "argv", words)
            cli.main()
    code = "\n".join(blocks(page, "python"))
    if code:
        run_python("import matplotlib; matplotlib.use('Agg')\n" + code)


def run_python(code: str, *arguments: str) -> str:
    """Run a script in the current directory, and return what it prints."""
    Path("script.py").write_text(code)
    done = subprocess.run([sys.executable, "script.py", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout
