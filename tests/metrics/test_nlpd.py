"""Negative log predictive density: from the likelihood of a fresh observation to the metric, against torch.distributions."""

import math

import pytest
import torch
from torch.distributions import Normal

from vfmbench.errors import MissingError
from vfmbench.measurement import Measurement
from vfmbench.metrics.posterior import nlpd
from vfmbench.tasks.operators import Mask


def test_likelihood_is_the_gaussian_one_over_observed_entries():
    generator = torch.Generator().manual_seed(0)
    y, images = torch.randn((2, 3, 1, 2, 2), generator=generator, dtype=torch.float64)
    observed = torch.rand((3, 1, 2, 2), generator=generator) < 0.6
    noise_std = torch.tensor([0.1, 0.5, 2.0], dtype=torch.float64).reshape(3, 1, 1, 1)
    index = torch.arange(3)
    measurement = Measurement(y, Mask(observed, (1, 2, 2)), noise_std, index, index, "toy")
    expected = (Normal(images, noise_std.expand_as(images)).log_prob(y) * observed).flatten(1).sum(1)
    assert torch.allclose(measurement.log_likelihood(images), expected, rtol=1e-12)


def test_density_is_the_mean_over_samples(make_set):
    likelihood = torch.tensor([[-1.0, -2.0, -3.0, -1000.0]]).repeat(12, 1)
    (value,) = nlpd(make_set(log_likelihood=likelihood))
    assert value.value == pytest.approx(-math.log((math.exp(-1) + math.exp(-2) + math.exp(-3)) / 4))
    assert value.n == 12


def test_without_likelihoods_it_is_missing(make_set):
    with pytest.raises(MissingError, match="likelihoods"):
        nlpd(make_set())
