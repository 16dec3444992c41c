"""What a request costs is computed beforehand; here it is measured."""

from dataclasses import replace

import pytest
import torch
from families import tiny
from nnsight.schema.request import RequestModel
from strict import StrictBackend
from test_cost import products
from test_execution import corpus
from transformers import AutoConfig, AutoModelForCausalLM

from robustness.measurements.observation import observe
from robustness.models.opening import open_model
from robustness.ndif.room import Room
from robustness.runs import request_cost
from robustness.runs.request_cost import Text, alive_states, of_generation, of_plan
from robustness.runs.settings import RunOptions
from robustness.schedules import clean, drop, from_text
from robustness.schedules.plan import compile_plan
from robustness.sweeps import rewire
from robustness.sweeps.live_bytes import LiveBytes
from robustness.sweeps.preparation import prepare
from robustness.sweeps.requests import foresee
from robustness.sweeps.settings import SweepSettings
from robustness.sweeps.tracing import measure_batch

WIDTH = 64
"""Tokens of a sequence."""


def there(module, **known):
    """A model behind a backend that runs traces as a server does."""
    model = open_model(module)
    backend = StrictBackend(model.traced)
    vars(backend).update(known)
    return replace(model, request={"backend": backend})


def llama(**changed):
    torch.manual_seed(0)
    sizes = {
        "hidden_size": 64, "intermediate_size": 224, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 101,
    }  # fmt: skip
    dtype = changed.pop("dtype", torch.float32)
    config = AutoConfig.for_model("llama", **sizes | changed)
    return AutoModelForCausalLM.from_config(config, dtype=dtype).eval()


SHAPES = {
    "as large models": {},
    "many tokens in the vocabulary": {"vocab_size": 5001},
    "many layers": {"num_hidden_layers": 12, "intermediate_size": 64},
    "wide MLPs, in half precision": {"intermediate_size": 1024, "dtype": torch.bfloat16},
}


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("sequences", "cap"), [(1, 1), (4, 12)])
def test_what_is_alive_is_between_half_of_what_was_foretold_and_a_little_more(
    shape, sequences, cap
):
    model = there(llama(**SHAPES[shape]))
    options = RunOptions(batch_tokens=sequences * WIDTH, state_cap=cap)
    work = prepare(model, corpus(sequences, WIDTH), SweepSettings(), options)
    (cost,) = foresee(work, [slice(0, sequences)]).costs
    with LiveBytes() as live:
        measure_batch(work, slice(0, sequences), work.plan(cap), None)
    assert 0.9 * live.most <= cost.memory_bytes <= 2 * live.most


@pytest.mark.slow
@pytest.mark.parametrize("names", [("drop", "swap"), ("drop-pair",)])
def test_operations_are_those_that_torch_counts(names):
    model = there(tiny("llama"))
    options = RunOptions(batch_tokens=48, state_cap=3)
    work = prepare(model, corpus(4), SweepSettings(names), options)
    for group in work.division.groups(3):
        plan = work.plan(3, group)
        cost = of_plan(model, plan, Text(4, 12, 4 * 10), 0)
        counted = products(lambda plan=plan: measure_batch(work, slice(0, 4), plan, None))
        assert cost.operations == counted


@pytest.mark.slow
def test_operations_of_a_clean_walk_are_those_that_torch_counts():
    model, seen = there(tiny("llama")), []
    text = corpus(4)
    for names in (["norms"], ["lens"]):
        options = RunOptions(foresee=seen.append)
        observe(model, text, names)
        counted = products(
            lambda names=names, options=options: observe(model, text, names, options)
        )
        (cost,) = seen.pop().costs
        # Of the lens, logits of all tokens are counted, of which two of a sequence are not read.
        assert counted <= cost.operations <= 1.3 * counted
        if names == ["norms"]:
            assert cost.operations == counted


@pytest.mark.slow
def test_operations_of_generated_tokens_are_those_that_torch_counts():
    plain = tiny("llama")
    model, schedule = open_model(plain), drop(clean(4), 1)
    cost = of_generation(model, schedule, 5, 3)
    edited = rewire(model, schedule)
    counted = 0
    for width in (5, 6, 7):

        def run(width=width):
            with torch.no_grad(), edited.trace(torch.ones(1, width).long(), use_cache=False):
                edited.output.save()

        counted += products(run)
    # The trace computes the logits of every token.
    surplus = 2 * model.vocabulary * model.width * (4 + 5 + 6)
    assert cost.operations == counted - surplus


@pytest.mark.slow
def test_what_is_sent_has_about_the_size_that_was_foretold(monkeypatch):
    sent = []
    serialize = RequestModel.serialize

    def noting(*args):
        sent.append(serialize(*args))
        return sent[-1]

    model = there(llama(num_hidden_layers=6))
    monkeypatch.setattr(RequestModel, "serialize", noting)
    for count in (1, 32):
        work = prepare(model, corpus(count, WIDTH), SweepSettings(), RunOptions(state_cap=4))
        (cost,) = foresee(work, [slice(0, count)]).costs
        measure_batch(work, slice(0, count), work.plan(work.state_cap), None)
        assert 0.5 <= cost.up_bytes / len(sent[-1]) <= 2


def test_states_are_counted_on_the_card_of_their_block():
    whole = clean(12)
    plan = compile_plan([drop(whole, layer) for layer in whole], whole, cap=1)
    alone = alive_states(plan, 12)
    # One state a schedule, and the last state of the clean run. The first to be read is gone when
    # the first call has an input and an output.
    assert alone == 12 + 1
    spread = [alive_states(plan, 12, cards) for cards in (2, 3, 12)]
    assert spread == sorted(spread, reverse=True) and spread[0] <= alone
    # All that were changed on the way end up on the last card.
    assert spread[-1] >= 11


def test_a_call_is_divided_where_matrices_are_over_all_cards():
    model = there(tiny("llama"), room=Room(10**9, cards=4, sharded=True))
    alone = there(tiny("llama"), room=Room(10**9))
    assert request_cost.block_bytes(model, 96, 12) == request_cost.block_bytes(alone, 96, 12) // 4


def test_a_scale_is_on_the_card_of_its_state():
    """Four cards with a block each: what is scaled on the last one takes no room on the first."""
    first = [from_text(f"*{factor}-0-2", 4) for factor in (2, 3, 4, 5)]
    last = [from_text(f"0..2-*{factor}-3", 4) for factor in (6, 7)]
    # Block 0 has four states before it and four behind it, while two wait for block 3. The final
    # state of the clean run counts besides.
    for schedules in (first, first + last):
        assert alive_states(compile_plan(schedules, clean(4)), 4, cards=4) == 4 + 4 + 1
