"""What a server answers is not trusted: nothing of it is run, and all of it is bounded."""

import io
import json
import os
import traceback
from pathlib import Path

import pytest
import torch
import zstandard
from answers import program, saved, tensor, two_faced
from loopback import KEY, NAME, completed, result, say

from robustness.errors import Refusal
from robustness.measurements.observation import observe
from robustness.models.opening import open_model
from robustness.ndif import backend
from robustness.reordered.generation import generate
from robustness.reordered.settings import Sampling
from robustness.schedules import clean
from robustness.sweeps import sweep


@pytest.mark.slow
def test_the_key_stays_here_even_if_a_trace_names_the_model(server, there, monkeypatch):
    blobs = []
    real = backend.Requests._send
    monkeypatch.setattr(backend.Requests, "_send", lambda s, b: blobs.append(b) or real(s, b))
    with torch.no_grad(), there.traced.trace(torch.arange(5)[None], **there.request):
        kept = there.blocks[0].output.sum().save()
    assert kept.isfinite()
    (blob,) = blobs
    plain = zstandard.ZstdDecompressor().decompress(blob)
    assert b"blocks" in plain and KEY.encode() not in plain


class Evil:
    def __reduce__(self):
        return os.system, ("touch owned",)


@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_server_cannot_run_anything_here(server, run, inside, zipped):
    buffer = io.BytesIO()
    torch.save(Evil(), buffer, _use_new_zipfile_serialization=zipped)
    server.faults = [result({"found": Evil()}) if inside else buffer.getvalue()]
    code, _, err = run("sweep", NAME, "--remote")
    assert code == 1 and "is not understood" in err and not Path("owned").exists()


@pytest.mark.parametrize("way", ["message", "result", "link"])
def test_a_program_is_no_result_however_it_is_hidden(server, run, way):
    content = two_faced(program("owned"), tensor())
    packed = zstandard.ZstdCompressor().compress(content)
    server.staged = packed
    link = completed(f"{server.url}/staged?Key=1")
    server.faults = [{"message": content, "result": completed(packed), "link": link}[way]]
    code, _, err = run("sweep", NAME, "--remote")
    assert code == 1 and "something else in it" in err and not Path("owned").exists()


@pytest.mark.slow
@pytest.mark.parametrize("way", ["message", "result", "link"])
def test_no_more_is_taken_than_was_asked_for(server, run, way):
    """Three gigabytes of zeros are few bytes on the way, or many."""
    packed = zstandard.ZstdCompressor().compress(bytes(2**28))
    server.staged = bytes(2**25)
    link = completed(f"{server.url}/staged?Key=1")
    server.faults = [{"message": bytes(2**25), "result": completed(packed), "link": link}[way]]
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


@pytest.mark.slow
@pytest.mark.parametrize(
    "greeting",
    ["[]", "{}", "1", "text", '{"session_id": 3}', '{"session_id": "\\u001b[2J"}', "[" * 100_000,
     json.dumps({"session_id": "x" * 10_000})],
)  # fmt: skip
def test_a_subscription_that_begins_otherwise_is_refused(server, run, greeting):
    server.greeting = greeting
    code, _, err = run("sweep", NAME, "--remote", "--quiet")
    assert code == 1 and "begins with no session_id" in err and len(err.splitlines()) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "frame",
    ["[]", "null", "{}", '{"status": "LOST"', '{"status": ["OK"]}', "[" * 100_000,
     '{"status": "COMPLETED", "data": [1]}', '{"status": "QUEUED", "description": {}}'],
)  # fmt: skip
def test_a_message_that_is_none_is_refused(server, run, frame):
    server.faults = [frame]
    code, _, err = run("sweep", NAME, "--remote", "--quiet")
    assert code == 1 and len(err.splitlines()) == 1
    assert "is not understood" in err or "damaged or changed" in err


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
def test_the_key_is_in_no_traceback(server, monkeypatch, capsys, fault):
    if fault == "gate":
        server.refuses = [(403, {"cookie": KEY})]
    else:
        answers = {"garbage": saved({"status": [KEY]})}
        server.faults = [answers.get(fault, str(fault).format(KEY=KEY)) if fault != 403 else 403]
    try:
        open_model(NAME, remote=True)
    except Refusal as error:
        told = "".join(traceback.format_exception(error))
    assert "Refusal" in told and KEY not in told
