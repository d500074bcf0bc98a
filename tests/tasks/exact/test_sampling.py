"""Inversion sampling against distribution functions in high precision."""

import mpmath
import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch

from vfmbench.randomness import PhiloxNoise
from vfmbench.tasks.exact.sampling import (
    categorical,
    fine_uniform,
    log_interval_probability,
    normal_quantile_of_log,
    truncated_normal_quantile,
)


def column(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


# From the middle to 500 standard deviations out, on both sides, narrow and wide.
INTERVALS = [(-1, 2), (-0.01, 0.03), (-30, 30), (0, 10), (4, 14), (-14, -4), (29.9, 30.1), (-60, -40), (480, 490), (-500, -480)]


def exact_probability(lower: float, upper: float) -> mpmath.mpf:
    """Of the interval under the standard normal."""
    if lower > 0:
        lower, upper = -upper, -lower
    with mpmath.workdps(80):
        below, above = (mpmath.erfc(-mpmath.mpf(end) / mpmath.sqrt(2)) / 2 for end in (lower, upper))
        return above - below


@pytest.mark.parametrize(("lower", "upper"), INTERVALS)
def test_truncated_normal_quantiles_have_their_probability(lower, upper):
    probability = torch.linspace(1e-6, 1 - 1e-6, 30, dtype=torch.float64)
    value = truncated_normal_quantile(*(torch.full_like(probability, end) for end in (lower, upper)), probability)
    whole = exact_probability(lower, upper)
    reached = [float(exact_probability(lower, v) / whole) for v in value.tolist()]
    # At 500 standard deviations the rounding of a float64, 1e-13, moves the probability by 500 times as much.
    np.testing.assert_allclose(reached, probability, atol=1e-10, rtol=0)


@pytest.mark.parametrize(("lower", "upper"), INTERVALS)
def test_interval_probabilities_are_those_of_high_precision(lower, upper):
    value = float(log_interval_probability(column(lower), column(upper)))
    assert value == pytest.approx(float(mpmath.log(exact_probability(lower, upper))), rel=1e-14, abs=1e-14)


def test_log_quantiles_are_scipys_on_both_sides_of_the_switch():
    log_probability = -torch.cat([torch.logspace(-3, 12, 500), torch.linspace(290, 310, 101)]).double()
    np.testing.assert_allclose(
        normal_quantile_of_log(log_probability), scipy.special.ndtri_exp(log_probability.numpy()), rtol=1e-12
    )


def test_fine_uniforms_fill_the_open_interval_beyond_24_bits():
    value = fine_uniform(PhiloxNoise(0, "test", torch.arange(20_000)), (), 0)
    assert 0 < value.min() < 2.0**-10
    assert 1 - 2.0**-10 < value.max() < 1
    assert scipy.stats.kstest(value.numpy(), "uniform").pvalue > 0.01
    assert scipy.stats.kstest((value * 2.0**24 % 1).numpy(), "uniform").pvalue > 0.01

    class Zeros:
        def uniform(self, shape, draw):
            return torch.zeros(1, *shape)

    class Largest:
        def uniform(self, shape, draw):
            return torch.full((1, *shape), 1 - 2.0**-24)

    assert 0 < float(fine_uniform(Zeros(), (), 0)) < float(fine_uniform(Largest(), (), 0)) < 1


def test_choices_have_their_probabilities_and_skip_zeros():
    weights = torch.tensor([[0.0, 1, 0, 3, 0], [1e-12, 0, 0, 0, 1]], dtype=torch.float64)
    uniform = fine_uniform(PhiloxNoise(0, "test", torch.arange(2 * 4000)), (), 0).reshape(2, 4000)
    index = categorical(weights, uniform)
    assert index[0].unique().tolist() == [1, 3]
    assert float((index[0] == 3).double().mean()) == pytest.approx(0.75, abs=0.03)
    assert (index[1] == 4).all()
    ends = torch.tensor([[2.0**-49, 1 - 2.0**-49]], dtype=torch.float64)
    assert categorical(weights, ends.expand(2, 2)).tolist() == [[1, 3], [0, 4]]
