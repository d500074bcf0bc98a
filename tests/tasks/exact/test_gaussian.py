"""The Gaussian prior: densities, closed-form posteriors by dense linear algebra, and the flow map by integration."""

import numpy as np
import pytest
import scipy.integrate
import scipy.linalg
import scipy.stats
import torch
from torch.distributions import MultivariateNormal

from vfmbench.errors import UserError
from vfmbench.measurement import Measurement
from vfmbench.metering import Meter
from vfmbench.models.flow import NetworkFlow
from vfmbench.randomness import PhiloxNoise, sample_rows
from vfmbench.tasks.exact import GaussianPrior, random_gaussian
from vfmbench.tasks.operators import MatrixOperator


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def eye(size: int) -> torch.Tensor:
    return torch.eye(size, dtype=torch.float64)


def measured(matrix: torch.Tensor, y: torch.Tensor, noise_std: float | torch.Tensor = 0.2) -> Measurement:
    rows = torch.arange(len(y))
    noise = torch.full((len(y), 1), noise_std, dtype=y.dtype) if isinstance(noise_std, float) else noise_std
    return Measurement(y, MatrixOperator(len(y), matrix), noise, rows, rows, "linear_observation")


def times(value: float, rows: int) -> torch.Tensor:
    return torch.full((rows,), value, dtype=torch.float64)


def test_prior_density_and_draws():
    prior = random_gaussian(4, condition=50, seed=3)
    reference = MultivariateNormal(prior.mean, prior.covariance)
    points = 3 * random(100, 4, 1, 1)
    torch.testing.assert_close(prior.log_density(points), reference.log_prob(points[..., 0, 0]), atol=1e-9, rtol=0)
    draws = prior.draw(PhiloxNoise(0, "test", torch.arange(20_000)))
    assert (draws.shape, draws.dtype) == ((20_000, 4, 1, 1), torch.float32)
    white = np.linalg.solve(np.linalg.cholesky(prior.covariance), (draws[..., 0, 0].double() - prior.mean).numpy().T)
    assert scipy.stats.kstest(white.flatten(), "norm").pvalue > 0.01
    np.testing.assert_allclose(np.cov(white), np.eye(4), atol=0.04)


@pytest.mark.parametrize(("dimension", "observations"), [(1, 1), (2, 1), (5, 3), (4, 4), (3, 5)])
def test_posterior_is_the_conditional_gaussian(dimension, observations):
    prior = random_gaussian(dimension, condition=1e3, seed=1)
    matrix, y = random(observations, dimension, seed=2), random(3, observations, seed=4)
    # A row may have noise of its own size.
    noise_std = torch.tensor([[0.2], [1.0], [0.01]], dtype=torch.float64)
    posterior = prior.posterior(measured(matrix, y, noise_std))
    points = random(3, 20, dimension, 1, 1, seed=5)
    count = 4000
    draws = posterior.sample(count, PhiloxNoise(0, "test", *sample_rows(torch.arange(3), range(count))))
    assert (len(posterior), draws.shape, draws.dtype) == (3, (3, count, dimension, 1, 1), torch.float32)
    for row in range(3):
        innovation = matrix @ prior.covariance @ matrix.mT + noise_std[row] ** 2 * eye(observations)
        gain = torch.linalg.solve(innovation, matrix @ prior.covariance).mT
        mean = prior.mean + gain @ (y[row] - matrix @ prior.mean)
        precision = torch.linalg.inv(prior.covariance) + matrix.mT @ matrix / noise_std[row] ** 2
        reference = MultivariateNormal(mean, precision_matrix=precision)
        expected = reference.log_prob(points[row, ..., 0, 0])
        torch.testing.assert_close(posterior.log_density(points)[row], expected, atol=1e-9, rtol=1e-11)
        white = (draws[row, ..., 0, 0].double() - mean) @ torch.linalg.cholesky(precision)
        for coordinate in white.T:
            assert scipy.stats.kstest(coordinate, "norm").pvalue > 1e-3
        np.testing.assert_allclose(np.cov(white.T).reshape(dimension, dimension), np.eye(dimension), atol=0.1)
    assert posterior.mode_weights().tolist() == [[1.0]] * 3
    assert torch.equal(posterior.mode_shares(points), torch.ones(3, 20, 1, dtype=torch.float64))


def test_posterior_stays_exact_with_hardly_any_noise():
    prior = random_gaussian(3, condition=1e6)
    x = prior.draw(PhiloxNoise(0, "test", torch.arange(1))).double()
    matrix = random(2, 3)
    posterior = prior.posterior(measured(matrix, (matrix @ x[0, :, 0, 0])[None], 1e-5))
    drawn = posterior.sample(500, PhiloxNoise(1, "test", *sample_rows(torch.arange(1), range(500))))[0, ..., 0, 0].double()
    residual = (drawn - x[0, :, 0, 0]) @ matrix.mT / 1e-5
    assert float(residual.std()) == pytest.approx(1, abs=0.1)
    assert posterior.log_density(drawn[None, ..., None, None]).isfinite().all()


@pytest.mark.parametrize("time", [0.0, 0.2, 0.7, 0.999])
def test_instantaneous_velocity_is_that_of_the_score(time):
    """From x_t = (1-t) x + t z: E[z] = -t score and E[x] = (x_t - t E[z]) / (1-t), so v = -(x_t + t score) / (1-t)."""
    prior = random_gaussian(5, seed=2)
    x = random(30, 5, 1, 1).requires_grad_()
    marginal = MultivariateNormal((1 - time) * prior.mean, (1 - time) ** 2 * prior.covariance + time**2 * eye(5))
    (score,) = torch.autograd.grad(marginal.log_prob(x[..., 0, 0]).sum(), x)
    expected = -(x.detach() + time * score) / (1 - time)
    t = times(time, 30)
    velocity = prior.velocity()(x.detach(), t, t, None)
    torch.testing.assert_close(velocity, expected, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize(("start", "end"), [(1.0, 0.0), (0.8, 0.3), (1.0, 0.99), (0.2, 0.9)])
def test_flow_map_is_the_integral_of_the_velocity(start, end):
    prior = random_gaussian(3, condition=1e3, seed=4)
    network = prior.velocity()
    x = random(6, 3, 1, 1)

    def velocity(time: float, flat: np.ndarray) -> np.ndarray:
        t = times(time, 6)
        return network(torch.from_numpy(flat).reshape(x.shape), t, t, None).flatten().numpy()

    solution = scipy.integrate.solve_ivp(velocity, (start, end), x.flatten().numpy(), "DOP853", rtol=1e-11, atol=1e-12)
    moved = x - (start - end) * network(x, times(start, 6), times(end, 6), None)
    np.testing.assert_allclose(moved.flatten(), solution.y[:, -1], atol=1e-8)


def test_one_step_is_the_affine_transport():
    prior = random_gaussian(6, condition=1e4, seed=5)
    z = random(50, 6, 1, 1)
    moved = (z - prior.velocity()(z, times(1, 50), times(0, 50), None))[..., 0, 0]
    root = torch.from_numpy(scipy.linalg.sqrtm(prior.covariance.numpy()).real)
    torch.testing.assert_close(moved, prior.mean + z[..., 0, 0] @ root, atol=1e-9, rtol=0)


def test_average_velocity_has_no_cancellation_near_r_equals_t():
    network = random_gaussian(4, seed=6).velocity()
    x = random(20, 4, 1, 1)
    for time in (1.0, 0.4):
        t = times(time, 20)
        instantaneous = network(x, t, t, None)
        for step in (1e-3, 1e-6, 1e-9, 1e-12):
            assert (network(x, t, t - step, None) - instantaneous).abs().max() < 100 * step
    t = torch.rand(20, generator=torch.Generator().manual_seed(0))
    single = network(x.float(), t, t, None)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), network(x, t.double(), t.double(), None), atol=1e-5, rtol=1e-5)


def test_flow_map_composes():
    network = random_gaussian(4, seed=7).velocity()
    x, t = random(20, 4, 1, 1), torch.rand(3, 20, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    s = t.sort(0, descending=True).values[..., None, None, None]

    def move(point: torch.Tensor, start: torch.Tensor, end: torch.Tensor) -> torch.Tensor:
        return point - (start - end) * network(point, start.flatten(), end.flatten(), None)

    torch.testing.assert_close(move(move(x, s[0], s[1]), s[1], s[2]), move(x, s[0], s[2]), atol=1e-10, rtol=0)


def test_velocity_serves_as_a_flow_model():
    prior = random_gaussian(3)
    flow = NetworkFlow(prior.velocity(), (3, 1, 1), None, Meter(torch.device("cpu")))
    x = random(5, 3, 1, 1).float()
    label = torch.zeros(5, dtype=torch.int64)
    velocity, vjp = flow.velocity_with_vjp(x, 0.5, label)
    for result in (velocity, vjp(torch.ones_like(x)), flow.average_velocity(x, 1.0, 0.0, label)):
        assert (result.shape, result.dtype) == (x.shape, torch.float32)


def test_random_gaussians_have_the_stated_spectrum():
    variances = torch.linalg.eigvalsh(random_gaussian(5, condition=81, seed=1).covariance)
    torch.testing.assert_close(variances, torch.tensor([1, 3, 9, 27, 81], dtype=torch.float64) / 81, atol=1e-12, rtol=0)
    assert random_gaussian(1).covariance.tolist() == [[1]]
    first, again, other = (random_gaussian(3, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first.covariance, again.covariance)
    assert torch.equal(first.mean, again.mean)
    assert not torch.allclose(first.covariance, other.covariance)
    assert not torch.allclose(first.mean, other.mean)


@pytest.mark.parametrize(
    ("mean", "covariance", "message"),
    [
        (torch.zeros(2), torch.ones(2, 2), r"singular covariance: covariance must be positive definite, but its eigenvalues"),
        (torch.zeros(2), torch.diag(torch.tensor([1.0, -1.0])), "singular covariance: covariance must be positive definite"),
        (torch.zeros(2), torch.zeros(2, 2), "singular covariance"),
        (torch.zeros(2), torch.tensor([[1.0, 0.5], [0.0, 1.0]]), "covariance must be symmetric"),
        (torch.zeros(2), torch.eye(3), r"covariance must be a finite matrix of shape \[2, 2\]"),
        (torch.zeros(2), torch.eye(2) * torch.nan, "covariance must be a finite matrix"),
        (torch.zeros(0), torch.zeros(0, 0), "mean must be a vector"),
        (torch.zeros(2, 1), torch.eye(2), "mean must be a vector"),
    ],
)
def test_bad_gaussians(mean, covariance, message):
    with pytest.raises(UserError, match=message):
        GaussianPrior(mean, covariance)


def test_bad_arguments():
    with pytest.raises(UserError, match="dimension must be at least 1, not 0"):
        random_gaussian(0)
    with pytest.raises(UserError, match=r"condition must be finite and at least 1, not 0\.5"):
        random_gaussian(2, condition=0.5)
    prior = random_gaussian(2)
    with pytest.raises(UserError, match="linear observations of points in 2 dimensions"):
        prior.posterior(measured(torch.ones(1, 3), torch.zeros(1, 1)))
    with pytest.raises(ValueError, match="of equal size in all entries of a row"):
        prior.posterior(measured(torch.eye(2), torch.zeros(1, 2), torch.tensor([[0.1, 0.2]])))
    with pytest.raises(ValueError, match=r"points must have shape \[\.\.\., 2, 1, 1\]"):
        prior.log_density(torch.zeros(4, 3, 1, 1))
