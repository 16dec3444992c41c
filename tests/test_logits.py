import pytest
import torch

from robustness.trace import unembedding

NUMBERS = [1.0, 0.1, 13.0, 30.0]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("scale", "cap"),
    [(1.0, None), (0.1, None), (1 / 13, None), (1.0, 30.0), (13.0, 30.0), (0.1, 30.0)],
)
def test_what_is_done_to_logits_is_found_exactly(scale, cap, dtype):
    given = unembedding.trial(torch.zeros(2, 3, 5, dtype=dtype))
    assert given.shape[:2] == (2, 3)
    made = given * scale
    if cap is not None:
        made = torch.tanh(made / cap) * cap
    found = unembedding.fit(given, made, NUMBERS)
    assert found["off"] <= 16 * torch.finfo(dtype).eps
    if cap is None or scale == 1.0:
        assert (found["scale"], found["cap"]) == (scale, cap)
    else:
        assert found["cap"] == cap
        assert found["scale"] == pytest.approx(scale, rel=8 * torch.finfo(dtype).eps)


@pytest.mark.parametrize(
    "bend", [torch.sin, torch.square, lambda z: z.clamp(-5, 5), lambda z: z + 1]
)
def test_what_is_neither_scaled_nor_capped_is_told(bend):
    given = unembedding.trial(torch.zeros(1, 1, 1, dtype=torch.float64))
    assert unembedding.fit(given, bend(given), NUMBERS)["off"] > 1e-3
