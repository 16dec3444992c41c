from itertools import permutations

import numpy as np
import pytest
import torch
from ckatorch.hsic import hsic1

from robustness.trace.cka import alignment, centred, hsic


def states(depths=4, sequences=9, width=5, seed=0):
    torch.manual_seed(seed)
    return torch.randn(depths, sequences, width, dtype=torch.float64) + 2


def test_hsic_is_the_u_statistic_over_all_quadruples():
    given = states(depths=2, sequences=6)
    k, other = (each @ each.T for each in given)
    terms = [
        k[i, j] * (other[i, j] + other[q, r] - 2 * other[i, q])
        for i, j, q, r in permutations(range(6), 4)
    ]
    torch.testing.assert_close(hsic(given)[0, 1], torch.stack(terms).mean())


def test_hsic_is_that_of_ckatorch():
    given = states()
    grams = given @ given.transpose(1, 2)
    found = hsic(given)
    for i in range(4):
        for j in range(4):
            expected = hsic1(grams[i][None], grams[j][None])[0]
            torch.testing.assert_close(found[i, j], expected)


def terms(batches):
    return torch.stack([hsic(batch) for batch in batches], -1)


def test_a_representation_is_aligned_with_itself_whatever_its_rotation_and_scale():
    batches = [states(seed=seed) for seed in range(3)]
    rotation = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64))[0]
    turned = [torch.stack([batch[0], 7 * batch[0] @ rotation]) for batch in batches]
    value, error = alignment(terms(turned))
    torch.testing.assert_close(value, torch.ones_like(value))
    torch.testing.assert_close(error, torch.zeros_like(value), atol=1e-7, rtol=0)


def test_it_is_symmetric_and_does_not_see_a_common_shift_of_all_sequences():
    batches = [states(seed=seed) for seed in range(3)]
    value, _ = alignment(terms(batches))
    torch.testing.assert_close(value, value.T)
    moved, _ = alignment(terms([batch + torch.arange(5) for batch in batches]))
    torch.testing.assert_close(value, moved)


def test_independent_representations_have_none_on_average():
    torch.manual_seed(0)
    many = torch.stack([hsic(torch.randn(2, 16, 3)) for _ in range(2000)], -1)
    crossed = many[0, 1]
    assert abs(crossed.mean()) < 4 * crossed.std() / 2000**0.5
    assert many[0, 0].mean() > 10 * crossed.std() / 2000**0.5


def test_the_error_is_the_jackknifes_and_covers_the_truth():
    batches = [states(seed=seed) for seed in range(6)]
    left_out = [
        alignment(terms([batch for at, batch in enumerate(batches) if at != out]))[0]
        for out in range(6)
    ]
    spread = torch.stack(left_out)
    expected = (5 / 6 * (spread - spread.mean(0)).square().sum(0)).sqrt()
    torch.testing.assert_close(alignment(terms(batches))[1], expected)

    torch.manual_seed(0)
    hits = []
    for _ in range(200):
        drawn = []
        for _ in range(8):
            common = torch.randn(32, 4, dtype=torch.float64)
            drawn.append(torch.stack([common, common + torch.randn(32, 4)]))
        value, error = alignment(terms(drawn))
        hits.append(abs(value[0, 1] - 0.5) < 2.4 * error[0, 1])  # t with 7 degrees of freedom
    # In expectation: Σ² of the common part over the norms of both covariances, 1 / (1 · 2).
    assert 0.88 < np.mean(hits) < 0.995


def test_a_negative_estimate_has_no_root():
    value, _ = alignment(torch.tensor([[[-1.0], [0.5]], [[0.5], [-1.0]]]))
    assert value.isnan().all()


def test_two_batches_have_no_error():
    value, error = alignment(terms([states(seed=seed) for seed in range(2)]))
    assert value.isfinite().all() and error.isnan().all()


def test_too_few_sequences_are_no_estimate():
    with pytest.raises(ValueError, match="HSIC takes 4 sequences, not 3"):
        hsic(states(sequences=3))


def test_centring_takes_the_mean_over_features_out():
    torch.testing.assert_close(centred(states()).mean(-1), torch.zeros(4, 9, dtype=torch.float64))
