import pytest
import torch

from robustness.trace.attention import profile, weights


def queries_and_keys(groups=2):
    torch.manual_seed(0)
    queries = torch.randn(2, 4, 9, 6, dtype=torch.float64)
    return queries, torch.randn(2, groups, 9, 6, dtype=torch.float64)


def causal(length=9):
    return torch.ones(length, length, dtype=torch.bool).tril()


@pytest.mark.parametrize("kind", ["none", "bool", "added", "window"])
@pytest.mark.parametrize("scaling", [None, 0.3])
def test_weights_are_those_of_scaled_dot_product_attention(kind, scaling):
    queries, keys = queries_and_keys()
    seen = causal() & ~causal().tril(-3) if kind == "window" else causal()
    mask = {
        "none": None,
        "bool": seen,
        "window": seen,
        "added": torch.zeros(9, 9, dtype=torch.float64).masked_fill(~seen, -torch.inf),
    }[kind]
    found = weights(queries, keys, mask, scaling)
    # Values that are the unit vectors give the weights themselves.
    values = torch.eye(9, dtype=torch.float64).expand(2, 2, 9, 9)
    expected = torch.nn.functional.scaled_dot_product_attention(
        queries, keys, values, attn_mask=seen, scale=scaling, enable_gqa=True
    )
    torch.testing.assert_close(found, expected)


def test_half_precision_is_computed_in_float32():
    queries, keys = (each.bfloat16() for each in queries_and_keys())
    assert weights(queries, keys, None, None).dtype == torch.float32


def test_the_profile_of_a_pattern_made_by_hand():
    pattern = torch.zeros(1, 1, 5, 5)
    pattern[0, 0] = torch.tensor(
        [
            [1, 0, 0, 0, 0],
            [0.5, 0.5, 0, 0, 0],
            [0.2, 0.3, 0.5, 0, 0],
            [0.1, 0.2, 0.3, 0.4, 0],
            [0.4, 0.0, 0.1, 0.2, 0.3],
        ]
    )
    text = {"offsets": 2, "lengths": torch.tensor([5])}
    found = profile({"pattern": pattern}, text)
    torch.testing.assert_close(found["profile"].flatten(), torch.tensor([0.35, 0.25, 0.15]))
    torch.testing.assert_close(found["first_token"].flatten(), torch.tensor([0.25]))
    shorter = profile({"pattern": pattern}, {"offsets": 2, "lengths": torch.tensor([4])})
    torch.testing.assert_close(shorter["profile"].flatten(), torch.tensor([0.4, 0.3, 0.2]))


def test_a_long_rows_offsets_and_first_token_add_up_to_one():
    pattern = torch.rand(2, 3, 8, 8, dtype=torch.float64) * causal(8)
    pattern = pattern / pattern.sum(-1, keepdim=True)
    # One query alone has all of its keys among the offsets and the first token.
    found = profile({"pattern": pattern}, {"offsets": 6, "lengths": torch.tensor([8, 8])})
    total = found["profile"].sum(1) + found["first_token"]
    torch.testing.assert_close(total, torch.ones_like(total))


def test_autocast_rounds_nothing():
    """As on a server that has the model in half precision."""
    torch.manual_seed(0)
    queries, keys = torch.randn(2, 4, 7, 8), torch.randn(2, 2, 7, 8)
    expected = weights(queries, keys, None, None)
    with torch.autocast("cpu", torch.bfloat16):
        found = weights(queries, keys, None, None)
    torch.testing.assert_close(found, expected)
