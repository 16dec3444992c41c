"""Every command and every line of Python in the README works as it is shown."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import cli

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(sh|sh no-run|python|text)\n(.*?)```", README, re.DOTALL)


def shell(kind: str) -> list[list[str]]:
    lines = [line for language, text in BLOCKS if language == kind for line in text.splitlines()]
    return [shlex.split(line, comments=True) for line in lines if line.strip()]


def test_the_two_commands_are_targets_of_the_makefile():
    targets = (ROOT / "Makefile").read_text()
    assert [words for words in shell("sh") if words[0] == "make"] == [
        ["make", "demo"],
        ["make", "test"],
    ]
    assert "\ndemo:" in targets and "\ntest:" in targets


def test_every_command_and_every_line_of_python_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for words in shell("sh"):
        if words[0] == "stages":
            monkeypatch.setattr(sys, "argv", words)
            cli.main()
    code = "\n".join(text for language, text in BLOCKS if language == "python")
    Path("readme.py").write_text("import matplotlib; matplotlib.use('Agg')\n" + code)
    done = subprocess.run([sys.executable, "readme.py"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "intervention" in done.stdout
    assert "(0, 1, 2, 3, 5, 4, 6, 8, 9, 10, 11)" in code


@pytest.mark.parametrize("words", shell("sh no-run"), ids=" ".join)
def test_commands_that_need_a_network_are_at_least_understood(words):
    command = cli.stages.commands[words[1]]
    assert command.make_context(words[1], words[2:]).params["model"] == words[2]


def test_every_command_is_shown():
    words_of = [*shell("sh"), *shell("sh no-run")]
    shown = {words[1] for words in words_of if words[0] == "stages"}
    assert set(cli.stages.commands) - shown <= {"demo", "pretrain"}
    assert "make demo" in README


def test_every_link_to_a_file_leads_somewhere():
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/*.md")]
    for page in pages:
        for link in re.findall(r"\]\((?!http)([^)#]+)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name}: {link}"
