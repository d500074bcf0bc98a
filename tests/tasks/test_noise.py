"""Noise against SciPy's distributions."""

import numpy as np
import pytest
import scipy.stats
import torch

from vfmbench.randomness import PhiloxNoise
from vfmbench.tasks.noise import NOISE_FLOOR, add_gaussian, add_poisson, poisson_quantile


def noise(rows: int = 4) -> PhiloxNoise:
    return PhiloxNoise(0, "test", torch.arange(rows))


def full(value: float, *shape: int) -> torch.Tensor:
    return torch.full(shape, value, dtype=torch.float64)


@pytest.mark.parametrize("rate", [0.0, 1e-4, 0.3, 3.0, 30.0, 300.0, 3e3, 1e5])
def test_poisson_quantile_equals_scipys(rate):
    middle = torch.rand(2000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    tails = torch.tensor([2.0**-49, 1e-12, 1e-6, 1e-3], dtype=torch.float64)
    probability = torch.cat([middle, tails, 1 - tails])
    count = poisson_quantile(probability, torch.full_like(probability, rate))
    np.testing.assert_array_equal(count, scipy.stats.poisson.ppf(probability, rate))


def test_poisson_quantile_of_mixed_rates_and_shapes():
    rate = torch.logspace(-3, 5, 60, dtype=torch.float64).reshape(3, 4, 5)
    probability = torch.rand(3, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    np.testing.assert_array_equal(poisson_quantile(probability, rate), scipy.stats.poisson.ppf(probability, rate))
    assert (poisson_quantile(probability, -rate) == 0).all()


@pytest.mark.parametrize(("clean", "peak"), [(-0.96, 50.0), (0.2, 10.0), (1.0, 1000.0)])
def test_poisson_measurements_are_poisson(clean, peak):
    y, std = add_poisson(full(clean, 4, 1, 50, 50), peak, noise())
    count = (y + 1) / 2 * peak
    rate = peak * (clean + 1) / 2
    torch.testing.assert_close(count, count.round(), atol=1e-9, rtol=0)
    values = np.arange(int(scipy.stats.poisson.ppf(0.001, rate)), int(scipy.stats.poisson.ppf(0.999, rate)) + 1)
    edges = np.quantile(values, np.linspace(0, 1, min(len(values), 12))).round()
    below = scipy.stats.poisson.cdf(edges, rate)
    expected = np.diff(below, prepend=0, append=1) * count.numel()
    observed = np.histogram(count, bins=[-1, *(edges + 0.5), np.inf])[0]
    likely = expected > 5
    assert (
        scipy.stats.chisquare(observed[likely], expected[likely] * observed[likely].sum() / expected[likely].sum()).pvalue
        > 1e-3
    )
    assert std.shape == y.shape
    if rate > 4:
        assert float(std.mean()) == pytest.approx(2 * rate**0.5 / peak, rel=0.1)
    assert std.min() >= 2 / peak


def test_gaussian_measurements_are_gaussian():
    y, std = add_gaussian(full(0.3, 4, 1, 50, 50), 0.05, noise())
    assert std.shape == (4, 1, 1, 1)
    assert (std == 0.05).all()
    assert scipy.stats.kstest(((y - 0.3) / 0.05).flatten(), "norm").pvalue > 1e-3


def test_no_noise_declares_the_floor():
    clean = full(0.3, 4, 1, 5, 5)
    y, std = add_gaussian(clean, 0.0, noise())
    assert torch.equal(y, clean)
    assert (std == NOISE_FLOOR).all()
