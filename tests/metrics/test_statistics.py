import warnings

import numpy as np
import pytest
import torch
from scipy import stats

from vfmbench.interfaces import UserError
from vfmbench.metrics.statistics import (
    mean_interval,
    normal_interval,
    paired_difference,
    paired_set_difference,
    resampling_counts,
)


@pytest.mark.parametrize("draw", [torch.Tensor.normal_, torch.Tensor.exponential_])
def test_interval_of_the_mean_covers_in_about_95_percent(draw):
    generator = torch.Generator().manual_seed(0)
    expected = 1.0 if draw is torch.Tensor.exponential_ else 0.0
    intervals = [mean_interval(draw(torch.empty(80), generator=generator)) for _ in range(300)]
    coverage = np.mean([low <= expected <= high for low, high in intervals])
    assert 0.90 <= coverage <= 0.985


def test_interval_is_repeatable_and_has_the_normal_width():
    values = torch.randn(500, generator=torch.Generator().manual_seed(0))
    low, high = mean_interval(values)
    assert (low, high) == mean_interval(values)
    assert high - low == pytest.approx(2 * 1.96 * float(values.std()) / 500**0.5, rel=0.1)


def test_interval_of_skewed_data_reaches_further_to_the_long_tail():
    values = torch.empty(40).exponential_(generator=torch.Generator().manual_seed(0))
    low, high = mean_interval(values)
    assert high - float(values.mean()) > 1.1 * (float(values.mean()) - low)


def test_degenerate_data_gives_no_warning_and_no_nan():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert mean_interval(torch.full((9,), 0.25)) == (0.25, 0.25)
        assert mean_interval(torch.zeros(3)) == (0, 0)
        assert mean_interval(torch.tensor([0.1 + 0.2] * 5 + [0.3] * 4, dtype=torch.float64)) == pytest.approx((0.3, 0.3))
        assert mean_interval(torch.ones(1)) == (None, None)
        for values in ([0.0, 1.0], [0.0] * 30 + [1.0], [1e9, 1e9 + 1, 1e9]):
            low, high = mean_interval(torch.tensor(values, dtype=torch.float64))
            assert low < high


def test_resampling_counts():
    counts = resampling_counts(50)
    assert counts.shape == (200, 50)
    assert (counts.sum(1) == 50).all()
    assert float(counts.std()) == pytest.approx((1 - 1 / 50) ** 0.5, rel=0.05)


def test_normal_interval():
    low, high = normal_interval(2.0, torch.tensor([1.0, 3.0, 5.0]))
    assert (low, high) == pytest.approx((2 - 3.92, 2 + 3.92))


def test_paired_difference_sees_what_unpaired_intervals_hide():
    generator = torch.Generator().manual_seed(0)
    difficulty = 10 * torch.randn(100, generator=generator)
    a = difficulty + 0.3 + 0.5 * torch.randn(100, generator=generator)
    result = paired_difference(a, difficulty)
    assert result.difference == pytest.approx(float((a - difficulty).mean()), rel=1e-5)
    assert 0 < result.low < result.difference < result.high
    assert result.p_value == pytest.approx(1e-4)
    assert result.n == 100
    swapped = paired_difference(difficulty, a)
    assert (swapped.difference, swapped.p_value) == pytest.approx((-result.difference, result.p_value))


def test_exact_sign_flips_of_few_images():
    """All five differences positive: 2 of the 32 sign patterns are at least as extreme."""
    assert paired_difference(torch.arange(1, 6), torch.zeros(5)).p_value == pytest.approx(2 / 32)


def test_random_sign_flips_equal_scipy():
    difference = torch.randn(40, generator=torch.Generator().manual_seed(0)) + 0.25
    expected = stats.permutation_test(
        (difference.double().numpy(),), np.mean, permutation_type="samples", vectorized=True, n_resamples=9999, rng=1
    )
    assert 0.02 < expected.pvalue < 0.5
    assert paired_difference(difference, torch.zeros(40)).p_value == pytest.approx(expected.pvalue, abs=0.015)


def test_p_values_of_equal_methods_are_uniform():
    generator = torch.Generator().manual_seed(0)
    pairs = (torch.randn((2, 25), generator=generator) for _ in range(200))
    p_values = np.array([paired_difference(a, b).p_value for a, b in pairs])
    assert 0.01 <= (p_values < 0.05).mean() <= 0.09
    assert p_values.mean() == pytest.approx(0.5, abs=0.08)


def test_paired_difference_of_equal_values_and_of_one_image():
    values = torch.arange(6.0)
    result = paired_difference(values, values)
    assert (result.difference, result.low, result.high, result.p_value) == (0, 0, 0, 1)
    result = paired_difference(values[:1], values[1:2])
    assert (result.difference, result.low, result.high, result.p_value, result.n) == (-1, None, None, None, 1)


def test_paired_difference_refuses_what_it_cannot_compare():
    with pytest.raises(UserError, match="same images"):
        paired_difference(torch.zeros(3), torch.zeros(4))
    with pytest.raises(UserError, match="finite"):
        paired_difference(torch.tensor([1.0, float("inf")]), torch.zeros(2))


def test_paired_set_difference_uses_only_what_does_not_cancel():
    """Two Frechet-like statistics that share the noise of the choice of images and differ by 0.1."""
    generator = torch.Generator().manual_seed(0)
    shared, own = torch.randn(2, 200, generator=generator, dtype=torch.float64)
    result = paired_set_difference(1.1, 1.0, 1.1 + shared, 1.0 + shared + 0.01 * own, n=50)
    assert result.difference == pytest.approx(0.1)
    assert result.p_value < 1e-6
    assert result.high - result.low == pytest.approx(2 * 1.96 * 0.01, rel=0.2)
    unpaired = paired_set_difference(1.1, 1.0, 1.1 + shared, 1.0 + own, n=50)
    assert unpaired.p_value > 0.5
    assert paired_set_difference(1.0, 1.0, shared, shared, n=50).p_value is None
    with pytest.raises(UserError, match="200 and 100"):
        paired_set_difference(1.0, 1.0, shared, shared[:100], n=50)
