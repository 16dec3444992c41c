"""Whatever runs here runs on a server, and gives the same."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import xarray as xr
from families import DIFFERENT, random_tokens
from families import config as config_of
from hub import COMMIT
from loopback import KEY, NAME
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
from robustness.models.opening import open_model
from robustness.models.structure import find_paths
from robustness.models.weight_processing import process
from robustness.runs.remote_traffic import of_plan
from robustness.runs.settings import RunOptions
from robustness.schedules import clean, drop
from robustness.schedules.interventions import schedules
from robustness.schedules.plan import compile_plan
from robustness.sweeps import rewire, sweep
from robustness.sweeps.tracing import FinalReading, run_plan
from robustness.text.corpus import Corpus
from robustness.trace import readings


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
        run_plan(model, ids, plan, None, reading)
        received.append(backend.received)
    assert len(received[0]) == 4, "sweep, structure, measurements, scores"
    of_sweeps, others = zip(*((first, rest) for first, *rest in received))
    assert others[0] == pytest.approx(others[1], rel=0.01)
    # Of a larger vocabulary more tokens are different, and each has a count: 7 schedules here.
    assert of_sweeps[1] - of_sweeps[0] < 7 * 16 * 23 * 4


def test_host_goes_with_remote(run):
    code, _, err = run("sweep", "builtin", "--host", "http://127.0.0.1:1")
    assert code == 2 and "only a server takes --host" in err


@pytest.mark.slow
@pytest.mark.parametrize("revision", ["main", COMMIT])
def test_the_commit_that_runs_may_be_named(server, run, stories, revision):
    words = ["sweep", NAME, "--remote", "--data", stories, "--context", 24, "--tokens", 48]
    code, out, err = run(*words, "--revision", revision, "--out", "sweep.nc")
    assert (code, out) == (0, "sweep.nc\n"), err
    assert xr.load_dataset("sweep.nc").attrs["revision"] == COMMIT


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
def test_errors_of_a_trace_of_ones_own_are_one_line_each(server, there):
    """Whatever is wrong with it, the error and the line are told, and it is sent once."""
    ids, seen, block = torch.arange(5)[None], {}, there.blocks[1]
    with pytest.raises(Refusal) as seen["a name"], there.traced.trace(ids, **there.request):
        found = unheard_of + 1  # noqa: F821
        found.save()
    with pytest.raises(Refusal) as seen["a shape"], there.traced.trace(ids, **there.request):
        found = block.output @ torch.ones(3)
        found.save()
    with pytest.raises(Refusal) as seen["out of order"], there.traced.trace(ids, **there.request):
        found = block.output.sum() + there.blocks[0].output.sum()
        found.save()
    words = {
        "a name": "name 'unheard_of' is not defined",
        "a shape": "mat",
        "out of order": "OutOfOrderError",
    }
    assert server.requests == len(words)
    for case, word in words.items():
        text = str(seen[case].value)
        assert word in text and "of test_remote.py: found = " in text, text
        assert len(text.splitlines()) == 1


@pytest.mark.slow
def test_what_a_trace_may_save(server, there):
    """Tensors and plain values come back, and nothing that a class of one's own made."""
    ids = torch.arange(5)[None]
    with torch.no_grad(), there.traced.trace(ids, **there.request):
        state = there.blocks[0].output
        kept = {"state": state, "all": [1, 2.5, None, True, "text", (b"x", {1, 2})]}
        kept = kept.save()
    assert kept["all"] == [1, 2.5, None, True, "text", (b"x", {1, 2})]
    assert kept["state"].shape == (1, 5, 32) and kept["state"].dtype == torch.float64
    with (
        pytest.raises(Refusal, match="is not understood"),
        there.traced.trace(ids, **there.request),
    ):
        other = there.blocks[0].output.sum().detach().numpy()
        other = other.save()


FORGETFUL = {
    "trace": lambda model: model.trace(torch.arange(5)[None]),
    "generate": lambda model: model.generate(torch.arange(5)[None], max_new_tokens=2),
    "session": lambda model: model.session(),
    "no cache": lambda model: model.trace(torch.arange(5)[None], use_cache=False),
}


@pytest.mark.parametrize("edited", [False, True])
@pytest.mark.parametrize("way", FORGETFUL)
def test_a_trace_that_forgets_where_it_runs_loads_nothing(server, there, way, edited):
    model = rewire(there, drop(clean(4), 1)) if edited else there.traced
    with pytest.raises(Refusal, match=r"trace\(…, \*\*model\.request\)"):
        if way == "session":
            with FORGETFUL[way](model), model.trace(torch.arange(5)[None]):
                model.output.save()
        else:
            with FORGETFUL[way](model):
                model.output.save()
    with pytest.raises(Refusal, match=r"trace\(…, \*\*model\.request\)"):
        model.dispatch()
    assert there.traced._module.device.type == model._module.device.type == "meta"
    assert server.requests == 0


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
    assert "in a sandbox" in text and "calls and" in text and "in 1 request," in text
    small = open_model(NAME, remote=True, sandbox_limit=1e-6)
    with pytest.raises(Refusal, match=r"% of the run.*`layers`.*sandbox.limit.*tag .trusted."):
        sweep(replace(small, sandboxed=True), corpus, ("drop",))
    with pytest.raises(Refusal, match=r"fewer `tokens`.*`sandbox_limit`"):
        observe(replace(small, sandboxed=True), corpus, ("lens",))


@pytest.mark.slow
def test_a_probe_names_only_what_it_has(server):
    small = replace(open_model(NAME, remote=True, sandbox_limit=1e-9), sandboxed=True)
    with pytest.raises(Refusal, match="fewer pairs, in a directory of your own, or raise") as told:
        probe_wic(small)
    assert "--items" not in str(told.value)


def test_fewer_layers_and_tokens_cost_less(local):
    costs = []
    for layers, tokens in ((None, 480), ([1, 2], 480), ([1, 2], 48)):
        runs = list(schedules(("drop", "swap"), 4, layers).values())
        plan = compile_plan(runs, clean(4), cap=2)
        costs.append(of_plan(local, plan, tokens, tokens, 1).bytes)
    assert costs[0] > costs[1] > costs[2]
