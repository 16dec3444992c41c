"""What a server, or the way there, fails at: tried again, or refused in one line."""

import re
from pathlib import Path

import huggingface_hub.constants
import numpy as np
import pytest
import torch
import xarray as xr
from loopback import KEY, NAME, completed, result, say
from nnsight import CONFIG

from robustness.errors import Refusal
from robustness.models.opening import open_model
from robustness.ndif import backend
from robustness.schedules import clean
from robustness.sweeps import rewire, sweep


@pytest.mark.slow
@pytest.mark.parametrize(
    "fault", ["lost", "silent", 503, 429, "error: Replica was evicted. Please try again later."]
)
def test_what_passes_is_tried_again(server, local, corpus, monkeypatch, fault):
    if fault == "silent":
        monkeypatch.setattr(backend, "PATIENCE", 0.05)
        monkeypatch.setattr(backend, "SILENCE", 0.2)
    said = []
    there = open_model(NAME, remote=True, notify=said.append)
    server.faults = [fault, fault]
    found = sweep(there, corpus, ("drop",))
    np.testing.assert_allclose(found.kl, sweep(local, corpus, ("drop",)).kl, atol=1e-10)
    again = [text for text in said if "trying again" in text]
    most = backend.RESTART if fault == 503 else backend.RETRIES
    assert len(again) == 2 and again[0].endswith(f"(1 of {most})")
    assert KEY not in "".join(said)
    if fault == "silent":
        assert f"{server.url}: Moved to position 1 in Queue." in said


@pytest.mark.slow
def test_a_connection_that_ends_before_it_begins_is_tried_again(server, there, monkeypatch):
    server.refuses = [(503, {}), (502, {})]
    with torch.no_grad(), there.traced.trace(torch.arange(5)[None], **there.request):
        kept = there.blocks[0].output.sum().save()
    assert kept.isfinite()


@pytest.mark.slow
def test_a_server_that_is_restarted_is_waited_for_some_minutes(server, there, monkeypatch):
    waits = []
    monkeypatch.setattr(backend, "FIRST_WAIT", 1.0)
    monkeypatch.setattr(backend.time, "sleep", waits.append)
    server.refuses = [(503, {}), (502, {})] * (backend.RESTART // 2)
    with torch.no_grad(), there.traced.trace(torch.arange(5)[None], **there.request):
        kept = there.blocks[0].output.sum().save()
    assert kept.isfinite() and sum(waits) > 300
    real = backend.websocket.create_connection
    down = [ConnectionRefusedError(111, "Connection refused")] * (backend.RESTART + 1)
    monkeypatch.setattr(
        backend.websocket,
        "create_connection",
        lambda *words, **options: raising(down.pop()) if down else real(*words, **options),
    )
    with (
        pytest.raises(Refusal, match=r"in vain \(.*refused\)"),
        there.traced.trace(torch.arange(5)[None], **there.request),
    ):
        there.blocks[0].output.sum().save()
    assert not down


def raising(error):
    raise error


def test_waits_grow_and_are_bounded(server, there, monkeypatch):
    waits = []
    monkeypatch.setattr(backend, "FIRST_WAIT", 1.0)
    monkeypatch.setattr(backend.time, "sleep", waits.append)
    server.faults = ["lost"] * 100
    with pytest.raises(Refusal, match=r"7 times in vain.*the same command goes on"):
        rewired = rewire(there, clean(4))
        with rewired.trace(torch.arange(5)[None], use_cache=False, **there.request):
            rewired.lm_head.output.save()
    assert len(waits) == backend.RETRIES
    for attempt, wait in enumerate(waits):
        whole = min(backend.LONGEST_WAIT, 2.0**attempt)
        assert whole / 2 <= wait <= whole
    assert len({wait / 2**attempt for attempt, wait in enumerate(waits[:5])}) > 1, "no jitter"


@pytest.mark.slow
def test_what_is_done_when_the_server_goes_is_kept(server, local, corpus, run, stories):
    words = ["sweep", NAME, "--remote", "--data", stories, "--context", 24, "--tokens", 480]
    words += ["--batch-tokens", 96, "--drop", "--out", "sweep.nc"]
    server.good = 3
    code, out, err = run(*words)
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
    words = ["sweep", NAME, "--remote", "--data", stories, "--context", 24, "--tokens", 480]
    words += ["--batch-tokens", 96, "--drop", "--out", "sweep.nc"]

    def stop(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(backend.time, "sleep", stop)
    server.good = 3
    code, _, err = run(*words)
    assert code == 130 and "what was measured is kept" in err
    assert xr.load_dataset("sweep.partial.nc").sequences_done == 8


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
    "compute down": (lambda s, m: say(s, "/status", 503, {}), "try again in some minutes"),
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
    "too many requests": (lambda s, m: say(s, "/status", 429, {}), "try again in some minutes"),
    "no port": (lambda s, m: m.setattr(CONFIG.API, "HOST", "http://h:abc"), "no address"),
    "half an address": (lambda s, m: m.setattr(CONFIG.API, "HOST", "http://[x"), "no address"),
    "an odd name": (lambda s, m: m.setattr(CONFIG.API, "HOST", "http://a..b"), "no address"),
    "an odd proxy": (lambda s, m: m.setenv("HTTP_PROXY", "foo://x"), "cannot be reached"),
    "a gate": (
        lambda s, m: s.refuses.append((403, {"cookie": KEY})),
        "the connection is refused with status 403; check --host",
    ),
    "a signed link": (
        lambda s, m: s.faults.extend([completed(f"{s.url}/none?Signature=se-cret")] * 7),
        "in vain .*404",
    ),
    "a bad link": (
        lambda s, m: s.faults.extend([completed("http://[x")] * 7),
        "understood|in vain|damaged",
    ),
    "no result": (lambda s, m: s.faults.append(completed(None)), "a result without values"),
    "an empty result": (lambda s, m: s.faults.append(result({})), "a result without values"),
    "a list": (lambda s, m: s.faults.append(result([1])), "a result without values"),
    "no zstd": (lambda s, m: s.faults.append(completed(b"none")), "is damaged or changed"),
    "cancelled": (
        lambda s, m: s.faults.append("error: Request cancelled by operator."),
        "could not do it: Request cancelled by operator.",
    ),
    "garbage": (lambda s, m: s.faults.append(b"garbage"), "is not understood"),
    "half an answer": (lambda s, m: s.faults.append(result(1)[:-40]), "is damaged or changed"),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_done_is_one_line(server, run, monkeypatch, case):
    prepare, expected = REFUSED[case]
    prepare(server, monkeypatch)
    code, out, err = run("sweep", NAME, "--remote", "--quiet", "--out", "sweep.nc")
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
