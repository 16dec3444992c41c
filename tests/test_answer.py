"""What a server sends is what it was asked for."""

import pytest
import torch

from robustness.errors import Refusal
from robustness.ndif import answer


def test_an_answer_has_what_was_asked_for_and_nothing_else_of_it_is_taken():
    wanted = {"kl": ((2, 3), answer.FLOATS)}
    kept = answer.take({"kl": torch.ones(2, 3), "more": 1}, wanted)
    assert kept.keys() == {"kl"} and answer.size(wanted) == 6
    for other in (
        None, [], {}, {"kl": None}, {"kl": [1.0]}, {"kl": torch.ones(3, 2)},
        {"kl": torch.ones(1, 3)}, {"kl": torch.ones(2, 3, dtype=torch.int64)},
        {"kl": torch.ones(2, 3, dtype=torch.complex64)},
    ):  # fmt: skip
        with pytest.raises(Refusal, match="not what was asked for"):
            answer.take(other, wanted)
    assert answer.plain({"a": [1, 2], "b": "x"}, {"a": [int], "b": str})
    for other in (None, {}, {"a": 1, "b": "x"}, {"a": ["1"], "b": "x"}, {"a": [1], "b": 1}):
        with pytest.raises(Refusal, match="not what was asked for"):
            answer.plain(other, {"a": [int], "b": str})
