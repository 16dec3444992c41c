from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from robustness.plan import READ, RUN, Plan, compile_plan
from robustness.schedule import clean
from robustness.sweep import schedules as sweep_schedules

LAYERS = 6
steps = st.integers(0, LAYERS - 1)
many = st.lists(st.lists(steps, max_size=9).map(tuple), min_size=1, max_size=12)
caps = st.none() | st.integers(1, 4)


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


@given(many, caps)
def test_every_schedule_is_executed_as_written(schedules, cap):
    read, _, _, _ = interpret(compile_plan(schedules, clean(LAYERS), cap=cap), clean(LAYERS))
    assert read == dict(enumerate(schedules))


@given(many, caps)
def test_each_distinct_prefix_that_is_not_clean_is_computed_once(schedules, cap):
    whole = clean(LAYERS)
    plan = compile_plan(schedules, whole, cap=cap)
    _, applied, _, _ = interpret(plan, whole)
    prefixes = {s[:end] for s in schedules for end in range(1, len(s) + 1)}
    expected = {prefix for prefix in prefixes if prefix != whole[: len(prefix)]}
    assert applied == Counter(expected)
    assert plan.applications == len(expected)
    assert plan.calls == sum(kind == RUN for kind, *_ in plan.rows)


@given(many, caps)
def test_the_stated_peak_of_live_states_is_the_true_one(schedules, cap):
    plan = compile_plan(schedules, clean(LAYERS), cap=cap)
    _, _, peak, _ = interpret(plan, clean(LAYERS))
    assert plan.peak == peak


@given(many, st.integers(1, 4))
def test_no_row_holds_more_states_than_the_cap(schedules, cap):
    plan = compile_plan(schedules, clean(LAYERS), cap=cap)
    assert interpret(plan, clean(LAYERS))[3] <= cap


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
