import doctest
import itertools
import math
import re
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from robustness.errors import Refusal
from robustness.schedules import (
    Attention,
    Mapped,
    Mlp,
    Parallel,
    Scaled,
    StreamMap,
    StreamScale,
    check,
    clean,
    drop,
    drop_attention,
    drop_mlp,
    from_text,
    interventions,
    layers_from_text,
    leaves,
    lowest_block,
    notation,
    parallel,
    plain,
    plan,
    repeat,
    reverse,
    schedule,
    shuffle,
    skip_span,
    swap,
    to_text,
    validation,
)
from robustness.schedules import steps as records
from robustness.schedules.schedule import DEEPEST, LONGEST

LAYERS = 12
blocks = st.integers(0, LAYERS - 1)
leaf = blocks | blocks.map(Attention) | blocks.map(Mlp)
factors = st.floats(allow_nan=False, allow_infinity=False)
spans = st.tuples(blocks, blocks).map(sorted)
single = st.one_of(
    leaf,
    st.builds(Scaled, leaf, factors),
    factors.filter(bool).map(StreamScale),
    spans.map(lambda span: StreamMap(*span)),
    st.builds(lambda step, span: Mapped(step, *span), leaf, spans),
)
steps = st.recursive(
    single,
    lambda inner: st.lists(inner, min_size=1, max_size=4).map(lambda s: Parallel(tuple(s))),
    max_leaves=5,
)
schedules = st.lists(steps, min_size=1, max_size=20).map(tuple)


@pytest.mark.parametrize("module", [schedule, records, notation, validation, interventions, plan])
def test_the_examples_in_docstrings_hold(module):
    failed, tried = doctest.testmod(module)
    assert tried and not failed


@pytest.mark.slow
@given(schedules)
def test_text_comes_back_as_the_schedule_it_was_written_from(steps):
    assert from_text(to_text(steps), LAYERS) == steps


@pytest.mark.slow
@given(schedules, st.data())
def test_swapping_twice_changes_nothing(steps, data):
    distance = data.draw(st.integers(1, max(1, len(steps) - 1)))
    if distance < len(steps):
        index = data.draw(st.integers(0, len(steps) - distance - 1))
        assert swap(swap(steps, index, distance), index, distance) == steps


@pytest.mark.slow
@given(schedules, st.data())
def test_a_swap_is_one_of_a_span_reversed_when_adjacent(steps, data):
    if len(steps) > 1:
        index = data.draw(st.integers(0, len(steps) - 2))
        assert swap(steps, index) == reverse(steps, index, 2)


@pytest.mark.slow
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


@pytest.mark.slow
@given(schedules, st.data())
def test_a_repeat_executes_each_step_of_its_span_once_more(steps, data):
    index = data.draw(st.integers(0, len(steps) - 1))
    length = data.draw(st.integers(1, len(steps) - index))
    times = data.draw(st.integers(0, 3))
    span = list(steps[index : index + length])
    for contiguous in (False, True):
        edited = repeat(steps, index, length, times=times, contiguous=contiguous)
        assert Counter(edited) == Counter([*steps, *span * times])


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
        ("0-a", 4, "block index was expected"),
        ("0-a-2", 4, "block index was expected"),
        ("m12", 2, "there is no block 12"),
        ("0-a3..5", 5, "a sublayer is of one block"),
        ("0-b3", 3, "block index was expected"),
        ("0-()", 4, "block index was expected"),
        ("0-(1-2)", 5, r"'\+', '\)' or '..' was expected"),
        ("0-(1..2-3)", 8, r"'\+' or '\)' was expected"),
        ("0-(m1-3)", 6, r"'\+' or '\)' was expected"),
        ("(1+2", 5, r"\(the end\): '\+', '\)' or '..' was expected"),
        ("(1+2)3", 6, "'-' was expected"),
        ("1+2", 2, "'-' or '..' was expected"),
        ("1-2)", 4, "'-' or '..' was expected"),
        ("(1+2)..", 6, "'-' was expected"),
        ("0-5*", 5, "a factor was expected"),
        ("5*x", 3, "a factor was expected"),
        ("5*.5", 3, "a factor was expected"),
        ("5*1.5.5", 6, "'-' was expected"),
        ("5*1e999", 3, "a factor is a finite number"),
        ("5*nan", 3, "a factor was expected"),
        ("5*" + "1" * 10**6, 3, "a factor is a finite number"),
        ("0-*0-1", 4, "a stream times 0 is none"),
        ("0..3*2", 5, r"'\*' is of one block or sublayer"),
        ("0..3~4", 5, "'~' is of one block or sublayer"),
        ("(1+2)*2", 6, "'-' was expected"),
        ("~", 2, "the blocks of a map were expected"),
        ("~a4", 2, "the blocks of a map were expected"),
        ("0-m3~7..4", 6, "a map is of ascending blocks"),
        ("~4..12", 5, "there is no block 12"),
        ("~" + "9" * 10**6, 2, "there is no block 9999"),
        ("3*2~4", 4, "'-' was expected"),
        ("-".join(["*2"] * 10**6), 30_001, "10,000 blocks are executed at most"),
        ("0-(1+12)", 6, "there is no block 12"),
        ("(" * 5000, DEEPEST + 1, "nested 9 deep at most"),
        ("1" * 5000, 1, "there is no block 1111"),
        ("0-1000000000", 3, "there is no block 1000000000"),
        ("0..1000000000", 4, "there is no block 1000000000"),
        ("0-٣", 3, "block index was expected"),  # a three that only Python reads
        ("3²", 2, "'-' or '..' was expected"),
        ("-1", 1, "block index was expected"),
        ("-".join(["0..11"] * 10**5), 4999, "10,000 blocks are executed at most"),
        ("-".join(["a0"] * 10**6), 30_001, "10,000 blocks are executed at most"),
        ("(" + "+".join(["0"] * 20_001) + ")", 20_002, "10,000 blocks are executed at most"),
    ],
)
def test_bad_text_is_refused_at_its_character(text, character, problem):
    with pytest.raises(Refusal, match=f"character {character} .*{problem}"):
        from_text(text, LAYERS)


@pytest.mark.parametrize("text", ["1" * 10**6, "(" * 10**6, "0-" * 10**6, "0-1" + "x" * 10**6])
def test_what_is_wrong_in_a_long_text_is_shown_without_all_of_it(text):
    for read in (from_text, layers_from_text):
        with pytest.raises(Refusal, match="character") as caught:
            read(text, LAYERS)
        assert len(str(caught.value)) < 300


def test_zeros_before_a_number_change_nothing():
    assert from_text("0" * 5000 + "3..00005", LAYERS) == (3, 4, 5)


@pytest.mark.parametrize(
    "build",
    [
        lambda: check(itertools.repeat(0), LAYERS),
        lambda: check((0,) * (LONGEST + 1), LAYERS),
        lambda: check((Parallel((0,) * (LONGEST // 2)),) * 3, LAYERS),
        lambda: check((Parallel(itertools.repeat(Mlp(0))),), LAYERS),
        lambda: check((many(DEEPEST),), LAYERS),
        lambda: repeat(clean(4), 0, times=10**15),
        lambda: parallel(clean(4), 0, 2, times=10**15),
    ],
)
def test_a_schedule_that_is_too_long_is_refused_before_it_is_built(build):
    with pytest.raises(Refusal, match="10,000"):
        build()


def many(depth):
    """Return steps on one input nested so deep, a hundred in each: 10^18 at the bound."""
    step = 0
    for _ in range(depth):
        step = Parallel((step,) * 100)
    return step


def test_the_longest_schedule_is_executable_and_one_more_block_is_not():
    longest = repeat(clean(4), 0, times=LONGEST - 4)
    assert check(longest, 4) == longest == from_text(to_text(longest), 4)
    with pytest.raises(Refusal, match="10,000"):
        check((*longest, 0), 4)
    with pytest.raises(Refusal, match="10,000"):
        from_text(to_text((*longest, 0)), 4)


@pytest.mark.slow
def test_steps_on_one_input_are_nested_as_deep_as_their_text_may_be():
    step = 0
    for _ in range(DEEPEST):
        step = Parallel((step,))
    assert from_text(to_text((step,)), LAYERS) == check((step,), LAYERS) == (step,)
    for _ in range(100_000):
        step = Parallel((step,))
    with pytest.raises(Refusal, match="nested 9 deep at most"):
        check((step,), LAYERS)


@pytest.mark.parametrize("text", ["", "  "])
def test_an_empty_schedule_is_refused(text):
    with pytest.raises(Refusal, match="empty schedule"):
        from_text(text, LAYERS)
    with pytest.raises(Refusal, match="empty schedule"):
        check((), LAYERS)


def test_ranges_are_open_at_either_end_and_run_both_ways():
    assert from_text("..2-5..3-10..", LAYERS) == (0, 1, 2, 5, 4, 3, 10, 11)


@given(st.text(alphabet="0123456789.-x am()+*~e", max_size=12))
def test_any_text_is_read_or_refused(text):
    try:
        assert check(from_text(text, LAYERS), LAYERS)
    except Refusal as refusal:
        assert "\n" not in str(refusal)


def test_sublayers_and_blocks_on_one_input_have_a_text():
    schedule = (0, 1, 2, Attention(3), Mlp(3), Parallel((4, 5, 6)), Parallel((7, Mlp(8))), 9)
    assert to_text(schedule) == "0..2-a3-m3-(4..6)-(7+m8)-9"
    for text in ("0..2-a3-m3-(4..6)-(7+m8)-9", "0..2-a3-m3-(4+5+6)-(7+m8)-9"):
        assert from_text(text, LAYERS) == schedule
    assert from_text("(..2+(4))", LAYERS) == (Parallel((0, 1, 2, Parallel((4,)))),)


@pytest.mark.slow
@given(schedules)
def test_a_step_travels_as_plain_values_that_tell_it_apart(steps):
    def flat(value):
        return [leaf for part in value for leaf in flat(part)] if type(value) is tuple else [value]

    travelled = tuple(map(plain, steps))
    assert {type(leaf) for leaf in flat(travelled)} <= {int, float, str}
    assert len(set(travelled)) == len(set(steps))


def test_factors_and_maps_have_a_text_and_are_checked():
    schedule = (0, Scaled(Mlp(5), 0.5), StreamScale(1.05), Mapped(Mlp(3), 4, 7), StreamMap(8, 8))
    assert to_text(schedule) == "0-m5*0.5-*1.05-m3~4..7-~8"
    assert from_text("0-m5*0.50-*1.05E0-m3~4..07-~8..8", LAYERS) == schedule
    assert check(schedule, LAYERS) == schedule
    assert from_text("5*-1e-05-~10..-2~..1-~..", LAYERS) == (
        Scaled(5, -1e-05), StreamMap(10, 11), Mapped(2, 0, 1), StreamMap(0, 11)
    )  # fmt: skip
    assert [lowest_block(step) for step in (Scaled(5, 2.0), Mapped(3, 4, 7), *schedule[2:5:2])] == [
        5, 3, -1, 8
    ]  # fmt: skip
    for step, problem in (
        (Scaled(3, math.nan), "nan is no factor"),
        (StreamScale(0.0), "0.0 is no factor"),
        (Scaled("3", 1.0), "'3' is no step"),
        (Scaled(Scaled(3, 1.0), 1.0), "is no step"),
        (Mapped(12, 0, 1), "no block 12"),
        (StreamMap(4, 12), "no block 12"),
        (StreamMap(4, 2), "ascending blocks, as ~2..4, not ~4..2"),
    ):
        with pytest.raises(Refusal, match=re.escape(problem)):
            check((0, step), LAYERS)


def test_only_a_whole_block_can_lose_a_sublayer():
    assert drop_attention(clean(3), 1) == (0, Mlp(1), 2)
    assert drop_mlp(clean(3), 1) == (0, Attention(1), 2)
    with pytest.raises(Refusal, match="step 1 is m1, and only a whole block has two sublayers"):
        drop_mlp(drop_attention(clean(3), 1), 1)


def test_what_is_executed_on_one_input_is_one_step_of_several_calls():
    looped = parallel(clean(6), 1, 3, times=2)
    assert looped == (0, Parallel((1, 2, 3)), Parallel((1, 2, 3)), 4, 5)
    assert [len(leaves(step)) for step in looped] == [1, 3, 3, 1, 1]
    with pytest.raises(Refusal, match="executed 0 times"):
        parallel(clean(6), 1, 3, times=0)


def test_layers_are_whole_blocks():
    assert layers_from_text("0..2-7", LAYERS) == (0, 1, 2, 7)
    for text in ("0-a3", "(0+1)"):
        with pytest.raises(Refusal, match=r"layers are whole blocks, as in 0..3-7, not"):
            layers_from_text(text, LAYERS)


def test_a_missing_step_or_block_is_refused_with_what_there_is():
    with pytest.raises(Refusal, match="no step 4; the schedule's 4 steps are 0 to 3"):
        drop(clean(4), 4)
    with pytest.raises(Refusal, match="no steps 3 to 4"):
        swap(clean(4), 3)
    with pytest.raises(Refusal, match="no block 7; the model's blocks are 0 to 3"):
        check((0, 7), 4)
    for step in (Attention(7), Mlp(7), Parallel((0, Parallel((7,))))):
        with pytest.raises(Refusal, match="no block 7"):
            check((0, step), 4)
    with pytest.raises(Refusal, match="empty"):
        check((0, Parallel(())), 4)
    with pytest.raises(Refusal, match="no step -1"):
        drop(clean(4), -1)
