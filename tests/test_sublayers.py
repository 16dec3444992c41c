import pytest
import torch

from robustness import sublayers

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
