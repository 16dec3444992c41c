"""What a server answers is not trusted: nothing of it is run, and all of it is bounded."""

import io
import json
import os
import traceback
from pathlib import Path

import pytest
import torch
import zstandard
from answers import program, tensor, two_faced
from loopback import KEY, NAME, Staged, linked, result, say

from robustness.errors import Refusal
from robustness.measurements.observation import observe
from robustness.models.opening import open_model
from robustness.ndif import backend
from robustness.ndif.limits import Unreadable
from robustness.ndif.report import Report, read_report
from robustness.ndif.transport import place_of
from robustness.reordered.generation import generate
from robustness.reordered.settings import Sampling
from robustness.schedules import clean
from robustness.sweeps import sweep


@pytest.mark.slow
def test_the_key_stays_here_even_if_a_trace_names_the_model(server, there, monkeypatch):
    blobs = []
    real = backend.Requests._run
    monkeypatch.setattr(backend.Requests, "_run", lambda s, b: blobs.append(b) or real(s, b))
    with torch.no_grad(), there.traced.trace(torch.arange(5)[None], **there.request):
        kept = there.blocks[0].output.sum().save()
    assert kept.isfinite()
    (blob,) = blobs
    plain = zstandard.ZstdDecompressor().decompress(blob)
    assert b"blocks" in plain and KEY.encode() not in plain


class Evil:
    def __reduce__(self):
        return os.system, ("touch owned",)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_server_cannot_run_anything_here(server, run, zipped):
    buffer = io.BytesIO()
    torch.save(Evil(), buffer, _use_new_zipfile_serialization=zipped)
    packed = zstandard.ZstdCompressor().compress(buffer.getvalue())
    server.faults = [result({"found": Evil()}) if zipped else Staged(packed)]
    code, _, err = run("sweep", NAME, "--remote")
    assert code == 1 and "is not understood" in err and not Path("owned").exists()


def test_a_program_is_no_result_however_it_is_hidden(server, run):
    content = two_faced(program("owned"), tensor())
    server.faults = [Staged(zstandard.ZstdCompressor().compress(content))]
    code, _, err = run("sweep", NAME, "--remote")
    assert code == 1 and "something else in it" in err and not Path("owned").exists()


@pytest.mark.slow
@pytest.mark.parametrize("way", ["message", "packed", "plain"])
def test_no_more_is_taken_than_was_asked_for(server, run, way):
    """Megabytes of zeros are few bytes on the way, or many."""
    packed = zstandard.ZstdCompressor().compress(bytes(2**28))
    answers = {"message": bytes(2**25), "packed": Staged(packed), "plain": Staged(bytes(2**25))}
    server.faults = [answers[way]]
    code, _, err = run("sweep", NAME, "--remote", "--quiet")
    (line,) = err.splitlines()
    assert code == 1 and "larger than the 16 MB that were asked for" in line
    assert "choose another --host" in line


@pytest.mark.slow
def test_a_trace_of_ones_own_has_a_limit_too(server):
    there = open_model(NAME, remote=True, answer_limit=1e-3)
    with (
        pytest.raises(Refusal, match=r"larger than the 1 MB .*a larger `answer_limit`"),
        there.traced.trace(torch.arange(5)[None], **there.request),
    ):
        kept = there.blocks[0].output.new_zeros(2**20).save()
    assert "kept" not in locals()


@pytest.mark.slow
def test_only_what_a_trace_saves_reaches_the_caller(server, there):
    before = there
    server.mangle = lambda found: found | {"there": 1, "server": 2, "os": 3, "self": 4}
    with torch.no_grad(), there.traced.trace(torch.arange(5)[None], **there.request):
        kept = there.blocks[0].output.sum().save()
    assert kept.isfinite() and there is before and not isinstance(server, int)
    assert os.getcwd()
    server.mangle = lambda found: {"other": 1}
    with (
        pytest.raises(Refusal, match="lacks 'kept', which the trace saves"),
        there.traced.trace(torch.arange(5)[None], **there.request),
    ):
        kept = there.blocks[0].output.sum().save()


def change(name, function):
    """Return what changes one of the values of an answer, wherever in it."""

    def changed(value):
        if isinstance(value, dict):
            return {
                key: function(each) if key == name else changed(each) for key, each in value.items()
            }
        return [changed(each) for each in value] if isinstance(value, list) else value

    return changed


def without(name):
    def left(value):
        if isinstance(value, dict):
            return {key: left(each) for key, each in value.items() if key != name}
        return value

    return left


OTHER = {
    "one is missing": ("sweep", without("kl")),
    "another shape": ("sweep", change("kl", lambda value: value[:1])),
    "one for all": ("sweep", change("loss", lambda value: value[:, :1])),
    "another type": ("sweep", change("kl", lambda value: value.to(torch.int64))),
    "a list": ("sweep", change("kl", lambda value: value.tolist())),
    "no such token": ("sweep", change("top_tokens", lambda value: value + 2**30)),
    "less than no token": ("sweep", change("top_tokens", lambda value: value - 2**30)),
    "more counts than tokens": ("sweep", change("top_counts", lambda value: value * 2**20)),
    "no dictionary": ("sweep", change("measured", lambda value: [1, 2])),
    "no norms": ("norms", change("residual_norm", lambda value: value[:-1])),
    "a measurement less": ("norms", change("taken", lambda value: [])),
    "no states": ("cka", change("last", lambda value: value[..., :1])),
    "one depth for all": ("cka", change("last", lambda value: value[:1])),
    "one feature": ("cka", change("last", lambda value: value[:, :, None])),
    "a text more": ("generate", change("result", lambda value: value.expand(2, -1))),
    "another prompt": ("generate", change("result", lambda value: value.flip(1))),
    "tokens without end": ("generate", change("result", lambda value: value.repeat(1, 9))),
    "a structure of text": ("norms", change("factors", lambda value: ["x"] * 4)),
    "a model of text": ("open", change("returns", lambda value: "2")),
    "no numbers": ("open", change("dtype", lambda value: "torch.load")),
    "a scale of text": ("open", change("squash", lambda value: {"scale": "1"})),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", OTHER)
def test_what_was_not_asked_for_is_refused(server, there, corpus, case):
    """Whatever has another shape would be spread over what is measured, or end in an error."""
    task, mangle = OTHER[case]
    if task == "generate":
        tokens = corpus.tokens[0, :5].tolist()
    server.mangle = mangle
    expected = r"not what was asked for|cka gives \(\d, 1, 1\); its variable is|damaged"
    with pytest.raises(Refusal, match=expected):
        if task == "open":
            open_model(NAME, remote=True)
        elif task == "sweep":
            sweep(there, corpus, ("drop",))
        elif task == "generate":
            generate(there, tokens, [clean(4)], Sampling(tokens=3))
        else:
            observe(there, corpus, (task,))


QUEUED = {"id": "*", "status": "QUEUED"}

NO_MESSAGES = {
    "no JSON": '{"status": "QUEUED"',
    "a page": "<html>Sign in</html>",
    "nothing": b"",
    "no text": b"\xff\xfe\x00",
    "a list": [],
    "null": None,
    "a number": 1,
    "empty": {},
    "deep": "[" * 100_000,
    "no state": {"id": "*"},
    "a list of states": QUEUED | {"status": ["QUEUED"]},
    "a state that is none": QUEUED | {"status": "LOST"},
    "a state of the terminal": QUEUED | {"status": "\x1b[2J"},
    "what a trace prints": QUEUED | {"status": "LOG"},
    "no id": {"status": "QUEUED"},
    "another job": QUEUED | {"id": "0" * 32},
    "a path": QUEUED | {"id": "../../status"},
    "a long id": QUEUED | {"id": "x" * 10_000},
    "a description of numbers": QUEUED | {"description": {}},
    "no result": {"id": "*", "status": "COMPLETED"},
    "a result in pieces": {"id": "*", "status": "COMPLETED", "data": [1]},
}


@pytest.mark.slow
@pytest.mark.parametrize("case", NO_MESSAGES)
def test_a_message_that_is_none_is_refused(server, run, case):
    said = NO_MESSAGES[case]
    server.faults = [said if isinstance(said, str | bytes) else json.dumps(said)]
    code, _, err = run("sweep", NAME, "--remote", "--quiet")
    (line,) = err.splitlines()
    assert code == 1 and "is not understood" in line and line.isprintable()


@pytest.mark.slow
def test_a_job_cannot_be_renamed_into_an_address(server, run):
    """The id of a job becomes a part of what is asked for."""
    for name in ("../status", "a/b", "a?b", "\u001b[2J", "", 5):
        server.faults = [(200, json.dumps(QUEUED | {"id": name}))]
        code, _, err = run("sweep", NAME, "--remote", "--quiet")
        assert code == 1 and "no id of a job" in err, name
    assert not any("response" in path for path, _ in server.headers)


NO_LINKS = {
    "a file": "file:///etc/passwd",
    "a name": "ftp://127.0.0.1/x",
    "a password": "http://me:se-cret@127.0.0.1/x",
    "nowhere": "http:///x",
    "half a number": "http://[x",
    "another letter": "http://a\u0000b/x",
    "a path": "/etc/passwd",
    "a long one": "http://" + "x" * 70_000,
    "a surrogate": "http://\ud800/x",
}


@pytest.mark.slow
@pytest.mark.parametrize("case", NO_LINKS)
def test_only_http_leads_to_a_result(server, run, case):
    server.faults = [linked(NO_LINKS[case])]
    code, _, err = run("sweep", NAME, "--remote", "--quiet", "--patience", 0)
    (line,) = err.splitlines()
    assert code == 1 and "se-cret" not in line and line.isprintable() and len(line) < 700
    assert "link to the result is no address" in line or "no result is fetched" in line


@pytest.mark.parametrize(
    ("link", "here"),
    [
        ("http://127.0.0.1:8000/x", True),
        ("http://localhost/x", True),
        ("http://[::1]/x", True),
        ("http://[::ffff:127.0.0.1]/x", True),
        ("http://0.0.0.0/x", True),
        ("http://169.254.169.254/latest/meta-data", True),
        ("http://[fe80::1]/x", True),
        ("http://2130706433/x", True),
        ("http://10.0.0.5:9000/x", False),
        ("https://93.184.216.34/x", False),
    ],
)
def test_no_server_elsewhere_sends_to_this_machine(link, here):
    """Whatever listens here or beside this machine is not asked in a server's name."""
    if here:
        with pytest.raises(Unreadable, match="an address of this machine"):
            place_of(link, "http://93.184.216.34")
    else:
        assert link.startswith(place_of(link, "http://93.184.216.34"))
    # A tunnel, and a server of one's own.
    assert link.startswith(place_of(link, "http://127.0.0.1:5000"))


@pytest.mark.slow
def test_a_result_is_fetched_without_the_key_and_from_one_place(server, there):
    with torch.no_grad(), there.traced.trace(torch.arange(5)[None], **there.request):
        kept = there.blocks[0].output.sum().save()
    assert kept.isfinite()
    asked = {path.split("/")[1]: str(headers) for path, headers in server.headers}
    assert KEY in asked["request"] and KEY in asked["response"] and KEY not in asked["staged"]
    server.fetches = [(302, b"")] * 2
    with (
        pytest.raises(Refusal, match=r"no result is fetched from .*status 302"),
        there.traced.trace(torch.arange(5)[None], **there.request),
    ):
        there.blocks[0].output.sum().save()


def test_what_a_job_has_cost_is_believed_in_part():
    meta = {
        "runtime": 2.5,
        "max_memory_usage": 8,
        "max_mem_by_gpu": {"0": 5_000, "1": 8_000, "2": -1, "3": True, "4": "9e9", "5": 1e300},
        "max_mem_pct_by_gpu": {"0": 99.0, "1": 40.0},
    }
    assert read_report(meta) == Report(2.5, 8_000, 20_000)
    share = meta | {"max_mem_pct_by_gpu": {"1": 0.09}}
    assert read_report(share) == Report(2.5, 8_000, None), "two decimals of 0.09 % say little"
    for strange in (None, [], 3, {}, {"runtime": "1"}, {"runtime": float("nan")}, {"runtime": -1},
                    {"runtime": True}, {"max_mem_by_gpu": [1]}, {"runtime": float("inf")},
                    {"runtime": 10**400}):  # fmt: skip
        assert read_report(strange) == Report(None, None, None), strange


@pytest.mark.slow
def test_words_of_a_server_move_no_cursor(server, run):
    """What a server says is said again without what a terminal would obey."""
    escape = "\x1b[2J\x1b]0;owned\x07"
    server.faults = [f"error: {escape}no {KEY} {'x' * 10_000}"]
    code, _, err = run("sweep", NAME, "--remote")
    assert code == 1 and "\x1b" not in err and "\x07" not in err and KEY not in err
    assert "no …" in err and len(err) < 1000
    entry = server.status["deployments"]["one"] | {"repo_id": f"a/{escape}", "dtype": [1]}
    strange = {"two": {"deployment_level": []}, "three": 3, "four": entry | {"revision": {}}}
    say(server, "/status", 200, {"deployments": {"one": entry, **strange}})
    code, out, err = run("models", "--remote")
    assert code == 0 and "\x1b" not in out, err
    say(server, "/status", 200, server.status)
    odd = {"nnsight": "0.8.0", "torch": [2], "transformers": "\x1b[2J5"}
    server.pages["/env"] = (200, {"packages": odd, "python_version": 3})
    there = open_model(NAME, remote=True)
    assert there.identity["server_versions"] == "nnsight 0.8.0, transformers [2J5"


@pytest.mark.slow
@pytest.mark.parametrize("fault", [403, "error: no {KEY}", "gate", "garbage"])
def test_the_key_is_in_no_traceback(server, fault):
    if fault == "gate":
        server.faults, server.polls = ["silent"], [(403, {"cookie": KEY})]
    else:
        garbage = json.dumps({"id": "*", "status": [KEY]})
        server.faults = [{403: 403, "garbage": garbage}.get(fault, str(fault).format(KEY=KEY))]
    try:
        open_model(NAME, remote=True)
    except Refusal as error:
        told = "".join(traceback.format_exception(error))
    assert "Refusal" in told and KEY not in told
