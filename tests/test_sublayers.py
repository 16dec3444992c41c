import math

import pytest
import torch

from robustness.trace import numerics, sublayers

NUMBERS = [1.0, 0.22, 12.0]


def blocks(first, second, count=3):
    """Streams before and after blocks that add random sublayers times factors."""
    torch.manual_seed(0)
    shape = (2, 5, 8)
    entering = [torch.randn(shape, dtype=torch.float64) for _ in range(count)]
    written = [[torch.randn(shape, dtype=torch.float64) for _ in "am"] for _ in range(count)]
    leaving = [x + first * a + second * m for x, (a, m) in zip(entering, written, strict=True)]
    return entering, leaving, written


@pytest.mark.parametrize("pair", [(1.0, 1.0), (0.22, 0.22), (0.22, 12.0), (0.2236, 0.5)])
def test_factors_are_found_and_those_of_the_configuration_exactly(pair):
    found = sublayers.factors(*blocks(*pair), NUMBERS)
    assert len(found) == 3
    for each in found:
        assert each == (pair if set(pair) <= set(NUMBERS) else pytest.approx(pair, rel=1e-12))


def test_rounding_is_not_taken_for_a_factor():
    """A stream far larger than what is added, in half precision, hides by how much it is."""
    entering, _, written = blocks(1.0, 1.0)
    entering = [(100 * state).bfloat16() for state in entering]
    written = [[part.bfloat16() for part in parts] for parts in written]
    leaving = [x + a + m for x, (a, m) in zip(entering, written, strict=True)]
    assert sublayers.factors(entering, leaving, written, NUMBERS) == [(1.0, 1.0)] * 3


def alone(*answers):
    """Parts of blocks whose attention adds a number, one for each block, and whose MLP nothing."""
    mains = [lambda hidden, number=number: torch.full_like(hidden, number) for number in answers]
    nothing = ((), torch.zeros_like, (), None)
    return {
        "sublayers": [(((), main, (), None), nothing) for main in mains],
        "factors": [(1.0, 1.0)] * len(answers),
        "parallel": False,
    }


@pytest.mark.parametrize("bad", [0, 1, 2])
def test_a_block_that_gives_no_numbers_is_not_passed_over(bad):
    entering = [torch.ones(2, 5, 8, dtype=torch.float64)] * 3
    leaving = [2 * state for state in entering]
    adding = [1.0, 1.0, 1.0]
    assert sublayers.mismatch(entering, leaving, [sublayers.EMPTY] * 3, alone(*adding)) == 0
    adding[bad] = math.nan
    assert math.isnan(sublayers.mismatch(entering, leaving, [sublayers.EMPTY] * 3, alone(*adding)))


def test_a_token_without_a_stream_is_no_error():
    """As that which a model pads with, whose embedding is zero."""
    entering = [torch.ones(1, 5, 8, dtype=torch.float64)]
    entering[0][:, 2] = 0
    parts = alone(0.0)
    assert sublayers.mismatch(entering, entering, [sublayers.EMPTY], parts) == 0


@pytest.mark.parametrize("order", [1, -1])
def test_the_largest_of_errors_is_no_number_if_one_is_not(order):
    assert math.isnan(numerics.largest([2.0, math.nan, 1.0][::order]))
    assert numerics.largest([0.5, 2.0][::order]) == 2 and numerics.largest([]) == 0
