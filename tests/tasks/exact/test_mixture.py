"""The mixture prior: densities, closed-form posteriors component by component, and its velocity."""

import itertools
import math

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
from torch.distributions import Categorical, Independent, MixtureSameFamily, MultivariateNormal, Normal

from vfmbench.errors import UserError
from vfmbench.measurement import Measurement
from vfmbench.metering import Meter
from vfmbench.models.flow import NetworkFlow
from vfmbench.randomness import PhiloxNoise, sample_rows
from vfmbench.tasks.exact import MixturePrior, grid_mixture
from vfmbench.tasks.operators import MatrixOperator


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def eye(size: int) -> torch.Tensor:
    return torch.eye(size, dtype=torch.float64)


def measured(matrix: torch.Tensor, y: torch.Tensor, noise_std: torch.Tensor) -> Measurement:
    rows = torch.arange(len(y))
    return Measurement(y, MatrixOperator(len(y), matrix), noise_std, rows, rows, "linear_observation")


def wide_mixture(dimension: int = 3) -> MixturePrior:
    """Components that overlap, so that no weight is close to 0 or 1."""
    return MixturePrior(torch.tensor([3.0, 1, 2, 0.5]), random(4, dimension, seed=9), 0.6)


def reference(prior: MixturePrior, scale: float = 1.0, noise: float = 0.0) -> MixtureSameFamily:
    """Distribution of scale x + noise z."""
    std = math.sqrt((scale * prior.std) ** 2 + noise**2)
    components = Independent(Normal(scale * prior.means, torch.full_like(prior.means, std)), 1)
    return MixtureSameFamily(Categorical(prior.weights), components)


def test_prior_density_and_component_shares():
    prior = wide_mixture()
    points = 2 * random(50, 3, 1, 1)
    flat = points[..., 0, 0]
    torch.testing.assert_close(prior.log_density(points), reference(prior).log_prob(flat), atol=1e-10, rtol=0)
    joint = reference(prior).component_distribution.log_prob(flat[:, None]) + prior.weights.log()
    torch.testing.assert_close(prior.component_shares(points), joint.softmax(1), atol=1e-12, rtol=0)


def test_prior_draws():
    prior = MixturePrior(torch.tensor([1.0, 3.0]), torch.tensor([[-5.0, 0], [5.0, 1.0]]), 0.5)
    draws = prior.draw(PhiloxNoise(0, "test", torch.arange(10_000)))
    assert (draws.shape, draws.dtype) == ((10_000, 2, 1, 1), torch.float32)
    right = draws[:, 0, 0, 0] > 0
    assert scipy.stats.binomtest(int(right.sum()), 10_000, 0.75).pvalue > 0.01
    for points, mean in ((draws[~right], prior.means[0]), (draws[right], prior.means[1])):
        assert scipy.stats.kstest(((points[..., 0, 0] - mean) / 0.5).flatten(), "norm").pvalue > 0.01


@pytest.mark.parametrize("prior", [grid_mixture(2), wide_mixture(2)])
def test_densities_integrate_to_one(prior):
    """The trapezoidal rule converges exponentially for what vanishes at the ends."""
    side = torch.linspace(-6, 6, 481, dtype=torch.float64)
    points = torch.cartesian_prod(side, side)[..., None, None]
    assert float(prior.log_density(points).exp().sum() * 0.025**2) == pytest.approx(1, abs=1e-9)
    y = torch.tensor([[0.3], [-2.0]], dtype=torch.float64)
    posterior = prior.posterior(measured(random(1, 2), y, torch.full_like(y, 0.2)))
    mass = posterior.log_density(points.expand(2, -1, -1, -1, -1)).exp() * 0.025**2
    np.testing.assert_allclose(mass.sum(1), 1, atol=1e-9)
    by_mode = torch.einsum("bs,bsk->bk", mass, posterior.mode_shares(points.expand(2, -1, -1, -1, -1)))
    np.testing.assert_allclose(by_mode, posterior.mode_weights(), atol=1e-9)


@pytest.mark.parametrize(("dimension", "observations"), [(1, 1), (2, 1), (4, 3), (3, 3), (2, 4)])
def test_posterior_is_the_mixture_of_the_components_posteriors(dimension, observations):
    prior = wide_mixture(dimension)
    matrix, y = random(observations, dimension, seed=2), random(2, observations, seed=4)
    noise_std = torch.tensor([[0.2], [0.9]], dtype=torch.float64)
    posterior = prior.posterior(measured(matrix, y, noise_std))
    points = random(2, 20, dimension, 1, 1, seed=5)
    count = 5000
    draws = posterior.sample(count, PhiloxNoise(0, "test", *sample_rows(torch.arange(2), range(count))))
    assert (len(posterior), draws.shape, draws.dtype) == (2, (2, count, dimension, 1, 1), torch.float32)
    for row in range(2):
        gram = matrix @ matrix.mT * prior.std**2 + noise_std[row] ** 2 * eye(observations)
        precision = eye(dimension) / prior.std**2 + matrix.mT @ matrix / noise_std[row] ** 2
        evidence = MultivariateNormal(prior.means @ matrix.mT, gram).log_prob(y[row])
        weights = (prior.weights.log() + evidence).softmax(0)
        rhs = prior.means / prior.std**2 + y[row] @ matrix / noise_std[row] ** 2
        means = torch.linalg.solve(precision, rhs.mT).mT
        expected = MixtureSameFamily(Categorical(weights), MultivariateNormal(means, precision_matrix=precision))
        torch.testing.assert_close(posterior.mode_weights()[row], weights, atol=1e-12, rtol=0)
        log_density = expected.log_prob(points[row, ..., 0, 0])
        torch.testing.assert_close(posterior.log_density(points)[row], log_density, atol=1e-9, rtol=1e-11)
        flat = draws[row, ..., 0, 0].double()
        error = (flat.mean(0) - expected.mean) / (expected.variance / count).sqrt()
        assert error.abs().max() < 3.5
        centred = means - expected.mean
        covariance = torch.linalg.inv(precision) + centred.mT * weights @ centred
        np.testing.assert_allclose(
            np.cov(flat.T).reshape(dimension, dimension), covariance, atol=0.06 * float(covariance.diagonal().max())
        )


def test_mode_shares_are_the_priors():
    prior = grid_mixture(2)
    y = torch.zeros(2, 1, dtype=torch.float64)
    posterior = prior.posterior(measured(torch.tensor([[1.0, 0.0]]), y, y + 0.1))
    points = prior.means.float()[None, :, :, None, None].expand(2, -1, -1, -1, -1)
    shares = posterior.mode_shares(points)
    assert shares.dtype == torch.float64
    torch.testing.assert_close(shares.sum(-1), torch.ones(2, 25, dtype=torch.float64))
    assert shares.argmax(-1).tolist() == [list(range(25))] * 2
    # y = 0 leaves the middle column, i = 0.
    assert posterior.mode_weights()[:, 10:15].sum(1).min() > 1 - 1e-4


@pytest.mark.parametrize("time", [0.0, 0.1, 0.6, 0.99])
@pytest.mark.parametrize("prior", [grid_mixture(3), wide_mixture()])
def test_velocity_is_that_of_the_score(prior, time):
    """From x_t = (1-t) x + t z: E[z] = -t score and E[x] = (x_t - t E[z]) / (1-t), so v = -(x_t + t score) / (1-t)."""
    x = random(40, 3, 1, 1).requires_grad_()
    log_density = reference(prior, 1 - time, time).log_prob(x[..., 0, 0])
    (score,) = torch.autograd.grad(log_density.sum(), x)
    expected = -(x.detach() + time * score) / (1 - time)
    t = torch.full((40,), time, dtype=torch.float64)
    torch.testing.assert_close(prior.velocity()(x.detach(), t, t, None), expected, atol=1e-8, rtol=1e-8)


@pytest.mark.parametrize("time", [0.3, 0.7, 1.0])
def test_velocity_is_the_conditional_mean_by_importance_sampling(time):
    """x from the prior, z = (x_t - (1-t) x) / t, weights p(z)."""
    prior = wide_mixture(2)
    x = prior.draw(PhiloxNoise(0, "test", torch.arange(400_000)))[..., 0, 0].double()
    x_t = torch.tensor([[0.0, 0.0], [0.5, -1.0], [-1.0, 0.3]], dtype=torch.float64)
    t = torch.full((3,), time, dtype=torch.float64)
    velocity = prior.velocity()(x_t[..., None, None], t, t, None)[..., 0, 0]
    for point, actual in zip(x_t, velocity, strict=True):
        z = (point - (1 - time) * x) / time
        weights = (-0.5 * z.square().sum(1)).softmax(0)
        expected = weights @ (z - x)
        error = ((weights[:, None] * (z - x - expected)).square().sum(0)).sqrt()
        assert ((actual - expected) / error).abs().max() < 3.5


def test_velocity_is_differentiable_and_keeps_float32():
    network = wide_mixture().velocity()
    x = random(4, 3, 1, 1).requires_grad_()
    t = torch.tensor([0.0, 0.3, 0.9, 1.0], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda point: network(point, t, t, None), x)
    single = network(x.detach().float(), t.float(), t.float(), None)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), network(x.detach(), t, t, None), atol=1e-5, rtol=1e-5)
    flow = NetworkFlow(network, (3, 1, 1), None, Meter(torch.device("cpu")))
    velocity, vjp = flow.velocity_with_vjp(x.detach().float(), 0.5, torch.zeros(4, dtype=torch.int64))
    assert vjp(velocity).shape == velocity.shape


def test_velocity_takes_noise_to_the_prior():
    """Many Euler steps from N(0, I) end at draws of the mixture, in all components' proportions."""
    prior = grid_mixture(2)
    network = prior.velocity()
    x = PhiloxNoise(0, "test", torch.arange(3000)).normal((2, 1, 1), 0)
    edges = torch.linspace(1, 0, 101)
    for start, end in itertools.pairwise(edges):
        t = start.expand(len(x))
        x = x - (start - end) * network(x, t, t, None)
    counts = prior.component_shares(x).sum(0).numpy()
    assert scipy.stats.chisquare(counts, prior.weights * len(x)).pvalue > 1e-3
    assert prior.log_density(x).mean() > prior.log_density(prior.draw(PhiloxNoise(0, "x", torch.arange(3000)))).mean() - 0.1


def test_another_end_time_is_refused():
    t = torch.ones(2)
    with pytest.raises(ValueError, match="at r = t only"):
        grid_mixture(2).velocity()(torch.zeros(2, 2, 1, 1), t, 0 * t, None)


def test_grid_mixtures():
    prior = grid_mixture(5)
    rows = {tuple(round(value / 0.7) for value in row) for row in prior.means.tolist()}
    assert rows == {(i, j, i, j, i) for i in range(-2, 3) for j in range(-2, 3)}
    assert len(prior.means) == 25
    assert (grid_mixture(1).means.flatten() / 0.7).tolist() == pytest.approx([-2, -1, 0, 1, 2])
    assert float(prior.weights.sum()) == pytest.approx(1)
    assert torch.equal(prior.weights, grid_mixture(2).weights)
    assert not torch.allclose(prior.weights, grid_mixture(5, seed=1).weights)
    # Exponential before they are normalised.
    weights = torch.cat([25 * grid_mixture(2, seed=seed).weights for seed in range(40)])
    assert scipy.stats.kstest(weights, scipy.stats.beta(1, 24, scale=25).cdf).pvalue > 0.01
    assert float((prior.means.square().mean() + prior.std**2).sqrt()) == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: grid_mixture(0), "dimension must be at least 1, not 0"),
        (lambda: grid_mixture(2, spacing=0), "spacing must be positive and finite, not 0"),
        (lambda: grid_mixture(2, std=-1), "std must be positive and finite, not -1"),
        (lambda: MixturePrior(torch.ones(2), torch.zeros(3, 2), 1.0), "weights must be 3 positive numbers"),
        (lambda: MixturePrior(torch.tensor([1.0, 0]), torch.zeros(2, 2), 1.0), "weights must be 2 positive numbers"),
        (lambda: MixturePrior(torch.ones(2), torch.full((2, 2), math.nan), 1.0), "means must be finite"),
        (lambda: MixturePrior(torch.ones(2), torch.zeros(2), 1.0), "means must be finite and have a row"),
    ],
)
def test_bad_arguments(build, message):
    with pytest.raises(UserError, match=message):
        build()
