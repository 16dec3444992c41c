"""What reaches the terminal, and with which status a command ends where streams fail."""

import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest
from commands import COMMANDS
from hypothesis import given
from hypothesis import strategies as st
from searches import planted_search

from recipes.commands.parameters import Finite, Place
from recipes.terminal import Forgiving, printable
from robustness.reordered.settings import COLDEST

ROOT = Path(__file__).parents[1]
STAGES = [sys.executable, str(ROOT / "cli.py")]


def start(*words: str, **streams) -> subprocess.Popen:
    return subprocess.Popen([*STAGES, *words], text=True, **streams)


def heed_signals() -> None:
    """Undo what a job in the background of a script inherits: there SIGINT is ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@given(st.text())
def test_printable_text_commands_no_terminal(text):
    shown = printable(text)
    assert all(letter.isprintable() or letter in "\n\t" for letter in shown)
    assert shown.encode("utf-8").decode("utf-8") == shown
    assert printable(shown) == shown


def test_ordinary_text_is_left_as_it_is():
    assert printable("Größe × 漢字\n\tx ± y") == "Größe × 漢字\n\tx ± y"


def test_a_name_with_escapes_is_shown_as_escapes(run):
    code, _, err = run("show", "\x1b]0;title\x07\x1b[31mred.nc")
    assert code == 1 and "\x1b" not in err and "\\x1b[31mred" in err


@pytest.mark.slow
def test_a_full_standard_output_is_said_and_no_success():
    with open("/dev/full", "w") as full:
        process = start("models", stdout=full, stderr=subprocess.PIPE)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert err.startswith("stages: standard output takes no more") and len(err.splitlines()) == 1


def test_help_into_a_full_device_is_no_traceback():
    with open("/dev/full", "w") as full:
        process = start("--help", stdout=full, stderr=subprocess.PIPE)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 1 and len(err.splitlines()) == 1 and "room" in err


@pytest.mark.slow
def test_a_reader_that_went_away_ends_a_command_quietly():
    reading, writing = os.pipe()
    os.close(reading)
    process = start("models", stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (141, "")


@pytest.mark.slow
def test_a_reader_that_went_away_is_no_fault_of_a_file(tmp_path):
    planted_search().to_netcdf(tmp_path / "a.nc")
    reading, writing = os.pipe()
    os.close(reading)
    process = start("show", str(tmp_path / "a.nc"), stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (141, "")


@pytest.mark.slow
@pytest.mark.parametrize("closed", ["0", "1", "2"])
def test_closed_streams_change_nothing(closed):
    command = f'exec "$@" {closed}>&-'
    process = subprocess.run(
        ["sh", "-c", command, "sh", *STAGES, "models", "--quiet"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert process.returncode == 0
    assert ("builtin" in process.stdout) == (closed != "1")
    assert process.stderr == ""


@pytest.mark.slow
def test_a_full_standard_error_ends_nothing():
    with open("/dev/full", "w") as full:
        process = start("show", "nowhere.nc", stdout=subprocess.PIPE, stderr=full)
        out, _ = process.communicate(timeout=60)
    assert (process.returncode, out) == (1, "")

    class Broken(io.StringIO):
        def write(self, text: str = "") -> int:
            raise OSError(28, "No space left on device")

        flush = write

    bar = Forgiving(Broken())
    assert bar.write("a") == 1
    bar.flush()


@pytest.mark.slow
def test_an_encoding_that_lacks_a_letter_gets_its_escape():
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    process = start("show", "µ.nc", stderr=subprocess.PIPE, env=environment)
    assert "\\xb5.nc" in process.communicate(timeout=60)[1] and process.returncode == 1


@pytest.mark.slow
def test_impatience_is_met_with_one_line_and_status_130(tmp_path, llama, stories):
    # Far more text than could be swept before the signals arrive.
    long = tmp_path / "long.jsonl"
    long.write_bytes(stories.read_bytes() * 100)
    words = ["sweep", str(llama), "--data", str(long), "--context", "32", "--out", "x.nc"]
    words += ["--intervention", "shuffle-3", "--batch-tokens", "32", "--quiet"]
    process = start(*words, cwd=tmp_path, stderr=subprocess.PIPE, preexec_fn=heed_signals)
    until = time.monotonic() + 60
    while not (tmp_path / "x.partial.nc").exists() and time.monotonic() < until:
        time.sleep(0.01)
    for _ in range(5):
        process.send_signal(signal.SIGINT)
        time.sleep(0.02)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert err.strip().startswith("stages: interrupted") and len(err.split("\n")) == 3
    assert not list(tmp_path.glob(".*"))


def test_standard_input_that_is_missing_or_no_text_is_refused(run, llama, monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    code, _, err = run("generate", llama, "-", "--schedule", "0..")
    assert code == 1 and "there is no standard input" in err
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a\xff"), encoding="utf-8"))
    code, _, err = run("generate", llama, "-", "--schedule", "0..")
    assert code == 1 and "not UTF-8" in err


def test_a_prompt_that_is_no_text_is_refused(run, llama):
    code, _, err = run("generate", llama, "a\udcff", "--schedule", "0..")
    assert code == 1 and "not UTF-8" in err


@pytest.mark.parametrize("temperature", ["1e-300", "0.0009", "5e-324"])
def test_a_temperature_that_overflows_is_refused(run, llama, temperature):
    code, _, err = run("generate", llama, "a", "--schedule", "0..", "--temperature", temperature)
    assert code == 2 and f"{COLDEST:g}" in err


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "NaN", "1e999"])
def test_numbers_are_finite(value):
    with pytest.raises(click.BadParameter, match="finite"):
        Finite().convert(value, None, None)


def test_every_number_option_is_finite_and_every_path_expands_the_home():
    for command in COMMANDS.values():
        for parameter in command.params:
            kind = parameter.type
            assert not isinstance(kind, click.types.FloatParamType) or isinstance(kind, Finite)
            assert not isinstance(kind, click.Path) or isinstance(kind, Place)


def test_the_home_is_expanded_once(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "~"))
    assert Place().convert("~/x", None, None) == tmp_path / "~" / "x"
    assert Place().convert("a/~/x", None, None) == Path("a/~/x")
    with pytest.raises(click.BadParameter, match="no user"):
        Place().convert("~nobody-of-this-name/x", None, None)
    with pytest.raises(click.BadParameter, match="NUL"):
        Place().convert("a\0b", None, None)


def test_a_traceback_is_shown_under_debug_alone(run, monkeypatch, tmp_path):
    code, _, err = run("show", "nowhere.nc")
    assert code == 1 and "Traceback" not in err
    code, _, err = run("--debug", "show", "nowhere.nc")
    assert code == 1 and "Traceback" in err and "Refusal" in err
    assert err.splitlines()[-1] == "stages: there is no file nowhere.nc"


def test_a_fault_of_our_own_is_said_to_be_one(run, monkeypatch):
    def fail(*_: object) -> None:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr("recipes.commands.reproduce._say_experiments", fail)
    code, _, err = run("reproduce", "--list")
    assert code == 1 and "Traceback" not in err and len(err.splitlines()) == 1
    assert "a fault of stages itself (ZeroDivisionError: division by zero)" in err
    assert "--debug" in err
