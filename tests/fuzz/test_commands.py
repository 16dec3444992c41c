"""Fifteen hundred command lines: a status, a line, nothing of the user's touched, nothing left."""

import io
import math
import signal
import sys
from collections.abc import Iterator

import pytest
from command_lines import command_lines
from hypothesis import HealthCheck, Phase, given, seed, settings
from workplace import PATIENCE, copy, furnish, hidden, share, state

import cli
from robustness.models import checkpoint
from robustness.text import sources

LINES = 1500
BATCH = 25
BATCHES = max(1, math.ceil(LINES / BATCH * share()))

STATUSES = {0, 1, 2, 130, 141}


class Hang(BaseException):
    """Raised where a command takes too long."""


@pytest.fixture(scope="session")
def furnished(tmp_path_factory, llama):
    """A directory as a user might have it, of which every command line gets a copy."""
    directory = tmp_path_factory.mktemp("furnished") / "workplace"
    directory.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        furnish(directory, llama, lambda *words: call(patch, words))
    return directory


def call(patch: pytest.MonkeyPatch, words) -> tuple[int, str]:
    """Run a command line in this process; return its status and standard error."""
    out, err = io.StringIO(), io.StringIO()
    patch.setattr(sys, "argv", ["stages", *words])
    patch.setattr(sys, "stdout", out)
    patch.setattr(sys, "stderr", err)
    patch.setattr(sys, "stdin", io.StringIO("Once upon"))

    def stop(*_: object) -> None:
        raise Hang(" ".join(words))

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, PATIENCE)
    try:
        cli.main()
        status = 0
    except SystemExit as error:
        status = error.code
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    return status, err.getvalue()


def wrong(words: list[str], status: int, err: str) -> Iterator[str]:
    """Yield what is wrong with how a command ended."""
    if status not in STATUSES:
        yield f"status {status}"
    if "a fault of stages itself" in err:
        yield "an error that no door refused"
    if "Traceback" in err and "--debug" not in words:
        yield "a traceback"
    told = [line for line in err.splitlines() if line.startswith(("stages: ", "Error: "))]
    if status and not told:
        yield "no line that says why"
    last = told[-1] if told else ""
    if status == 1 and not any(sign in last for sign in ":;(,"):
        yield "a reason without a remedy"


@pytest.mark.slow
@pytest.mark.parametrize("number", range(BATCHES))
def test_every_command_line_ends_in_a_status_and_a_line(number, furnished, llama, tmp_path):
    problems: list[str] = []
    place = tmp_path / "workplace"

    @seed(number)
    @settings(
        max_examples=BATCH,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(command_lines())
    def ends(words):
        copy(furnished, place)
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(place)
            patch.setenv("HOME", str(tmp_path / "home"))
            for name in checkpoint.BUILTIN:
                patch.setitem(checkpoint.BUILTIN, name, str(llama))
            for name in sources.BUILTIN:
                patch.setitem(sources.BUILTIN, name, str(place / "stories.jsonl"))
            before = state(place)
            try:
                status, err = call(patch, words)
                found = list(wrong(words, status, err))
            except Hang:
                status, err, found = -1, "", [f"more than {PATIENCE:.0f} s"]
        after = state(place)
        if any(after.get(name) != content for name, content in before.items()):
            found.append("something of the user's was changed")
        if hidden(place):
            found.append(f"left: {hidden(place)}")
        problems.extend(f"{problem}: {words} ({status}) {err[-400:]}" for problem in found)

    ends()
    assert not problems, "\n".join(problems)
