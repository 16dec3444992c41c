"""Plans as forward passes in which blocks are left out, as a sandboxed server runs them."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from families import LAYERS, tiny
from hypothesis import given
from hypothesis import strategies as st
from nnsight.intervention.cache import Cache
from nnsight.intervention.interleaver import Mediator
from strict import StrictBackend
from test_execution import assert_equals_surgery, corpus
from torch.nn import Linear

from robustness.models import pass_check
from robustness.models.facts import Facts
from robustness.models.model import Model
from robustness.models.opening import open_model
from robustness.reordered import generate
from robustness.reordered.settings import Sampling
from robustness.runs import remote_traffic
from robustness.schedules import Attention, clean
from robustness.schedules.interventions import schedules as sweep_schedules
from robustness.schedules.passes import compile_passes, suits, takes_entry
from robustness.schedules.plan import compile_plan
from robustness.sweeps import sweep
from robustness.trace import block_calls, readout, unembedding

DEPTH = 6
blocks = st.lists(st.integers(0, DEPTH - 1), max_size=9).map(tuple)
prefixes = st.integers(0, DEPTH).map(lambda end: clean(DEPTH)[:end])
mostly_clean = st.tuples(prefixes, blocks).map(lambda parts: parts[0] + parts[1])
many = st.lists(blocks | mostly_clean, min_size=1, max_size=12)


class Sandbox(StrictBackend):
    """Backend of a server that keeps traces apart from the weights, and says so."""

    host = "a server"
    limit = 1e9

    def notify(self, text: str) -> None:
        pass


@pytest.fixture
def sandboxed(model: Model) -> Model:
    """The same model, behind a server that keeps traces apart from the weights."""
    backend = Sandbox(model.traced)
    return replace(model, request={"backend": backend}, sandboxed=True, facts=Facts())


def interpret(plan, layers: int) -> tuple[dict, Counter]:
    """Execute passes on symbols: a state is the tuple of blocks that made it."""
    rows = compile_passes(plan, layers)
    states = {depth: clean(layers)[:depth] for depth in plan.clean_states}
    read, applied, freed = {}, Counter(), []
    for source, first, stop, kept, ends, done in rows:
        assert 0 <= first <= stop <= layers
        state, keep = states[source], dict(kept)
        for block in range(first, stop):
            state = (*state, block)
            applied[state] += 1
            if block in keep:
                states[keep[block]] = state
        assert not ends or stop == layers
        for index in ends:
            assert index not in read
            read[index] = state
        freed += done
        for number in done:
            del states[number]
    assert not states and len(freed) == len(set(freed))
    return read, applied


@given(many)
def test_passes_execute_every_schedule_as_written_and_every_prefix_once(schedules):
    plan = compile_plan(schedules, clean(DEPTH), cap=2)
    assert suits(plan)
    read, applied = interpret(plan, DEPTH)
    assert read == dict(enumerate(schedules))
    assert set(applied.values()) <= {1} and len(applied) == plan.applications


def test_a_drop_is_one_pass_and_a_swap_three():
    for name, count in (("drop", 1), ("swap", 3)):
        named = sweep_schedules((name,), DEPTH, [2])
        plan = compile_plan(list(named.values()), clean(DEPTH))
        passes = compile_passes(plan, DEPTH)
        assert len(passes) == count and not takes_entry(passes)


def test_sublayers_are_no_passes():
    plan = compile_plan([(0, Attention(1))], clean(DEPTH))
    assert not suits(plan)


@pytest.mark.slow
def test_a_sandboxed_sweep_equals_surgery(sandboxed, plain):
    text = corpus(lengths=[12, 7, 3, 12, 9])
    names = ("drop", "swap", "repeat-2", "reverse-3", "skip-2")
    data = sweep(sandboxed, text, names, batch_tokens=60, state_cap=3)
    assert sandboxed.once(pass_check.runs_as_passes)
    assert_equals_surgery(data, plain, sweep_schedules(names, LAYERS), text)
    backend = sandboxed.request["backend"]
    assert len(backend.received) == 2, "one request says whether passes work, one measures"


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["bloom", "codegen", "falcon-alibi", "gemma4", "mamba", "opt-350m"]
)
def test_families_that_hand_more_from_block_to_block_run_as_passes(name):
    opened = open_model(tiny(name))
    backend = Sandbox(opened.traced)
    there = replace(opened, request={"backend": backend}, sandboxed=True, facts=Facts())
    assert there.once(pass_check.runs_as_passes)


def test_prefixes_pairs_and_free_schedules_run_as_passes(gpt2):
    backend = Sandbox(gpt2.traced)
    there = replace(gpt2, request={"backend": backend}, sandboxed=True, facts=Facts())
    schedules = [clean(LAYERS), (0, 1), (3, 3, 0), (2,), (3, 2, 1, 0), (0, 1, 2, 3, 3, 1)]
    found = sweep(there, corpus(), schedules=schedules)
    expected = sweep(gpt2, corpus(), schedules=schedules)
    np.testing.assert_allclose(found.kl, expected.kl, atol=1e-11)


def test_factors_run_as_calls_in_a_sandbox(gpt2):
    backend = Sandbox(gpt2.traced)
    there = replace(gpt2, request={"backend": backend}, sandboxed=True, facts=Facts())
    schedules = ["0-*1.5-2-3", "0-1*0.5-2-3", "0-a1*2-m1-3"]
    found = sweep(there, corpus(), schedules=schedules)
    expected = sweep(gpt2, corpus(), schedules=schedules)
    np.testing.assert_allclose(found.kl, expected.kl, atol=1e-12)


def test_a_model_that_loses_something_between_its_blocks_is_called():
    """Its last block takes a number from the first, and misses it where that is skipped."""
    plain = tiny("llama")
    opened = open_model(plain)
    there = replace(
        opened, request={"backend": Sandbox(opened.traced)}, sandboxed=True, facts=Facts()
    )
    assert there.once(pass_check.runs_as_passes)
    made = []
    hooks = [
        plain.model.layers[0].register_forward_hook(lambda *given: made.append(given[-1].std())),
        plain.model.layers[-1].register_forward_hook(lambda *given: given[-1] + made[-1]),
    ]
    assert not replace(there, facts=Facts()).once(pass_check.runs_as_passes)
    for hook in hooks:
        hook.remove()


def test_what_crosses_is_what_is_foretold(gpt2, monkeypatch):
    """Every state that a pass is given or that leaves it, and twice what is read."""
    crossed = Counter()

    def count(value, times: int = 1) -> None:
        for tensor in [leaf for _, leaf in block_calls.leaves(value)]:
            alone = tensor.untyped_storage().nbytes() == tensor.nbytes
            crossed["states"] += times * (tensor.shape == (3, 12, 32) and alone)

    def counting(function, times: int = 1):
        def call(*given):
            found = function(*given)
            count(given[-1] if found is None else found, times)
            return found

        return call

    for name, times in (("skip", 1), ("swap", 1), ("value", 2)):
        method = getattr(Mediator, name).__func__
        monkeypatch.setattr(Mediator, name, classmethod(counting(method, times)))
    monkeypatch.setattr(Cache, "_record", counting(Cache._record))
    names = ("drop", "swap", "repeat-2", "reverse-3")
    there = replace(gpt2, request={"backend": Sandbox(gpt2.traced)}, sandboxed=True, facts=Facts())
    assert there.once(pass_check.runs_as_passes)
    crossed.clear()
    sweep(there, corpus(sequences=3), names, batch_tokens=36)
    plan = compile_plan(list(sweep_schedules(names, LAYERS).values()), clean(LAYERS))
    states, _ = remote_traffic._of_passes(there, plan)
    assert crossed["states"] == states > 40


def test_beyond_some_tokens_larger_requests_are_hardly_thriftier(gpt2, monkeypatch):
    for name in ("MESSAGE_BYTES", "TOKEN_BYTES"):
        monkeypatch.setattr(remote_traffic, name, 0)
    plan = compile_plan([(0, 1, 2)], clean(LAYERS))
    enough = remote_traffic.thrifty_tokens(gpt2, plan)

    def of_token(tokens: int) -> float:
        return remote_traffic.of_plan(gpt2, plan, tokens, tokens, 1).bytes / tokens

    assert of_token(enough) / of_token(10**9) == pytest.approx(1 / 0.9, rel=0.01)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float32, torch.float64])
def test_a_matrix_made_of_calls_is_the_matrix_itself(kind, bias):
    torch.manual_seed(0)
    head = Linear(300, 50, bias=bias).to(kind)
    if bias:
        torch.nn.init.normal_(head.bias, std=30)
    there = {
        "shape": (50, 300), "dtype": str(kind).removeprefix("torch."), "biased": bias,
        "worth": True, "squash": (1.0, None),
    }  # fmt: skip
    with torch.no_grad():
        weight, offset = unembedding._made_matrix(head, there)
    assert torch.equal(weight, head.weight)
    assert offset is None if not bias else torch.equal(offset, head.bias)


def test_a_share_of_a_matrix_and_a_quantised_one_are_called():
    there = {
        "shape": (50, 30), "dtype": "float32", "biased": False, "worth": True,
        "squash": (1.0, None),
    }  # fmt: skip
    head = Linear(30, 50, bias=False)
    assert unembedding.matrix_there(head, there)["weight"] is head.weight
    share = Linear(30, 25, bias=False)
    narrow = Linear(30, 50, bias=False).to(torch.float8_e4m3fn)
    for other in (share, narrow):
        assert unembedding.matrix_there(other, there) is None
    assert (
        unembedding.matrix_there(Linear(30, 50, device="meta"), {**there, "worth": False}) is None
    )


def test_readouts_under_a_servers_autocast_lose_no_digit():
    """Products of ours are exact while the model around them computes in bfloat16."""
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(3, 5, 64, generator=generator)
    weight = torch.randn(90, 64, generator=generator).bfloat16()
    matrix = {"weight": weight, "bias": None, "centred": False, "squash": (1.0, None)}

    def read() -> dict[str, torch.Tensor]:
        targets = torch.arange(5)
        clean = readout.reference(states[0], targets, weight.float().mv, 90, matrix)
        found = readout.compare(states, clean, ("kl", "kl_reverse"))
        return {**found, "logits": readout.logits_of(states[1], clean)}

    expected, rounded = read(), states[1] @ weight.float().T
    with torch.autocast("cpu", torch.bfloat16):
        found = read()
        assert not torch.equal(states[1] @ weight.float().T, rounded), "autocast changes nothing"
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def test_the_model_computes_in_a_servers_autocast_all_the_same(gpt2):
    """What a trace computes exactly does not reach the passes of the model that go on meanwhile."""
    text, seen = corpus(sequences=2), []
    backend = StrictBackend(gpt2.traced)
    strict = replace(gpt2, request={"backend": backend}, facts=Facts())
    modules = [gpt2.blocks[2]._module, gpt2.norms[0]._module]
    hooks = [
        module.register_forward_pre_hook(lambda *_: seen.append(torch.is_autocast_enabled("cpu")))
        for module in modules
    ]
    with torch.autocast("cpu", torch.bfloat16):
        sweep(strict, text, ("drop",), batch_tokens=24)
        assert torch.is_autocast_enabled("cpu")
    for hook in hooks:
        hook.remove()
    assert len(seen) > 4 and all(seen)


@pytest.mark.slow
def test_a_sandboxed_model_generates_what_the_rebuilt_one_does(sandboxed, model):
    schedules = [clean(LAYERS), (0, 2, 3), (0, 2, 1, 3), (3, 0, 1), (1, 2)]
    found = generate(sandboxed, [5, 9, 2, 40], schedules, Sampling(tokens=5))
    assert found == generate(model, [5, 9, 2, 40], schedules, Sampling(tokens=5))
    assert len({one.tokens for one in found}) > 2, "the schedules change nothing"


def test_a_sandboxed_text_ends_with_its_last_token(gpt2):
    there = replace(gpt2, request={"backend": Sandbox(gpt2.traced)}, sandboxed=True, facts=Facts())
    (free,) = generate(there, [5, 9], [(0, 2, 1, 3)], Sampling(tokens=6))
    settings = gpt2.traced._module.generation_config
    before = settings.eos_token_id
    settings.eos_token_id = [99, free.tokens[1]]
    try:
        (found,) = generate(there, [5, 9], [(0, 2, 1, 3)], Sampling(tokens=6))
        (here,) = generate(gpt2, [5, 9], [(0, 2, 1, 3)], Sampling(tokens=6))
    finally:
        settings.eos_token_id = before
    assert found.tokens == here.tokens == free.tokens[: free.tokens.index(free.tokens[1]) + 1]
