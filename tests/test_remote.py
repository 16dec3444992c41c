import io
import json
import os
import re
import traceback
from dataclasses import replace
from pathlib import Path

import huggingface_hub.constants
import numpy as np
import pytest
import torch
import xarray as xr
import zstandard
from answers import program, saved, tensor, two_faced
from families import DIFFERENT, random_tokens
from families import config as config_of
from hub import COMMIT
from loopback import KEY, completed, configure, result, serving
from nnsight import CONFIG
from safetensors.torch import load_file
from strict import StrictBackend
from transformers import AutoModelForCausalLM

from probes.wic import probe_wic
from robustness.errors import Refusal
from robustness.measurements.measurement import local_attention
from robustness.measurements.observation import observe
from robustness.measurements.requirements import unfit
from robustness.models import opening
from robustness.models.facts import Facts
from robustness.models.opening import open_model
from robustness.models.structure import find_paths
from robustness.models.weight_processing import process
from robustness.ndif import backend
from robustness.reordered.generation import generate
from robustness.reordered.settings import Sampling
from robustness.runs.remote_traffic import of_plan
from robustness.runs.settings import RunOptions
from robustness.schedules import clean, drop
from robustness.schedules.interventions import schedules
from robustness.schedules.plan import compile_plan
from robustness.sweeps import rewire, sweep
from robustness.sweeps.tracing import FinalReading, run_plan
from robustness.text.corpus import Corpus, cut
from robustness.trace import readings

NAME = "stages/tiny"


@pytest.fixture(scope="module")
def running(llama):
    """A hub, and a server that runs its one model in float64."""
    with serving(NAME, llama, torch.float64) as both:
        yield both


@pytest.fixture(scope="module")
def paths(llama):
    """Where the parts of the one model are, which takes longer to find than all else."""
    return find_paths(AutoModelForCausalLM.from_pretrained(llama))


@pytest.fixture
def server(running, paths, monkeypatch, tmp_path):
    """The server, with nothing wrong, as what this process is configured for."""
    monkeypatch.setattr(opening, "find_paths", lambda _: paths)
    configure(monkeypatch, *running, tmp_path / "cache")
    monkeypatch.setattr(backend, "FIRST_WAIT", 0.0)
    return running[1]


@pytest.fixture(scope="module")
def opened(running, paths, tmp_path_factory):
    """The model, opened once, for tests that are not about that."""
    with pytest.MonkeyPatch.context() as patch:
        configure(patch, *running, tmp_path_factory.mktemp("cache"))
        patch.setattr(opening, "find_paths", lambda _: paths)
        return open_model(NAME, remote=True)


@pytest.fixture
def there(server, opened):
    """The model on the server, of which nothing but what opening found is known."""
    return replace(opened, facts=Facts())


@pytest.fixture(scope="module")
def local(llama):
    return open_model(llama, dtype="float64")


@pytest.fixture
def corpus(local, stories):
    return cut(str(stories), local.tokenizer, context=24, tokens=24 * 20)


@pytest.mark.slow
def test_there_is_as_here(server, local, corpus, monkeypatch):
    """Whatever is measured on a server is what is measured on this machine."""
    monkeypatch.setattr(opening, "find_paths", find_paths)
    there = open_model(NAME, remote=True)
    assert there.traced._module.device.type == "meta"
    assert there.identity["dtype"] == "float64" and there.identity["revision"] == COMMIT
    found, expected = (sweep(m, corpus, ("drop", "swap"), batch_tokens=200) for m in (there, local))
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, atol=1e-10, err_msg=name)
    assert found.attrs["server"] == "127.0.0.1"
    versions = "python 3.12.1, nnsight 0.8.0, torch 2.13.0, transformers 5.22.2"
    assert found.attrs["server_versions"] == versions
    assert KEY not in str(found.attrs) + repr(there) + repr(there.request)
    names = ("lens", "norms", "similarity", "cka")
    observed = [observe(m, corpus, names, RunOptions(batch_tokens=200)) for m in (there, local)]
    for name in names:
        for variable in observed[1][name].data_vars:
            pair = [each[name][variable] for each in observed]
            np.testing.assert_allclose(*pair, atol=1e-10, err_msg=f"{name} {variable}")


@pytest.mark.slow
def test_one_request_a_batch(server, corpus):
    there = open_model(NAME, remote=True)
    assert server.requests == 1, "a model is checked in one request"
    sweep(there, corpus, batch_tokens=24 * 4)
    assert server.requests == 1 + 5


@pytest.mark.slow
def test_a_model_is_examined_in_one_request(server, corpus):
    there = open_model(NAME, remote=True)
    assert set(unfit(there, corpus, ("attention", "norms"))) == {"attention"}, "the text is short"
    assert server.requests == 2
    observe(there, corpus, ("norms",), RunOptions(batch_tokens=24 * 16))
    assert server.requests == 4, "the text is of two batches, and the model is examined already"


@pytest.mark.slow
def test_a_rewired_model_runs_there(server, there, local):
    tokens = torch.arange(10)[None]
    schedule = drop(clean(4), 2)
    logits = []
    for model in (there, local):
        edited = rewire(model, schedule)
        with torch.no_grad(), edited.trace(tokens, use_cache=False, **model.request):
            kept = edited.lm_head.output.save()
        logits.append(kept)
    assert torch.allclose(*logits, atol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("family", DIFFERENT)
def test_what_comes_back_does_not_grow_with_the_vocabulary(family):
    received = []
    for vocabulary in (101, 3001):
        config = config_of(family)
        config.vocab_size = vocabulary
        opened = open_model(AutoModelForCausalLM.from_config(config))
        backend = StrictBackend(opened.traced)
        model = replace(opened, request={"backend": backend})
        tokens = random_tokens(16, 24).numpy()
        rows, document = np.full(16, 24), np.arange(16)
        text = Corpus(tokens, rows, document, "random", "windows", "none", 0)
        sweep(model, text, ("drop", "swap"))
        observe(model, text, ("lens", "cka", "norms", "similarity", local_attention(8)))
        plan = compile_plan([drop(clean(4), 1)], clean(4))
        where = {name: torch.arange(3) for name in ("targets", "item", "query")}
        scored = {"vocabulary": vocabulary, **where}
        ids = torch.from_numpy(tokens)
        wanted = {name: ((1, 3), (torch.float32,)) for name in ("loss", "hit")}
        reading = FinalReading(readings.score, scored, wanted)
        run_plan(model, ids, plan, (None, None), reading)
        received.append(backend.received)
    assert len(received[0]) == 4, "sweep, structure, measurements, scores"
    assert received[0] == pytest.approx(received[1], rel=0.01)


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


@pytest.mark.slow
def test_a_result_may_come_by_a_link(server, there, local, corpus):
    server.links = True
    found = sweep(there, corpus, ("drop",))
    np.testing.assert_allclose(found.kl, sweep(local, corpus, ("drop",)).kl, atol=1e-10)


@pytest.mark.slow
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


def say(server, path, status, value):
    server.pages = {path: (status, value)}


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


def test_host_goes_with_remote(run):
    code, _, err = run("sweep", "builtin", "--host", "http://127.0.0.1:1")
    assert code == 2 and "go with --remote" in err


@pytest.mark.slow
@pytest.mark.parametrize("revision", ["main", COMMIT])
def test_the_commit_that_runs_may_be_named(server, run, stories, revision):
    words = ["sweep", NAME, "--remote", "--data", stories, "--context", 24, "--tokens", 48]
    code, out, err = run(*words, "--revision", revision, "--out", "sweep.nc")
    assert (code, out) == (0, "sweep.nc\n"), err
    assert xr.load_dataset("sweep.nc").attrs["revision"] == COMMIT


class Evil:
    def __reduce__(self):
        return os.system, ("touch owned",)


@pytest.mark.slow
@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_server_cannot_run_anything_here(server, run, inside, zipped):
    buffer = io.BytesIO()
    torch.save(Evil(), buffer, _use_new_zipfile_serialization=zipped)
    server.faults = [result({"found": Evil()}) if inside else buffer.getvalue()]
    code, _, err = run("sweep", NAME, "--remote")
    assert code == 1 and "is not understood" in err and not Path("owned").exists()


@pytest.mark.slow
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
    "no such token": ("sweep", change("top", lambda value: value + 2**30)),
    "less than no token": ("sweep", change("top", lambda value: value - 5)),
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
def test_an_error_in_a_trace_tells_its_line(server, there):
    expected = r"no_such_thing' \(line \d+ of test_remote.py: .*blocks\[1\].no_such_thing\(2\)\)"
    with (
        pytest.raises(Refusal, match=expected),
        there.traced.trace(torch.arange(5)[None], **there.request),
    ):
        entering = there.blocks[0].input
        there.blocks[1].no_such_thing(2)
        entering.save()


@pytest.mark.slow
def test_a_trace_that_forgets_where_it_runs_loads_nothing(server, there):
    for model in (there.traced, rewire(there, drop(clean(4), 1))):
        with (
            pytest.raises(Refusal, match=r"trace\(…, \*\*model\.request\)"),
            model.trace(torch.arange(5)[None]),
        ):
            model.output.save()
    assert there.traced._module.device.type == "meta"


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


def test_models_lists_what_runs(server, run):
    code, out, _ = run("models", "--remote")
    assert code == 0
    header, row = out.splitlines()
    assert header.split() == ["model", "state", "dtype", "revision"]
    assert row.split() == [NAME, "running", "float64"]


@pytest.mark.slow
def test_deploy_asks_for_a_model_that_does_not_run(server, run, stories):
    server.state = "NOT_STARTED"
    words = ["sweep", NAME, "--remote", "--data", stories, "--context", 24, "--tokens", 48]
    assert run(*words)[0] == 1
    code, _, err = run(*words, "--deploy")
    assert code == 0, err


@pytest.mark.slow
def test_neurons_are_measured_here(server, run, monkeypatch):
    """Weights are read from the hub, and the server is not asked."""
    monkeypatch.setattr(CONFIG.API, "HOST", "http://127.0.0.1:1")
    code, out, err = run("observe", NAME, "neurons", "--remote")
    assert (code, out) == (0, "outputs/tiny/neurons.nc\n"), err
    assert err.startswith(
        "stages: reading the weights of stages/tiny, for neurons on this machine\n"
    )


@pytest.mark.slow
def test_only_what_writes_to_the_vocabulary_is_fetched(running, server, llama, run):
    """The tensors that neurons are measured on come alone, by their bytes."""
    hub, _ = running
    before = hub.sent
    assert run("observe", NAME, "neurons")[0] == 0
    sent = hub.sent - before
    tensors = load_file(llama / "model.safetensors")
    wanted = ("down_proj", "lm_head", "model.norm.")
    least = sum(t.nbytes for name, t in tensors.items() if any(part in name for part in wanted))
    small = sum(f.stat().st_size for f in llama.iterdir() if f.suffix != ".safetensors")
    header = 8 + int.from_bytes((llama / "model.safetensors").read_bytes()[:8], "little")
    # Small files are asked about before they are fetched, the header once.
    assert least < sent <= least + header + small
    assert least < sum(t.nbytes for t in tensors.values()) / 2
    run("observe", llama, "neurons", "--out", "local")
    there, local = (xr.load_dataset(f"{d}/neurons.nc") for d in ("outputs/tiny", "local"))
    np.testing.assert_array_equal(there.cosine_kurtosis, local.cosine_kurtosis)


def test_a_hub_that_sends_nonsense_is_refused(running, server, run, monkeypatch):
    hub, _ = running
    monkeypatch.setattr(type(hub), "cut", 7, raising=False)
    code, _, err = run("observe", NAME, "neurons", "--quiet")
    assert code == 1 and "bytes where" in err and len(err.splitlines()) == 1


@pytest.mark.slow
def test_weights_of_a_remote_model_are_not_processed(server, there):
    with pytest.raises(Refusal, match="are on a server"):
        process(there)


@pytest.mark.slow
def test_the_sandbox_is_told_of_and_limited(server, corpus):
    """What a sandboxed server would pass through its socket is refused above a limit."""
    said = []
    there = replace(open_model(NAME, remote=True, notify=said.append), sandboxed=True)
    sweep(there, corpus, ("drop",))
    (text,) = said
    assert "in a sandbox" in text and "calls and" in text and "in 1 requests" in text
    small = open_model(NAME, remote=True, sandbox_limit=1e-6)
    with pytest.raises(Refusal, match=r"`layers`.*readout agreement.*sandbox.limit"):
        sweep(replace(small, sandboxed=True), corpus, ("drop",))
    with pytest.raises(Refusal, match=r"fewer `tokens`.*`sandbox_limit`"):
        observe(replace(small, sandboxed=True), corpus, ("lens",))


@pytest.mark.slow
def test_a_probe_names_only_what_it_has(server):
    small = replace(open_model(NAME, remote=True, sandbox_limit=1e-9), sandboxed=True)
    with pytest.raises(Refusal, match="fewer pairs, in a directory of your own, or raise") as told:
        probe_wic(small)
    assert "--items" not in str(told.value)


def test_fewer_readouts_and_layers_cost_less(local):
    costs = []
    for layers, divergences in ((None, 1), (None, 0), ([1, 2], 0)):
        runs = list(schedules(("drop", "swap"), 4, layers).values())
        plan = compile_plan(runs, clean(4), cap=2)
        costs.append(of_plan(local, plan, 480, 480, divergences).bytes)
    assert costs[0] > costs[1] > costs[2]
