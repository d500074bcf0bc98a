"""What holds for every exact posterior: calibration, agreement with a second sampler, extreme observations."""

from dataclasses import replace

import numpy as np
import pytest
import scipy.stats
import torch

from vfmbench.interfaces import ExactPosterior
from vfmbench.measurement import Measurement
from vfmbench.randomness import PhiloxNoise, sample_rows
from vfmbench.tasks.exact import CheckerboardPrior, grid_mixture, random_gaussian
from vfmbench.tasks.observations import FirstCoordinate, LinearObservation

PROBLEMS = {
    "checkerboard": (CheckerboardPrior(), FirstCoordinate((2, 1, 1), FirstCoordinate.Options())),
    "gaussian": (random_gaussian(5), LinearObservation((5, 1, 1), LinearObservation.Options(observations=2))),
    "mixture": (grid_mixture(4), LinearObservation((4, 1, 1), LinearObservation.Options(observations=2, noise_std=0.3))),
    "mixture-2d": (grid_mixture(2), FirstCoordinate((2, 1, 1), FirstCoordinate.Options(noise_std=0.5))),
}


def observe(name: str, rows: int, seed: int = 0) -> tuple[torch.Tensor, Measurement, ExactPosterior]:
    """Points of the prior, their measurement and its posteriors."""
    prior, task = PROBLEMS[name]
    index = torch.arange(rows)
    truth = prior.draw(PhiloxNoise(seed, "truth", index))
    measurement = task.measure(truth, torch.zeros_like(index), index, seed)
    return truth, measurement, prior.posterior(measurement)


def draw(posterior: ExactPosterior, count: int, seed: int = 0) -> torch.Tensor:
    return posterior.sample(count, PhiloxNoise(seed, "test", *sample_rows(torch.arange(len(posterior)), range(count))))


@pytest.mark.parametrize("name", PROBLEMS)
def test_truths_are_calibrated_among_the_draws(name):
    """Simulation-based calibration: the rank of the truth among 99 draws of its posterior is uniform on 0..99."""
    repetitions, count = 1000, 99
    truth, _, posterior = observe(name, repetitions)
    drawn = draw(posterior, count)
    points = torch.cat([truth[:, None], drawn], 1)
    statistics = [*points.flatten(2).unbind(-1), posterior.log_density(points)]
    for values in statistics:
        rank = (values[:, 1:] < values[:, :1]).sum(1)
        assert scipy.stats.chisquare((rank // 10).bincount(minlength=10)).pvalue > 0.01


@pytest.mark.parametrize("name", PROBLEMS)
def test_draws_cannot_be_told_from_importance_resampling(name):
    """Maximum mean discrepancy to prior draws resampled by their likelihood, by a permutation test."""
    prior, _ = PROBLEMS[name]
    _, measurement, posterior = observe(name, 3, seed=1)
    proposals = prior.draw(PhiloxNoise(5, "proposals", torch.arange(500_000)))[..., 0, 0].double().numpy()
    drawn = draw(posterior, 800).flatten(2).double().numpy()
    generator = np.random.default_rng(0)
    for row in range(3):
        residual = measurement.y[row].double().numpy() - proposals @ measurement.operator.matrix.numpy().T
        weight = np.exp(-0.5 * (residual / float(measurement.noise_std[row])).__pow__(2).sum(1))
        assert weight.sum() ** 2 / (weight**2).sum() > 3000
        resampled = proposals[generator.choice(len(proposals), 800, p=weight / weight.sum())]
        assert permutation_p_value(resampled, drawn[row], generator) > 0.01


def permutation_p_value(x: np.ndarray, y: np.ndarray, generator: np.random.Generator) -> float:
    """Of the squared MMD with a Gaussian kernel of the median distance, [n,d] each, among random splits of both."""
    points = np.concatenate([x, y])
    squared = np.square(points[:, None] - points).sum(-1)
    kernel = np.exp(-0.5 * squared / np.median(squared))
    sign = np.concatenate([np.ones(len(x)), -np.ones(len(y))])
    splits = np.stack([sign, *(generator.permutation(sign) for _ in range(200))])
    statistics = np.einsum("ri,ri->r", splits @ kernel, splits)
    return float((statistics >= statistics[0]).mean())


@pytest.mark.parametrize("name", PROBLEMS)
def test_posterior_is_prior_times_likelihood(name):
    prior, _ = PROBLEMS[name]
    _, measurement, posterior = observe(name, 4)
    points = prior.draw(PhiloxNoise(2, "points", torch.arange(4 * 30))).reshape(4, 30, *measurement.operator.image_shape)
    exact = replace(measurement, y=measurement.y.double(), noise_std=measurement.noise_std.double()).repeat(30)
    likelihood = exact.log_likelihood(points.flatten(0, 1).double()).reshape(4, 30)
    constant = posterior.log_density(points) - prior.log_density(points) - likelihood
    torch.testing.assert_close(constant, constant[:, :1].expand_as(constant), atol=1e-9, rtol=0)


@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("y", [50.0, -50.0])
def test_far_observations_give_finite_results(name, y):
    prior, _ = PROBLEMS[name]
    _, measurement, _ = observe(name, 3)
    posterior = prior.posterior(replace(measurement, y=torch.full_like(measurement.y, y)))
    drawn = draw(posterior, 50)
    assert drawn.dtype == torch.float32
    assert drawn.isfinite().all()
    assert posterior.log_density(drawn).isfinite().all()
    for weights in (posterior.mode_weights(), posterior.mode_shares(drawn)):
        torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1], dtype=torch.float64))


@pytest.mark.parametrize("name", PROBLEMS)
def test_a_row_does_not_depend_on_the_others(name):
    prior, task = PROBLEMS[name]
    truth, _, posterior = observe(name, 4)
    whole = draw(posterior, 10)
    index = torch.tensor([2])
    single = prior.posterior(task.measure(truth[2:3], torch.zeros_like(index), index, 0))
    alone = single.sample(10, PhiloxNoise(0, "test", *sample_rows(index, range(10))))
    torch.testing.assert_close(alone[0], whole[2], atol=1e-6, rtol=0)
    torch.testing.assert_close(single.log_density(whole[2:3])[0], posterior.log_density(whole)[2], atol=1e-9, rtol=0)
