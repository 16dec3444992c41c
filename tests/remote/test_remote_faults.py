"""What a server, or the way there, fails at: tried again, or refused in one line."""

import re
from dataclasses import replace
from pathlib import Path

import huggingface_hub.constants
import numpy as np
import pytest
import torch
import xarray as xr
from loopback import KEY, NAME, Staged, linked, result, said, say
from nnsight import CONFIG
from nnsight.schema.response import Status

from robustness.errors import Refusal
from robustness.models.opening import open_model
from robustness.ndif import job, jobs, patience
from robustness.ndif.report import Report
from robustness.ndif.server import deployments
from robustness.sweeps import sweep

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


REFUSED = {
    "no key": (lambda s, m: m.setattr(CONFIG.API, "APIKEY", None), "there is no NDIF key"),
    "malformed key": (lambda s, m: m.setattr(CONFIG.API, "APIKEY", "se-cret"), "is no NDIF key"),
    "wrong key": (lambda s, m: s.faults.append(403), "does not accept the key"),
    "old client": (lambda s, m: s.faults.append(400), "could not do it: Failed to send"),
    "host down": (
        lambda s, m: m.setattr(CONFIG.API, "HOST", "http://127.0.0.1:1"),
        "cannot be reached .*refused",
    ),
    "no DNS": (
        lambda s, m: m.setattr(CONFIG.API, "HOST", "http://ndif.invalid"),
        "http://ndif.invalid cannot be reached",
    ),
    "no address": (lambda s, m: m.setattr(CONFIG.API, "HOST", "api.ndif.us"), "no address"),
    "a password": (lambda s, m: m.setattr(CONFIG.API, "HOST", "http://me:se-cret@x"), "no address"),
    "another host": (lambda s, m: say(s, "/status", 404, "none"), "is not an NDIF server"),
    "a web site": (lambda s, m: say(s, "/status", 200, "<html>"), "is not an NDIF server"),
    "another API": (lambda s, m: say(s, "/status", 200, [1]), "is not an NDIF server"),
    "compute down": (lambda s, m: say(s, "/status", 503, {}), "not what computes behind it"),
    "other nnsight": (
        lambda s, m: say(s, "/env", 200, {"packages": {"nnsight": "0.5.1"}}),
        "nnsight 0.5.1 .* install nnsight 0.5",
    ),
    "not deployed": (
        lambda s, m: say(s, "/status", 200, {"deployments": {}}),
        "does not run on .* there is no model: "
        "choose one that 'stages models --remote' lists.*--deploy",
    ),
    "unhealthy": (lambda s, m: setattr(s, "state", "UNHEALTHY"), "does not run on"),
    "hub offline": (
        lambda s, m: m.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True),
        "the hub cannot be asked",
    ),
    "hub down": (
        lambda s, m: m.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:1"),
        "the hub cannot be asked",
    ),
    "no deployment": (
        lambda s, m: s.faults.append("error: Could not deploy this model. It is too large."),
        "could not do it: Could not deploy this model. It is too large.",
    ),
    "an error there": (
        lambda s, m: s.faults.append("error: Traceback (most recent call last):\n x\nKeyError: 1"),
        "could not do it: KeyError: 1",
    ),
    "out of memory": (
        lambda s, m: s.faults.append(
            "error: Traceback (most recent call last):\nx.OutOfMemoryError: CUDA out of memory."
        ),
        "ask for fewer --batch-tokens",
    ),
    "too long": (
        lambda s, m: s.faults.append("error: Your job exceeded the execution timeout of 60.0s."),
        "ask for fewer --batch-tokens",
    ),
    "nothing deployed": (lambda s, m: say(s, "/status", 200, {"deployments": None}), "is not an"),
    "a list of models": (lambda s, m: say(s, "/status", 200, {"deployments": [1]}), "is not an"),
    "no packages": (lambda s, m: say(s, "/env", 200, {"packages": None}), "is not an NDIF"),
    "too many requests": (lambda s, m: say(s, "/status", 429, {}), "in vain .*status 429"),
    "no port": (lambda s, m: m.setattr(CONFIG.API, "HOST", "http://h:abc"), "no address"),
    "half an address": (lambda s, m: m.setattr(CONFIG.API, "HOST", "http://[x"), "no address"),
    "an odd name": (lambda s, m: m.setattr(CONFIG.API, "HOST", "http://a..b"), "no address"),
    "an odd proxy": (lambda s, m: m.setenv("HTTP_PROXY", "foo://x"), "cannot be reached"),
    "a gate": (
        lambda s, m: (s.faults.append("silent"), s.polls.append((403, {"cookie": KEY}))),
        "does not accept the key .*how the job is: status 403",
    ),
    "a signed link": (
        lambda s, m: s.faults.append(linked(f"{s.url}/none?Signature=se-cret")),
        "in vain .*404",
    ),
    "a bad link": (lambda s, m: s.faults.append(linked("http://[x")), "no result is fetched"),
    "no result": (lambda s, m: s.faults.append(linked(None)), "a result without values"),
    "an empty result": (lambda s, m: s.faults.append(result({})), "a result without values"),
    "a list": (lambda s, m: s.faults.append(result([1])), "a result without values"),
    "no zstd": (lambda s, m: s.faults.append(Staged(b"none")), "is damaged or changed"),
    "cancelled": (
        lambda s, m: s.faults.append("error: Request cancelled by operator."),
        "could not do it: Request cancelled by operator.",
    ),
    "garbage": (lambda s, m: s.faults.append(b"garbage"), "is not understood"),
    "half an answer": (
        lambda s, m: s.faults.append(Staged(result({"x": 1}).content[:-40])),
        "is not understood",
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_done_is_one_line(server, run, monkeypatch, case):
    prepare, expected = REFUSED[case]
    prepare(server, monkeypatch)
    words = ("--quiet", "--patience", 0, "--out", "sweep.nc")
    code, out, err = run("sweep", NAME, "--remote", *words)
    assert code == 1 and not out and not Path("sweep.nc").exists()
    (line,) = err.splitlines()
    assert line.startswith("stages: ")
    assert re.search(expected, line), line
    assert KEY not in err and "se-cret" not in err


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["builtin"], "builtin is on this machine"),
        ([NAME, "--revision", "0" * 40], "does not run"),
        (["."], "has no config.json"),
        (["stages/none"], "the hub has no model stages/none"),
        (["no model"], "the hub cannot be asked for no model"),
        ([NAME, "--dtype", "float64", "--device", "cpu"], "leave out --dtype and --device"),
        ([NAME, "--revision", "other"], "at other does not run"),
    ],
)
def test_what_is_no_remote_model_is_refused(server, run, words, expected):
    code, _, err = run("sweep", *words, "--remote", "--quiet")
    # Settings that exclude each other are errors of usage.
    assert code == (2 if "leave out" in expected else 1) and expected in err.splitlines()[-1]


def test_a_hub_that_sends_nonsense_is_refused(running, server, run, monkeypatch):
    hub, _ = running
    monkeypatch.setattr(type(hub), "cut", 7, raising=False)
    code, _, err = run("observe", NAME, "neurons", "--quiet")
    assert code == 1 and "bytes where" in err and len(err.splitlines()) == 1
