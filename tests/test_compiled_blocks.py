"""Compiled blocks give the numbers of the blocks; what cannot be compiled runs as it is."""

import os
import shutil
from dataclasses import replace

import pytest
import torch
from families import random_tokens, tiny
from test_execution import corpus
from torch._dynamo.exc import TorchDynamoException
from torch.nn import Module

from robustness.errors import Refusal
from robustness.models import compiled_blocks, open_model
from robustness.models.compiled_blocks import compile_blocks
from robustness.schedules.plan import compile_plan
from robustness.sweeps import residuals, sweep
from robustness.sweeps.preparation import lay_out_schedules
from robustness.sweeps.settings import SweepSettings

pytestmark = [
    # Torch imports its own compiler, and that what it has deprecated itself.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Dynamo detected a call:UserWarning"),
]

NEEDS_COMPILER = pytest.mark.skipif(
    shutil.which("g++") is None and not os.environ.get("CI"), reason="needs a C++ compiler"
)

FAMILIES = ("gpt2", "gpt_neox", "llama", "qwen2", "phi", "gemma2", "mixtral")

EVERY = os.environ.get("STAGES_FUZZ") == "1"


@pytest.fixture
def graphs(monkeypatch):
    """The graphs that were compiled, with a compiler that leaves them as they are."""
    compiled = []

    def keep(graph, inputs):
        compiled.append(graph)
        return graph.forward

    monkeypatch.setattr(compiled_blocks, "BACKEND", keep)
    return compiled


def largest_difference(one, other):
    return max(float(abs(one[name] - other[name]).max()) for name in ("kl", "loss", "entropy"))


def counting(block, calls):
    def called(*args, **kwargs):
        calls.append(block)
        return block(*args, **kwargs)

    return called


@NEEDS_COMPILER
@pytest.mark.slow
def test_compiled_blocks_give_the_numbers_of_the_blocks_and_run_all_of_a_plan():
    module, told, calls = tiny("gpt2"), [], []
    opened = open_model(module)
    model = open_model(module, compile=True, notify=told.append)
    assert told == ["compiling blocks, which takes up to a minute"]
    counted = tuple(counting(block, calls) for block in model.compiled)
    model = replace(model, compiled=counted)
    text = corpus()
    swept = sweep(model, text, state_cap=2)
    assert largest_difference(swept, sweep(opened, text, state_cap=2)) < 1e-12
    assert swept.attrs["compiled"] == "blocks"
    schedules, *_ = lay_out_schedules(model, SweepSettings())
    plan = compile_plan(schedules, tuple(range(4)), cap=2, per_group=256)
    assert len(calls) == len([row for row in plan.rows if row[0] != "read"])


@pytest.mark.slow
def test_all_layers_share_one_code_whatever_numbers_of_texts_states_and_tokens(graphs):
    model = open_model(tiny("gpt2"), compile=True)
    assert len(graphs) == 1
    for size, cap in ((16, 1), (64, 2), (64, 5), (200, 3)):
        sweep(model, corpus(), batch_tokens=size, state_cap=cap)
    # A single sequence is a matrix of its own kind for torch.
    assert len(graphs) == 2


@pytest.mark.slow
def test_every_kind_of_block_is_compiled_for_one_text_for_several_and_with_masks(graphs):
    # Two kinds: the lower half attends to everything, the upper half to a window.
    model = open_model(tiny("qwen2"), compile=True)
    for length in (5, 9, 12):
        for texts in (1, 3, 7):
            for schedule in ("0-0-1-2-3", "3-2-1-0"):
                tokens = random_tokens(texts, length)
                here = residuals(model, tokens, schedule)
                there = residuals(replace(model, compiled=()), tokens, schedule)
                assert abs(here - there).max() < 1e-12 * abs(there).max()
    assert 4 <= len(graphs) <= 2 * 2 * 2


@pytest.mark.slow
def test_blocks_that_give_other_numbers_when_compiled_are_not_used(monkeypatch):
    def bent(graph, inputs):
        return lambda *given: tuple(out * 1.0001 for out in graph.forward(*given))

    monkeypatch.setattr(compiled_blocks, "BACKEND", bent)
    told = []
    model = open_model(tiny("gpt2", torch.float32), compile=True, notify=told.append)
    assert not model.compiled and "compiled" not in sweep(model, corpus()).attrs
    assert "they would give other numbers, off by 0.0001, which is more than 3.8e-06" in told[-1]


@pytest.mark.slow
def test_code_that_depends_on_the_number_of_tokens_is_not_compiled(monkeypatch):
    compile_ = torch.compile
    # As of a loop over tokens, which the compiler unrolls.
    monkeypatch.setattr(
        torch, "compile", lambda *given, dynamic, **named: compile_(*given, dynamic=False, **named)
    )
    told = []
    model = open_model(tiny("gpt2"), compile=True, notify=told.append)
    assert not model.compiled and "their code goes token by token" in told[-1]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (TorchDynamoException("no C++ compiler\n\nset TORCH_LOGS"), "(no C++ compiler)"),
        (RuntimeError("Triton is missing"), "(Triton is missing)"),
    ],
)
def test_without_a_compiler_blocks_run_as_they_are_and_the_reason_is_said(monkeypatch, error, said):
    def fail(*given, **named):
        raise error

    monkeypatch.setattr(compiled_blocks, "_compiler", lambda backend: fail)
    told = []
    model = open_model(tiny("gpt2"), compile=True, notify=told.append)
    assert not model.compiled
    assert told[1:] == [f"blocks are not compiled {said}; they run as they are"]


def test_a_lack_of_memory_is_not_blamed_on_the_compiler(monkeypatch, gpt2):
    def fail(*given, **named):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(compiled_blocks, "_compiler", lambda backend: fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        compile_blocks(gpt2)


def test_a_block_that_cannot_be_compiled_again_runs_as_it_is_and_this_is_said_once():
    def fail(block, hidden):
        raise TorchDynamoException("no code for this mask")

    told = []
    block = Module()
    block.forward = lambda hidden: hidden + 1
    called = compiled_blocks._with_retreat(fail, block, told.append)
    assert called(torch.zeros(1)) == called(torch.zeros(1)) == 1
    assert told == ["a block cannot be compiled again (no code for this mask); it runs as it is"]


def test_compiled_blocks_share_the_weights_and_leave_the_wrappers_of_nnsight_behind(gpt2):
    block = gpt2.blocks[1]._module
    bare = compiled_blocks._without_wrappers(block, {})
    assert "forward" in vars(block.mlp) and "forward" not in vars(bare.mlp)
    assert bare.mlp is not block.mlp
    mine, theirs = dict(bare.named_parameters()), dict(block.named_parameters())
    assert mine.keys() == theirs.keys() and all(mine[name] is theirs[name] for name in mine)


def test_weights_that_accelerate_places_are_refused():
    model = open_model(tiny("gpt2"))
    model.blocks[2].mlp._module._hf_hook = object()
    with pytest.raises(Refusal, match="weights that stay on one device: leave out `compile`"):
        compile_blocks(model)


def test_a_run_of_compiled_blocks_does_not_continue_without_them(gpt2, tmp_path):
    compiled = replace(gpt2, compiled=tuple(gpt2.blocks))
    out = tmp_path / "sweep.nc"
    sweep(compiled, corpus(), ("drop",), out=out)
    with pytest.raises(Refusal, match="with compiled blocks, which is not asked for now"):
        sweep(gpt2, corpus(), ("drop",), out=out)
    with pytest.raises(Refusal, match="without compiled blocks"):
        sweep(gpt2, corpus(), ("drop",), out=out, fresh=True)
        sweep(compiled, corpus(), ("drop",), out=out)


@NEEDS_COMPILER
@pytest.mark.slow
@pytest.mark.skipif(not EVERY, reason="takes minutes: with STAGES_FUZZ=1")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_blocks_of_every_family_are_compiled_and_give_its_numbers(family, dtype):
    module = tiny(family, dtype)
    model = open_model(module, compile=True)
    assert model.compiled
    found, own = sweep(model, corpus()), sweep(open_model(module), corpus())
    # In half precision the model's own blocks round more often than compiled ones.
    assert largest_difference(found, own) < (1e-5 if dtype == torch.float32 else 0.3)
