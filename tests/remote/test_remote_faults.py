"""What a server, or the way there, fails at: tried again, or refused in one line."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from loopback import KEY, NAME, said
from nnsight.schema.response import Status

from robustness.errors import Refusal, Unanswered
from robustness.models.opening import open_model
from robustness.models.pass_check import runs_as_passes
from robustness.ndif import job, jobs, patience
from robustness.ndif.report import Report
from robustness.ndif.server import deployments
from robustness.sweeps import sweep
from robustness.sweeps.rounding_floor import estimate_floor

OF_TRACES = "Traceback (most recent call last):\n  x\n"


@pytest.fixture
def ask(there):
    """A small request, with some patience and a list of what the user is told."""

    def asked(minutes=10.0):
        said = []
        requests = there.request["backend"].expecting(100)
        requests.limits = replace(requests.limits, patience=minutes)
        requests.notify = said.append
        with torch.no_grad(), there.traced.trace(torch.arange(5)[None], backend=requests):
            kept = there.blocks[0].output.sum().save()
        assert kept.isfinite()
        return said

    return asked


@pytest.mark.slow
@pytest.mark.parametrize(
    "fault",
    ["forgotten", "silent", 503, 429, "error: Replica was evicted. Please try again later."],
)
def test_what_passes_is_tried_again(server, local, corpus, monkeypatch, fault):
    monkeypatch.setattr(job, "UNKNOWN", 0.1)
    monkeypatch.setattr(jobs, "SILENCE", 0.1)
    monkeypatch.setattr(jobs, "QUIET", 0.03)
    said = []
    there = open_model(NAME, remote=True, notify=said.append)
    server.faults = [fault, fault]
    found = sweep(there, corpus, ("drop",))
    np.testing.assert_allclose(found.kl, sweep(local, corpus, ("drop",)).kl, atol=1e-10)
    again = [text for text in said if "trying again" in text]
    assert len(again) == 1 and again[0].endswith("; trying again for up to 10 min")
    assert KEY not in "".join(said)
    assert server.executed == 2, "one request opens the model, and one is the sweep"
    if fault == "silent":
        assert f"{server.url}: Added to Queue at position 1." in said


@pytest.mark.slow
def test_a_job_is_executed_once_however_often_the_connection_is_cut(server, ask):
    server.polls = [None] * 5
    assert len(ask()) == 1, "the user is told once"
    server.polls, server.fetches = [None, (502, b""), (504, b"<html>")], [None, (503, b"")]
    ask()
    assert (server.requests, server.executed) == (2, 2) and not server.polls + server.fetches


@pytest.mark.slow
@pytest.mark.parametrize("renames", [False, True])
def test_a_job_whose_receipt_is_lost_is_found_by_its_own_name(server, ask, monkeypatch, renames):
    """A server that gives jobs other names runs it twice, since nothing is known of the first."""
    monkeypatch.setattr(job, "UNKNOWN", 0.1)
    server.faults, server.renames = ["unanswered"], renames
    ask()
    assert server.executed == server.requests == (2 if renames else 1)
    assert len(set(server.ids)) == len(server.ids)


@pytest.mark.slow
def test_a_job_that_a_server_learns_of_late_is_not_sent_again(server, ask, monkeypatch):
    """A server that reconnects to its compute knows no jobs, and takes none, for a while."""
    monkeypatch.setattr(job, "UNKNOWN", -1.0)
    server.faults = [None, 503]
    server.polls = [(404, b"")] * 2
    ask()
    assert (server.requests, server.executed) == (2, 1), "the second was refused"


@pytest.mark.slow
def test_a_running_job_has_no_limit_unless_the_server_was_away(server, ask, monkeypatch):
    """One that waits for its turn has one; one that runs may run for hours."""
    monkeypatch.setattr(jobs, "SILENCE", 0.0)
    monkeypatch.setattr(job, "LEAST_AFTER_RESTART", 0.1)
    monkeypatch.setattr(job, "UNKNOWN", 0.0)
    server.seconds = 0.5
    with monkeypatch.context() as patch:
        # A job waits for its turn for some milliseconds.
        patch.setattr(jobs, "SILENCE", 60.0)
        assert ask(0.001) == [] and server.executed == 1
    server.seconds, server.faults = 0.0, ["endless"]
    with monkeypatch.context() as patch:
        patch.setattr(jobs, "SILENCE", 60.0)
        server.polls = [
            (200, said("*", Status.RUNNING, "Your job has started running.")),
            (503, b""),
        ]
        assert ask(0.001)[-1].startswith("the server was away, and nothing is heard of the job")
    assert server.executed == 2


@pytest.mark.slow
def test_patience_ends(server, ask, monkeypatch):
    """Waits double up to a minute, with chance in them, until as much time is lost as was said."""
    clock = [0.0]
    waits = []

    def sleep(seconds):
        waits.append(seconds)
        clock[0] += seconds

    monkeypatch.setattr(patience, "FIRST_WAIT", 1.0)
    monkeypatch.setattr(job.Job, "pause", 0.0)
    monkeypatch.setattr(patience.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(patience.time, "sleep", sleep)
    server.faults, server.polls = ["silent"] * 2, [None] * 100
    with pytest.raises(Refusal, match=r"asked \d+ times in vain.*the same command goes on"):
        ask(10.0)
    waits = [wait for wait in waits if wait]
    assert sum(waits) == pytest.approx(600)
    for attempt, wait in enumerate(waits[:-1]):
        whole = min(60.0, 2.0**attempt)
        assert whole / 2 <= wait <= whole
    assert len({wait / 2**attempt for attempt, wait in enumerate(waits[:5])}) > 1, "no jitter"
    server.polls = [None]
    with pytest.raises(Refusal, match="asked once in vain"):
        ask(0.0)


def test_time_that_a_job_lives_is_not_lost(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(patience.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(patience.time, "sleep", lambda _: None)
    waits = patience.Patience("host", 10.0, lambda text: None)
    for _ in range(3):
        clock[0] += 3600
        waits.wait("evicted", lived=3600)
    clock[0] += 3600
    with pytest.raises(Refusal, match="4 times in vain"):
        waits.wait("lost")


def test_a_job_is_asked_for_ever_more_rarely(monkeypatch):
    """A short one is found done within a twentieth of its time, a long one within two seconds."""
    clock = [0.0]
    monkeypatch.setattr(job.time, "monotonic", lambda: clock[0])
    asked = job.Job(600.0)
    asked.submit()
    pauses = []
    while clock[0] < 600:
        pauses.append(asked.pause)
        assert pauses[-1] <= max(0.02, 0.05 * clock[0] + 1e-9)
        clock[0] += pauses[-1]
    assert pauses[0] == 0.02 and max(pauses) == 2.0 and pauses == sorted(pauses)
    assert len(pauses) < 400


@pytest.mark.slow
def test_one_connection_carries_a_job(server, ask):
    server.seconds = 0.3
    before = server.connections
    ask()
    polls = [path for path, _ in server.headers if path.startswith("/response/")]
    assert len(polls) > 5 and server.connections - before == 1


@pytest.mark.slow
def test_the_cost_of_every_answered_request_is_reported(server, there, ask):
    reports = there.request["backend"].reports
    before = len(reports)
    cost = {"runtime": 0.5, "max_mem_by_gpu": {"0": 10}, "max_mem_pct_by_gpu": {"0": 50.0}}
    server.meta = cost
    ask()
    server.faults = ["error: no"]
    with pytest.raises(Refusal, match="could not do it: no"):
        ask()
    server.meta, server.faults = None, ["error: no"]
    with pytest.raises(Refusal, match="could not do it: no"):
        ask()
    assert reports[before:] == [Report(0.5, 10, 20)] * 2


SHORT = {
    "CUDA": (OF_TRACES + "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate", "memory"),
    "old CUDA": (OF_TRACES + "torch.cuda.OutOfMemoryError: CUDA out of memory.", "memory"),
    "MPS": (OF_TRACES + "RuntimeError: MPS backend out of memory (MPS allocated: 1 GB)", "memory"),
    "CPU": (OF_TRACES + "RuntimeError: [enforce fail at alloc_cpu.cpp:121] err == 0. "
            "DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.", "memory"),
    "Python": (OF_TRACES + "MemoryError", "memory"),
    "NumPy": (OF_TRACES + "numpy._core._exceptions._ArrayMemoryError: Unable", "memory"),
    "hidden": (OF_TRACES + "torch.OutOfMemoryError: CUDA out of memory.\n\nDuring handling of the "
               "above exception, another exception occurred:\n\n" + OF_TRACES + "KeyError: 1",
               "memory"),
    "time": ("Your job exceeded the execution timeout of 60.0s.", "time"),
    "said apart": ("it failed", "memory"),
    "a variable": (OF_TRACES + "  print('out of memory')\nKeyError: 1", None),
    "no deployment": ("Could not deploy this model. CUDA out of memory.", None),
    "words of a trace": (OF_TRACES + "ValueError: Your job exceeded the execution timeout", None),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("case", SHORT)
def test_a_request_that_is_too_large_is_sent_once_and_says_what_it_lacks(server, ask, case):
    text, lacking = SHORT[case]
    server.meta = {"alloc_shortfall_by_gpu": {"0": 5}} if case == "said apart" else None
    server.faults = [f"error: {text}"]
    with pytest.raises(Refusal) as told:
        ask()
    assert getattr(told.value, "lacking", None) == lacking and server.requests == 1
    assert ("ask for fewer `batch_tokens`" in str(told.value)) == (lacking is not None)
    assert len(str(told.value).splitlines()) == 1


@pytest.mark.slow
def test_what_is_done_when_the_server_goes_is_kept(server, local, corpus, run, stories):
    words = ["sweep", NAME, "--remote", "--data", stories, "--context", 24, "--tokens", 480]
    words += ["--batch-tokens", 96, "--drop", "--out", "sweep.nc"]
    server.good = 3
    code, out, err = run(*words, "--patience", 0)
    assert code == 1 and not out and "in vain" in err.splitlines()[-1]
    partial = xr.load_dataset("sweep.partial.nc")
    assert partial.sequences_done == 8 and not Path("sweep.nc").exists()
    server.good = None
    before = server.requests
    code, out, err = run(*words)
    assert (code, out) == (0, "sweep.nc\n"), err
    assert server.requests - before == 1 + (20 - partial.sequences_done) // 4
    expected = sweep(local, corpus, ("drop",))
    np.testing.assert_allclose(xr.load_dataset("sweep.nc").kl, expected.kl, atol=1e-10)


@pytest.mark.slow
def test_interrupted_while_it_waits_it_keeps_what_is_done(server, run, stories, monkeypatch):
    """The job that runs is named, since its user cannot end it."""
    words = ["sweep", NAME, "--remote", "--data", stories, "--context", 24, "--tokens", 480]
    words += ["--batch-tokens", 96, "--drop", "--out", "sweep.nc"]
    real = jobs.time.sleep
    server.faults = [None, None, None, "endless"]

    def stop(seconds):
        if server.requests == 4:
            raise KeyboardInterrupt
        real(seconds)

    monkeypatch.setattr(jobs.time, "sleep", stop)
    code, _, err = run(*words)
    assert code == 130 and "what was measured is kept" in err
    assert f"goes on with job {server.ids[-1]}: a job cannot be cancelled from here" in err
    assert xr.load_dataset("sweep.partial.nc").sequences_done == 8


@pytest.mark.slow
def test_a_server_that_is_there_is_waited_for_before_a_run(server, monkeypatch):
    """One that is not there, as after a slip in its address, is not."""
    down = [(503, {}), (502, {}), (504, {}), (429, {}), (500, {})]
    answers = [*down, (200, server.status)]

    class Pages(dict):
        def __getitem__(self, path):
            return answers.pop(0) if len(answers) > 1 else answers[0]

    server.pages = Pages({"/status": None})
    said = []
    assert deployments(server.url, notify=said.append) and len(said) == 1
    assert said[0].endswith("(status 503); trying again for up to 10 min")
    answers[:] = [(503, {})]
    with pytest.raises(Refusal, match=r"once in vain .*status 503"):
        deployments(server.url, patience=0)
    for address in ("http://127.0.0.1:1", "http://ndif.invalid"):
        with pytest.raises(Refusal, match="cannot be reached"):
            deployments(address, notify=said.append)
    assert len(said) == 1


@pytest.mark.slow
@pytest.mark.parametrize("what", ["passes", "floor"])
def test_a_model_is_not_taken_to_lack_what_a_server_was_not_there_for(
    server, there, corpus, monkeypatch, what
):
    half = replace(there, identity=there.identity | {"dtype": "bfloat16"})
    asked = {
        "passes": lambda: runs_as_passes(there),
        "floor": lambda: estimate_floor(half, corpus, lambda text: None),
    }[what]
    requests = there.request["backend"]
    monkeypatch.setattr(requests, "limits", replace(requests.limits, patience=0.0))
    server.good = 0
    with pytest.raises(Unanswered, match="in vain"):
        asked()


@pytest.mark.slow
def test_a_reproduction_ends_with_the_server(server, run, stories):
    words = ("E1", "E6", "--data", stories, "--context", 24, "--tokens", 200, "--out", "rep")
    # The checks on opening are answered, and nothing after them.
    server.good = 2
    code, _, err = run("reproduce", NAME, *words, "--remote", "--patience", 0)
    assert code == 1 and err.count("in vain") == 1
    assert not Path("rep/report.html").exists()
