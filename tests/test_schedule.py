import doctest

import pytest
from hypothesis import given
from hypothesis import strategies as st

from robustness import schedule, sweep
from robustness.refusal import Refusal
from robustness.schedule import (
    check,
    clean,
    drop,
    from_text,
    repeat,
    reverse,
    shuffle,
    skip_span,
    swap,
    to_text,
)

LAYERS = 12
steps = st.integers(0, LAYERS - 1)
schedules = st.lists(steps, min_size=1, max_size=20).map(tuple)


@pytest.mark.parametrize("module", [schedule, sweep])
def test_the_examples_in_docstrings_hold(module):
    failed, tried = doctest.testmod(module)
    assert tried and not failed


@given(schedules)
def test_text_comes_back_as_the_schedule_it_was_written_from(steps):
    assert from_text(to_text(steps), LAYERS) == steps


@given(schedules, st.data())
def test_swapping_twice_changes_nothing(steps, data):
    distance = data.draw(st.integers(1, max(1, len(steps) - 1)))
    if distance < len(steps):
        index = data.draw(st.integers(0, len(steps) - distance - 1))
        assert swap(swap(steps, index, distance), index, distance) == steps


@given(schedules, st.data())
def test_a_swap_is_one_of_a_span_reversed_when_adjacent(steps, data):
    if len(steps) > 1:
        index = data.draw(st.integers(0, len(steps) - 2))
        assert swap(steps, index) == reverse(steps, index, 2)


@given(schedules, st.data())
def test_every_edit_of_a_span_leaves_the_rest_alone(steps, data):
    index = data.draw(st.integers(0, len(steps) - 1))
    length = data.draw(st.integers(1, len(steps) - index))
    for edited in (
        skip_span(steps, index, length),
        reverse(steps, index, length),
        shuffle(steps, index, length, seed=3),
        repeat(steps, index, length),
        repeat(steps, index, length, contiguous=True),
    ):
        after = len(steps) - index - length
        assert edited[:index] == steps[:index]
        assert edited[len(edited) - after :] == steps[index + length :]


@given(schedules, st.data())
def test_a_repeat_executes_each_step_of_its_span_once_more(steps, data):
    index = data.draw(st.integers(0, len(steps) - 1))
    length = data.draw(st.integers(1, len(steps) - index))
    times = data.draw(st.integers(0, 3))
    span = list(steps[index : index + length])
    for contiguous in (False, True):
        edited = repeat(steps, index, length, times=times, contiguous=contiguous)
        assert sorted(edited) == sorted([*steps, *span * times])


def test_repeats_are_interleaved_as_in_the_paper_or_contiguous():
    assert repeat(clean(10), 4, 2)[4:8] == (4, 4, 5, 5)
    assert repeat(clean(10), 4, 2, contiguous=True)[4:8] == (4, 5, 4, 5)


def test_a_shuffle_depends_on_its_seed_alone():
    assert shuffle(clean(9), seed=1) == shuffle(clean(9), seed=1)
    assert len({shuffle(clean(9), seed=seed) for seed in range(20)}) > 15
    assert sorted(shuffle(clean(9), seed=1)) == list(clean(9))


def test_edits_compose():
    assert swap(drop(clean(4), 1), 0) == (2, 0, 3)


@pytest.mark.parametrize(
    ("text", "character", "problem"),
    [
        ("0-x-2", 3, "block index was expected"),
        ("0--2", 3, "block index was expected"),
        ("0-1-", 5, "block index was expected"),
        ("0.1", 2, "'-' or '..' was expected"),
        ("0-1 2", 4, "'-' or '..' was expected"),
        ("0-12-1", 3, "there is no block 12"),
        ("0..12", 4, "there is no block 12"),
        ("..", 1, "block index was expected"),
        ("0" * 5000, 10, "'-' or '..' was expected"),
    ],
)
def test_bad_text_is_refused_at_its_character(text, character, problem):
    with pytest.raises(Refusal, match=f"character {character} .*{problem}"):
        from_text(text, LAYERS)


@pytest.mark.parametrize("text", ["", "  "])
def test_an_empty_schedule_is_refused(text):
    with pytest.raises(Refusal, match="empty schedule"):
        from_text(text, LAYERS)
    with pytest.raises(Refusal, match="empty schedule"):
        check((), LAYERS)


def test_ranges_are_open_at_either_end_and_run_both_ways():
    assert from_text("..2-5..3-10..", LAYERS) == (0, 1, 2, 5, 4, 3, 10, 11)


@given(st.text(alphabet="0123456789.-x ", max_size=12))
def test_any_text_is_read_or_refused(text):
    try:
        assert check(from_text(text, LAYERS), LAYERS)
    except Refusal as refusal:
        assert "\n" not in str(refusal)


def test_a_missing_step_or_block_is_refused_with_what_there_is():
    with pytest.raises(Refusal, match="no step 4; the schedule's 4 steps are 0 to 3"):
        drop(clean(4), 4)
    with pytest.raises(Refusal, match="no steps 3 to 4"):
        swap(clean(4), 3)
    with pytest.raises(Refusal, match="no block 7; the model's blocks are 0 to 3"):
        check((0, 7), 4)
    with pytest.raises(Refusal, match="no step -1"):
        drop(clean(4), -1)
