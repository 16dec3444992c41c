"""Schedules are divided into groups of about equal cost."""

import pytest

from robustness.schedules import clean, interventions
from robustness.schedules.division import Division
from robustness.schedules.plan import compile_plan

LAYERS = 9


def division(*names):
    records = interventions.resolve(names)
    schedules = list(interventions.schedules(records, LAYERS, None).values())
    return Division(schedules, clean(LAYERS), 256)


KINDS = [("drop", "swap"), ("drop-pair",), ("repeat-2", "reverse-3", "attention-drop")]


@pytest.mark.parametrize("names", KINDS)
def test_every_schedule_is_in_one_group_and_twice_as_many_groups_divide_each(names):
    whole = division(*names)
    every = list(range(len(whole.schedules)))
    for count in (1, 2, 3, 5, 8, 40, 1000):
        groups = whole.groups(count)
        assert [schedule for group in groups for schedule in every[group]] == every
        assert all(every[group] for group in groups) and len(groups) <= count
        bounds = {group.start for group in groups}
        assert bounds <= {group.start for group in whole.groups(2 * count)}
    assert len(whole.groups(1000)) == len(every)


@pytest.mark.parametrize("names", KINDS)
@pytest.mark.parametrize("count", [2, 3, 5, 8])
def test_groups_cost_about_the_same(names, count):
    def cost(schedules):
        plan = compile_plan(schedules, clean(LAYERS))
        return plan.block_calls + plan.sublayer_calls + plan.schedules

    whole = division(*names)
    dearest = max(cost([schedule]) for schedule in whole.schedules)
    # A group has its share, one schedule more at most, and what it shares with groups before it.
    most = cost(whole.schedules) / count + 2 * dearest
    for group in whole.groups(count):
        assert cost(whole.schedules[group]) <= most


def test_after_some_schedules_comes_the_rest_of_their_group():
    whole = division("drop", "swap")
    first, second, *_ = whole.groups(4)
    assert whole.after(0, 4) == first and whole.after(first.stop, 4) == second
    assert whole.after(1, 4) == slice(1, first.stop)
