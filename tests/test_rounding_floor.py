"""The floor of a model on a server is estimated from two runs that round differently."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from families import tiny
from strict import StrictBackend
from test_execution import corpus
from torch.distributions import Categorical, kl_divergence

from recipes.views import as_text, table
from robustness.errors import Refusal
from robustness.files.precision_floor import (
    FLOOR,
    FLOOR_ATTRIBUTES,
    describe_near,
    floor_attributes,
)
from robustness.models.opening import open_model
from robustness.sweeps import rounding_floor, sweep
from robustness.sweeps.precision_floor import measure_floor
from robustness.trace import rounding

HALF = (torch.bfloat16, torch.float16)


def there(family="llama", dtype=torch.bfloat16):
    """A model whose traces are sent."""
    opened = open_model(tiny(family).to(dtype))
    return replace(opened, request={"backend": StrictBackend(opened.traced)})


@pytest.mark.parametrize("dtype", HALF)
def test_rounding_anew_is_as_large_as_rounding_and_without_bias(dtype):
    hidden = torch.randn(200, 1000, generator=torch.Generator().manual_seed(0)).to(dtype)
    found = rounding.anew(hidden, 3)
    assert torch.equal(found, rounding.anew(hidden, 3))
    assert not torch.equal(found, rounding.anew(hidden, 4))
    # The distance to the next number, by torch's own table of them.
    up = torch.nextafter(hidden.abs(), torch.tensor(torch.inf, dtype=dtype))
    distance = (up.double() - hidden.abs().double()).clamp(min=1e-30)
    errors = (found.double() - hidden.double()) / distance
    assert errors.abs().max() <= 2 and torch.equal(errors, errors.round())
    assert float((errors != 0).double().mean()) == pytest.approx(1 / 12, rel=0.05)
    assert abs(float(errors.mean())) < 0.01
    assert 1 / 12 < float(errors.square().mean()) < 2.6 / 12


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_estimate_is_that_of_hooks_on_the_plain_model(family):
    model, text = there(family), corpus(6, 12, lengths=[12, 9, 12, 4, 7, 12])
    found = measure_floor(model, text, print)
    net, tokens = model.traced._module, torch.from_numpy(text.tokens)
    for seed, block in enumerate(model.blocks):

        def disturbed(_, args, kwargs, seed=seed):
            values = {**dict(enumerate(args)), **kwargs}
            first = next(iter(values))
            state = values[first]
            half = len(state) // 2
            values[first] = torch.cat([state[:half], rounding.anew(state[half:], seed)])
            return tuple(values[k] for k in range(len(args))), {k: values[k] for k in kwargs}

        block._module.register_forward_pre_hook(disturbed, with_kwargs=True)
    heard, kls = [], []
    net.lm_head.register_forward_pre_hook(lambda _, args: heard.append(args[0]))
    with torch.no_grad():
        net(input_ids=torch.cat([tokens, tokens]), use_cache=False)
        # Readouts take the head's own matrix in float32.
        logits = heard[-1].double() @ net.lm_head.weight.double().T
    for clean, rounded, length in zip(*logits.chunk(2), text.lengths, strict=True):
        read = slice(1, length if text.authors_alignment else length - 1)
        p, q = (Categorical(logits=each[read]) for each in (clean, rounded))
        kls.append(float(kl_divergence(p, q).mean()))
    assert found[FLOOR] == pytest.approx(np.mean(kls) / np.sqrt(2), rel=0.02)
    assert found["precision_floor_tokens"] == text.lengths.sum()
    assert floor_attributes(found) == found and set(found) < set(FLOOR_ATTRIBUTES)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_neox", "mixtral"])
def test_the_estimate_is_near_the_floor_that_float32_tells(family):
    text = corpus(16, 24)
    sent = there(family)
    estimated = measure_floor(sent, text, print)[FLOOR]
    measured = measure_floor(replace(sent, request={}), text, print)[FLOOR]
    assert 0.4 < estimated / measured < 2.5


def test_few_tokens_of_all_of_the_text_are_run_twice():
    text = corpus(40, 30)
    few = rounding_floor._beginnings(text, 100)
    assert few.tokens.shape == (4, 25) and (few.lengths <= 25).all()
    assert few.document.tolist() == text.document[[0, 10, 20, 30]].tolist()
    assert rounding_floor._beginnings(corpus(2, 12), 512).tokens.shape == (2, 12)


def test_a_float32_model_on_a_server_has_none():
    assert measure_floor(there(dtype=torch.float32), corpus(), print) == {}


def test_what_cannot_be_estimated_is_told_and_the_sweep_goes_on(monkeypatch):
    said, model = [], replace(there(), sandboxed=True)
    monkeypatch.setattr(rounding_floor, "SANDBOXED_BYTES", 10)
    assert measure_floor(model, corpus(), said.append) == {}

    def refuse(*_):
        raise Refusal("out of memory\nthere")

    monkeypatch.setattr(rounding_floor, "_compare", refuse)
    found = sweep(there(), corpus(4), ("drop",), tell=said.append)
    assert FLOOR not in found.attrs and found["kl"].notnull().all()
    assert "GB would cross" in said[0] and said[1].endswith("not estimated: out of memory")


def test_a_file_says_that_its_floor_is_an_estimate_and_what_it_means():
    found = sweep(there(), corpus(4), ("drop",)).assign_attrs({"server": "127.0.0.1"})
    shown = as_text(table(found))
    assert ", estimated by rounding anew" in shown and found.attrs[FLOOR] > 0
    near = found.assign_attrs({FLOOR: 1e3})
    assert "bfloat16, about 1e+03 nats" in describe_near(near)
    assert "so take them for rounding" in as_text(table(near))
    assert "--dtype" not in as_text(table(near))
