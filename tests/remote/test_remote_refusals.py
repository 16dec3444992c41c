"""What cannot be done on a server is refused in one line."""

import re
from pathlib import Path

import huggingface_hub.constants
import pytest
from loopback import KEY, NAME, Staged, linked, result, say
from nnsight import CONFIG

OF_TRACES = "Traceback (most recent call last):\n  x\n"


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
