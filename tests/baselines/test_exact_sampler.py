"""The sampler that draws from the true posterior: what it passes on, where it runs."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from vfmbench.baselines.exact import ExactPosteriorSampler
from vfmbench.metering import Meter
from vfmbench.options import SamplerOptions
from vfmbench.randomness import PhiloxNoise, sample_rows
from vfmbench.registry import samplers, suites

from .toys import CPU, MatrixOperator, direct


class ScalarPosterior:
    """x ~ N(0, 1) and y = x + n, n ~ N(0, 1): N(y/2, 1/2)."""

    def __init__(self, y):
        self.y = y

    def sample(self, count, noise):
        normal = noise.normal((1, 1, 1), 0).unflatten(0, (len(self.y), count))
        return self.y[:, None, :, None, None] / 2 + 0.5**0.5 * normal


def test_draws_come_from_the_suites_posterior():
    suite = SimpleNamespace(prior=SimpleNamespace(posterior=lambda measurement: ScalarPosterior(measurement.y)))
    sampler = ExactPosteriorSampler(suite, SamplerOptions(), SimpleNamespace(meter=Meter(CPU)))
    measurement = direct([1.0], MatrixOperator(torch.eye(1), (1, 1, 1)), 1.0)
    samples = sampler.sample(measurement, 4000, PhiloxNoise(0, "sampling", *sample_rows(measurement.index, range(4000))))
    assert samples.images.shape == (1, 4000, 1, 1, 1)
    assert samples.effective_samples is None
    assert samples.images.mean().item() == pytest.approx(0.5, abs=4 * (0.5 / 4000) ** 0.5)
    assert samples.images.var().item() == pytest.approx(0.5, rel=4 * (2 / 4000) ** 0.5)
    assert not any(sampler.meter.counts.values())


def test_it_runs_where_the_posterior_is_known():
    for known in (True, False):
        supported, reason = ExactPosteriorSampler.supports(
            None, SimpleNamespace(prior=object() if known else None, name="digits")
        )
        assert supported is known
        assert ("not known in the suite digits" in reason) is not known


def test_mixture_of_the_harness_by_name():
    """Samples of a registered suite: shares of the modes against their weights, and alone as in a batch."""
    suite = suites.get("mixture")({})
    sampler = samplers.get("exact")(suite, SamplerOptions(), suite.backbone(CPU))
    task = suite.task("linear_observation", {})
    points, label = suite.dataset("test").load(range(3))

    def draw(rows):
        index = torch.tensor(rows)
        measurement = task.measure(points[rows], label[rows], index, "test/0")
        noise = PhiloxNoise(0, "sampling", *sample_rows(index, range(2000)))
        return measurement, sampler.sample(measurement, 2000, noise).images

    measurement, images = draw([0, 1, 2])
    posterior = suite.prior.posterior(measurement)
    weights, shares = posterior.mode_weights(), posterior.mode_shares(images).mean(1)
    assert ((shares - weights).abs() < 4 * (weights * (1 - weights) / 2000).sqrt() + 1e-3).all()
    torch.testing.assert_close(draw([1])[1][0], images[1], rtol=0, atol=1e-6)
