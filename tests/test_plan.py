from collections import Counter
from math import comb

import pytest
from hypothesis import given
from hypothesis import strategies as st

from robustness.schedules import Attention, Mlp, Parallel, clean, leaves, plain
from robustness.schedules.built_in import PAIRS
from robustness.schedules.interventions import schedules as sweep_schedules
from robustness.schedules.plan import READ, RUN, Plan, compile_plan

LAYERS = 6
blocks = st.integers(0, LAYERS - 1)
single = blocks | blocks.map(Attention) | blocks.map(Mlp)
steps = single | st.lists(single, min_size=1, max_size=3).map(lambda s: Parallel(tuple(s)))
many = st.lists(st.lists(steps, max_size=9).map(tuple), min_size=1, max_size=12)
caps = st.none() | st.integers(1, 4)
rooms = st.none() | st.integers(1, 12)


def interpret(plan: Plan, whole: tuple) -> tuple[dict, Counter, int, int]:
    """Execute a plan on symbols: a state is the tuple of steps that made it."""
    states = {number: whole[:number] for number in plan.clean_states}
    applied, read, peak, widest = Counter(), {}, len(states), 0
    for kind, step, sources, results, done in plan.rows:
        widest = max(widest, len(sources))
        if kind == RUN:
            for source, result in zip(sources, results, strict=True):
                assert result not in states
                states[result] = (*states[source], step)
                applied[states[result]] += 1
            peak = max(peak, len(states))
        else:
            assert kind == READ
            for source, ends in zip(sources, results, strict=True):
                for index in ends:
                    assert index not in read
                    read[index] = states[source]
        for state in done:
            del states[state]
    assert not states
    return read, applied, peak, widest


@pytest.mark.slow
@given(many, caps, rooms)
def test_every_schedule_is_executed_as_written(schedules, cap, room):
    plan = compile_plan(schedules, clean(LAYERS), cap=cap, per_group=room)
    read, _, _, _ = interpret(plan, clean(LAYERS))
    assert read == {at: tuple(map(plain, schedule)) for at, schedule in enumerate(schedules)}


@pytest.mark.slow
@given(many, caps, rooms)
def test_each_distinct_prefix_that_is_not_clean_is_computed_once(schedules, cap, room):
    whole = clean(LAYERS)
    plan = compile_plan(schedules, whole, cap=cap, per_group=room)
    _, applied, _, _ = interpret(plan, whole)
    prefixes = {s[:end] for s in schedules for end in range(1, len(s) + 1)}
    expected = {prefix for prefix in prefixes if prefix != whole[: len(prefix)]}
    assert applied == Counter(tuple(map(plain, prefix)) for prefix in expected)
    assert plan.applications == len(expected)
    assert plan.calls == sum(kind == RUN for kind, *_ in plan.rows)
    called = [leaf for prefix in expected for leaf in leaves(prefix[-1])]
    assert plan.block_calls == sum(isinstance(leaf, int) for leaf in called)
    assert plan.sublayer_calls == len(called) - plan.block_calls


@pytest.mark.slow
@given(many, caps, rooms)
def test_the_stated_peak_of_live_states_is_the_true_one(schedules, cap, room):
    plan = compile_plan(schedules, clean(LAYERS), cap=cap, per_group=room)
    _, _, peak, _ = interpret(plan, clean(LAYERS))
    assert plan.peak == peak


@pytest.mark.slow
@given(many, st.integers(1, 4))
def test_no_row_holds_more_states_than_the_cap(schedules, cap):
    plan = compile_plan(schedules, clean(LAYERS), cap=cap)
    assert interpret(plan, clean(LAYERS))[3] <= cap


@pytest.mark.slow
@pytest.mark.parametrize("layers", range(2, 81))
def test_drop_and_swap_take_exactly_l_times_l_minus_1_applications(layers):
    schedules = list(sweep_schedules(["drop", "swap"], layers).values())
    assert compile_plan(schedules, clean(layers)).applications == layers * (layers - 1)


@pytest.mark.parametrize("layers", [2, 3, 12, 48])
def test_a_drop_sweep_visits_each_block_once_and_with_swap_twice(layers):
    drop = list(sweep_schedules(["drop"], layers).values())
    visits = Counter(row[1] for row in compile_plan(drop, clean(layers)).rows if row[0] == RUN)
    assert visits == Counter(range(1, layers))
    both = list(sweep_schedules(["drop", "swap"], layers).values())
    visits = Counter(row[1] for row in compile_plan(both, clean(layers)).rows if row[0] == RUN)
    assert max(visits.values()) <= 2


APPLICATIONS = {
    "drop-pair": lambda n: comb(n + 1, 3),
    "swap-pair": lambda n: 2 * comb(n + 1, 3),
    "skip-span": lambda n: comb(n + 1, 3),
    "repeat-span": lambda n: n * (n + 1) * (2 * n + 1) // 6,
}
"""Block calls of a sweep over two layers of L."""

LOOPS = {
    "drop-pair": lambda n: n * n * (n - 1) // 2,
    "swap-pair": lambda n: n * n * (n - 1) // 2,
    "skip-span": lambda n: 2 * comb(n + 1, 3),
    "repeat-span": lambda n: n * (n + 1) * (2 * n + 1) // 3,
}
"""Of a loop over its schedules: a third, two thirds and a half of it are what a sweep takes."""


@pytest.mark.slow
@pytest.mark.parametrize("layers", [2, 3, 4, 12, 48])
@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("room", [None, 256])
def test_a_sweep_over_two_layers_takes_exactly_so_many_block_calls(name, layers, room):
    schedules = list(sweep_schedules([name], layers).values())
    plan = compile_plan(schedules, clean(layers), per_group=room)
    assert plan.applications == plan.block_calls == APPLICATIONS[name](layers)
    assert sum(map(len, schedules)) == LOOPS[name](layers)


@pytest.mark.parametrize("layers", [2, 3, 12, 48])
def test_sublayers_and_blocks_on_one_input_are_counted_apart(layers):
    whole = clean(layers)
    named = sweep_schedules(["attention-drop", "mlp-drop"], layers)
    plan = compile_plan(list(named.values()), whole)
    assert (plan.block_calls, plan.sublayer_calls) == (layers * (layers - 1), 2 * layers)
    assert plan.applications == plan.block_calls + plan.sublayer_calls
    # One step each, whose three blocks are called, and then those that follow.
    plan = compile_plan([(Parallel((0, 1, 2)), *whole[3:])], whole)
    following = len(whole[3:])
    assert (plan.applications, plan.calls) == (1 + following, 1 + following)
    assert (plan.block_calls, plan.sublayer_calls) == (3 + following, 0)


@pytest.mark.slow
@pytest.mark.parametrize("name", PAIRS)
def test_groups_bound_what_is_alive_and_share_all_there_is_to_share(name):
    layers, room = 40, 64
    schedules = list(sweep_schedules([name], layers).values())
    whole, parts = (
        compile_plan(schedules, clean(layers), cap=4, per_group=size) for size in (None, room)
    )
    assert whole.peak > 700 > 3 * room > parts.peak
    assert whole.applications == parts.applications
    assert parts.calls < parts.applications / 2, "states are still stacked"


def test_few_schedules_are_one_group():
    schedules = list(sweep_schedules(["drop", "swap"], 12).values())
    assert compile_plan(schedules, clean(12), per_group=23) == compile_plan(schedules, clean(12))


def test_the_clean_schedule_costs_nothing():
    plan = compile_plan([clean(5)], clean(5))
    assert (plan.applications, plan.calls, plan.peak) == (0, 0, 1)


def test_steps_may_be_anything_hashable():
    whole = ("a", "b", "c")
    schedules = [("a", ("b", "c"), "c"), ("c", "b"), whole]
    plan = compile_plan(schedules, whole, order=str)
    assert interpret(plan, whole)[0] == dict(enumerate(schedules))


def test_a_cap_below_one_is_an_error():
    with pytest.raises(ValueError, match="at least one state"):
        compile_plan([(0,)], (0,), cap=0)
