"""Manners of the command line: what it loads, tells and advises, and in which forms it prints."""

import ast
import csv
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest
from commands import COMMANDS
from test_layers import imports, tree

import cli

ROOT = Path(__file__).parents[1]


def loaded(*words: str, cwd: Path) -> set[str]:
    """Return the modules that a command line loads, run in a process of its own."""
    code = (
        "import sys, cli\ntry: cli.main()\nexcept SystemExit: pass\n"
        "print(*sys.modules, sep='\\n', file=sys.stderr)"
    )
    words = (sys.executable, "-c", code, *words)
    done = subprocess.run(words, cwd=cwd, env=environment(), capture_output=True, text=True)
    assert "Traceback" not in done.stderr
    return set(done.stderr.split())


def environment(*before: Path) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": os.pathsep.join(map(str, [*before, ROOT]))}


def test_the_file_of_the_command_line_is_short_and_imports_its_rooms_alone():
    lines = (ROOT / "cli.py").read_text().splitlines()
    ours = {name for name in imports("cli") if name.startswith(("robustness", "probes", "recipes"))}
    assert len(lines) <= 100
    rooms = ("recipes.commands.", "recipes.terminal", "robustness.errors")
    assert all(name.startswith(rooms) for name in ours)


def test_help_imports_no_command(tmp_path):
    modules = loaded("--help", cwd=tmp_path)
    places = {place.partition(":")[0] for place, _ in cli.COMMANDS.values()}
    assert not modules & {f"recipes.commands.{place}" for place in places}
    assert len(modules) < 400


@pytest.mark.slow
def test_showing_a_file_loads_neither_models_nor_drawing(tmp_path, run, llama, stories):
    words = ("sweep", llama, "--data", stories, "--context", 32, "--tokens", 300, "--drop")
    assert run(*words, "--out", "a.nc")[0] == 0
    modules = loaded("show", "a.nc", cwd=Path())
    assert "xarray" in modules
    assert not modules & {"torch", "nnsight", "transformers", "datasets", "sklearn"}
    assert "matplotlib.pyplot" not in modules


def test_a_command_line_module_has_no_heavy_import_at_its_top():
    allowed = (
        "recipes.commands",
        "recipes.terminal",
        "robustness.errors",
        "robustness.models.settings",
        "robustness.schedules",
    )
    for path in sorted((ROOT / "recipes/commands").glob("*.py")):
        body = tree(f"recipes.commands.{path.stem}").body if path.stem != "__init__" else []
        for node in body:
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                name = getattr(node, "module", None) or node.names[0].name
                ours = name.startswith(("robustness", "probes", "recipes"))
                assert not ours or name.startswith(allowed), (path.name, name)


@pytest.mark.parametrize("name", ["robustness", "recipes", "probes"])
def test_a_package_of_the_same_name_is_named(tmp_path, name):
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").write_text("")
    code = "from cli import main; main()"
    words = [sys.executable, "-c", code, "--help"]
    done = subprocess.run(
        words, cwd=tmp_path, env=environment(tmp_path), capture_output=True, text=True
    )
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"stages: {tmp_path / name} hides ")


def test_a_file_of_the_same_name_in_the_working_directory_is_not_run(tmp_path):
    (tmp_path / "cli.py").write_text("raise SystemExit('not ours')")
    words = [sys.executable, str(ROOT / "cli.py"), "--version"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("stages")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_completes_names_of_commands(shell):
    words = [sys.executable, str(ROOT / "cli.py")]
    typed = {"COMP_WORDS": "stages se", "COMP_CWORD": "se" if shell == "fish" else "1"}
    asked = {"_STAGES_COMPLETE": f"{shell}_complete"} | typed
    done = subprocess.run(words, env=os.environ | asked, capture_output=True, text=True)
    assert "segment" in done.stdout and "sweep" not in done.stdout


def test_every_option_has_help_that_is_a_sentence():
    for name, command in COMMANDS.items():
        for option in command.params:
            if isinstance(option, click.Option):
                help = str(option.help or "")
                first = help.partition("  [default")[0]
                assert first[:1].isupper() and first.endswith("."), (name, option.name, help)
                assert not first.startswith(("Of ", "What ", "The most", "As ")), (name, help)


def test_short_help_is_a_sentence_that_fits_a_line():
    for name, (_, help) in cli.COMMANDS.items():
        assert help[0].isupper() and help.endswith((".", "…")) and len(help) < 68, name


def test_every_command_can_be_quiet_and_tables_have_forms():
    for name, command in COMMANDS.items():
        names = {parameter.name for parameter in command.params}
        assert "quiet" in names, name
        assert ("json" in names) == ("csv" in names)
    tabular = {"show", "models", "compare", "demo", "reproduce", "generate"}
    # Of these, a dry run is a table.
    tabular |= {"sweep", "observe", "probe", "tasks", "prune"}
    assert tabular == {
        name for name, command in COMMANDS.items() if any(p.name == "json" for p in command.params)
    }


def test_a_table_is_printed_as_json_and_csv(run):
    code, out, err = run("models", "--json")
    rows = json.loads(out)["tables"][0]["rows"]
    assert code == 0 and rows[0]["model"] == "builtin" and rows[0]["layers"] == 12
    read = list(csv.DictReader(io.StringIO(run("models", "--csv")[1])))
    assert [row["model"] for row in read] == [row["model"] for row in rows]
    assert err == "next: stages sweep MODEL\n" and run("models", "--quiet")[2] == ""
    code, _, err = run("models", "--json", "--csv")
    assert code == 2 and "exclude each other" in err


def test_experiments_are_listed_for_readers_and_for_programs(run):
    text = run("reproduce", "--list")[1]
    rows = json.loads(run("reproduce", "--list", "--json")[1])["tables"][0]["rows"]
    assert all(f"{row['name']:4} {row['title']}. {row['question']}" in text for row in rows)


@pytest.mark.slow
def test_a_directory_is_listed_with_what_is_in_it(run, llama, stories):
    code, _, err = run("show", ".")
    assert code == 1 and "has no result of stages" in err
    words = ("sweep", llama, "--data", stories, "--context", 32, "--tokens", 300, "--drop")
    assert run(*words, "--out", "results/one/a.nc")[0] == 0
    assert run("plot", "results/one/a.nc")[0] == 0
    Path("results/foreign.nc").write_text("nothing")
    # The first by name, which could not be given to a command again.
    shutil.copy("results/one/a.nc", "results/a\x1b[2J.nc")
    code, out, err = run("show", "results", "--csv")
    rows = {row["file"]: row for row in csv.DictReader(io.StringIO(out))}
    assert code == 0 and err == "next: stages show results/one/a.nc\n"
    assert rows["results/one/a.nc"]["what"] == "sweep"
    assert rows["results/one/a.nc"]["model"] == "tiny-llama"
    assert rows["results/one/a.nc"]["state"] == "complete"
    assert rows["results/one/a.png"]["what"] == "figure"
    assert "not a NetCDF file" in rows["results/foreign.nc"]["what"]


def test_a_dry_run_runs_nothing_and_can_be_read_by_programs(run, llama, stories):
    words = ("sweep", llama, "--data", stories, "--context", 32, "--tokens", 300, "--dry-run")
    code, out, err = run(*words, "--json")
    rows = json.loads(out)["tables"][0]["rows"]
    assert code == 0 and {"block calls", "time"} <= {row["what"] for row in rows}
    assert "nothing was run" in err and not Path("outputs").exists()


def test_what_follows_names_files_as_a_shell_takes_them(run, llama, stories):
    words = ("sweep", llama, "--data", stories, "--context", 32, "--tokens", 300, "--drop")
    _, _, err = run(*words, "--out", "a b.nc")
    assert err.splitlines()[-1] == "next: stages plot 'a b.nc'"


@pytest.mark.slow
def test_the_shards_that_are_to_be_merged_are_named(run, llama, stories):
    words = ("sweep", llama, "--data", stories, "--context", 32, "--batch-tokens", 64, "--drop")
    _, out, err = run(*words, "--shard", "1/2")
    assert out == "outputs/tiny-llama/sweep.shard-1-of-2.nc\n"
    last = "next: stages merge outputs/tiny-llama/sweep.shard-*-of-2.nc -o outputs/tiny-llama/"
    assert err.splitlines()[-1].startswith(f"{last}sweep.nc")


def test_what_is_told_on_the_way_commands_no_terminal(run):
    code, _, err = run("sweep", "\x1b[31mnowhere")
    assert code == 1 and "\x1b" not in err
