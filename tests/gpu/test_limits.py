"""What a device alone has: memory that runs out, a host that waits, products that round."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import numpy as np
import pretended
import pytest
import torch
from device_cases import Case, assert_as_good, on
from families import tiny
from test_execution import corpus
from test_memory import scarce
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from robustness.files.metrics import TokenMetric
from robustness.models.model import Model
from robustness.models.opening import open_model
from robustness.sweeps import sweep
from robustness.text.corpus import Corpus
from robustness.trace import interpreter

__all__ = ["scarce"]

EVERYTHING = ("drop", "swap", "attention-drop", "mlp-drop", "parallel-2", "repeat-2")

READOUT_ERROR = {"kl": 1e-5, "entropy": 2e-5}
"""Largest error of a sequence's mean that a readout may have, in nats."""


def random_text(sequences: int, length: int, vocabulary: int) -> Corpus:
    """Return sequences of random tokens."""
    tokens = np.random.default_rng(0).integers(0, vocabulary, (sequences, length))
    return Corpus(tokens=tokens, lengths=np.full(sequences, length),
                  document=np.arange(sequences), name="random", rule="windows", bos="none",
                  seed=0)  # fmt: skip


@contextmanager
def nobody_waits(case: Case) -> Iterator[None]:
    """Refuse what makes the host wait for the device."""
    if case.pretended:
        with pretended.LOG.during("plan"):
            yield
        return
    with warnings.catch_warnings():
        # It says that it may miss some.
        warnings.simplefilter("ignore")
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@on("gpt2 cuda bfloat16", types=["float32", "bfloat16"])
def test_the_host_never_waits_while_a_plan_runs(case, monkeypatch):
    model, run, plans = case.there(), interpreter.run, []
    # What is compiled or chosen for a shape is so before.
    for sequences in (2, 4):
        sweep(model, corpus(sequences, 10), EVERYTHING)

    def watched(*args):
        plans.append(1)
        with nobody_waits(case):
            return run(*args)

    monkeypatch.setattr(interpreter, "run", watched)
    sweep(model, corpus(4, 10), EVERYTHING)
    assert plans and not pretended.LOG.within("plan"), pretended.LOG.places()


@on("gpt2 cuda float32", families=["gpt2"], types=["float32"])
def test_a_host_that_waits_is_found(case, monkeypatch):
    run = interpreter.run

    def watched(*args):
        with nobody_waits(case):
            torch.ones(1, device=case.kind).item()
            return run(*args)

    monkeypatch.setattr(interpreter, "run", watched)
    try:
        sweep(case.there(), corpus(2, 10), ("drop",))
        assert pretended.LOG.within("plan")
    except RuntimeError as error:
        assert not case.pretended and "synchroniz" in str(error)


def thin(width: int, vocabulary: int, dtype: torch.dtype) -> LlamaForCausalLM:
    """Return a model that is hardly more than its head, and is changed by losing a block."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=width, intermediate_size=32, num_hidden_layers=3,
        num_attention_heads=1, num_key_value_heads=1, head_dim=16, max_position_embeddings=512,
        bos_token_id=0, eos_token_id=0, rms_norm_eps=1e-5,
    )  # fmt: skip
    net = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for block in net.model.layers:
            block.mlp.down_proj.weight.mul_(200)
        net.lm_head.weight.normal_(std=2 / width**0.5)
    return net.to(dtype)


def of_logits(head: Tensor) -> tuple[TokenMetric, ...]:
    """Return metrics that are made of all logits of the states that are read, in float64."""
    doubled = head.detach().double()

    on_device = cache(doubled.to)

    def log_softmax(states: Tensor) -> Tensor:
        # MPS has no float64.
        states = states.cpu() if states.device.type == "mps" else states
        return torch.log_softmax(states.double() @ on_device(states.device).T, -1)

    def kl(states: Tensor, clean: Tensor) -> Tensor:
        before = log_softmax(clean)
        after = map(log_softmax, states)
        return torch.stack([(before.exp() * (before - one)).sum(-1) for one in after])

    def entropy(states: Tensor, clean: Tensor) -> Tensor:
        after = map(log_softmax, states)
        return torch.stack([-(one.exp() * one).sum(-1) for one in after])

    return tuple(
        TokenMetric(f"exact_{name}", "nat", f"{name} in float64", function=function,
                    reads="final states")
        for name, function in (("kl", kl), ("entropy", entropy))
    )  # fmt: skip


@on("llama cuda bfloat16", "llama cuda float32", families=["llama"], types=["float32", "bfloat16"])
def test_readouts_of_wide_states_are_those_of_float64(case):
    width, vocabulary = (256, 2048) if case.pretended else (4096, 32768)
    net = thin(width, vocabulary, case.dtype)
    metrics = of_logits(net.lm_head.weight)
    found = sweep(open_model(net.to(case.kind)), random_text(4, 64, vocabulary), metrics=metrics)
    assert found.kl.max() > 0.05
    for name, allowed in READOUT_ERROR.items():
        off = float(abs(found[name] - found[f"exact_{name}"]).max())
        assert off < allowed, f"{name}: {off:.1e}"


def large(case: Case) -> tuple[Model, Corpus]:
    """Return a model and a text of which a batch takes a gigabyte or two on a real device."""
    if case.pretended:
        return case.there(), corpus(16, 12)
    torch.manual_seed(0)
    config = GPT2Config(n_embd=512, n_layer=4, n_head=8, n_positions=256, vocab_size=1000)
    return open_model(GPT2LMHeadModel(config).eval().to(case.kind)), random_text(32, 256, 1000)


@on("gpt2 cuda float32", families=["gpt2"], types=["float32"])
def test_where_memory_runs_out_smaller_portions_have_the_same_numbers(case, scarce):
    model, text = large(case)
    options = {"batch_tokens": text.tokens.size, "state_cap": 6}
    sweep(model, text, **options)
    if not case.pretended:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    whole, told = sweep(model, text, **options), []
    if case.pretended:
        scarce(60, lambda: torch.OutOfMemoryError("CUDA out of memory"))
        found = sweep(model, text, **options, tell=told.append)
    else:
        most = before + 0.6 * (torch.cuda.max_memory_allocated() - before)
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction(most / torch.cuda.mem_get_info()[1])
        try:
            found = sweep(model, text, **options, tell=told.append)
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)
    assert told and told[0].startswith("out of memory: from here on state cap")
    assert found.out_of_memory.startswith("from sequence 0 on state cap")
    assert_as_good(case, found, whole, whole)


def test_a_product_in_tf32_would_be_found(monkeypatch):
    """A tensor core that was not told otherwise takes ten bits of a float32 number."""
    case = Case("llama", "cpu", torch.float32, True)
    text, linear = corpus(4, 10), torch.nn.functional.linear

    def ten_bits(values: Tensor) -> Tensor:
        return (values.view(torch.int32) + 0x1000 & ~0x1FFF).view(torch.float32)

    near, exact = sweep(case.here(), text), sweep(case.exact(), text)
    model = open_model(tiny("llama", torch.float32))
    monkeypatch.setattr(
        torch.nn.functional, "linear", lambda x, w, b=None: linear(ten_bits(x), ten_bits(w), b)
    )
    with pytest.raises(AssertionError, match="off by"):
        assert_as_good(case, sweep(model, text), near, exact)
