"""Options of a run."""

from pathlib import Path

import pytest

from robustness.errors import Refusal
from robustness.runs.settings import RunOptions


def test_a_path_may_be_text():
    assert RunOptions(out="there/x.nc").out == Path("there/x.nc")
    assert RunOptions().out is None


@pytest.mark.parametrize("name", ["batch_tokens", "state_cap"])
def test_sizes_are_positive(name):
    with pytest.raises(Refusal, match=f"`{name}` must be 1 or more, not 0"):
        RunOptions(**{name: 0})
