"""The checkerboard: support, densities by quadrature, posterior draws against rejection sampling."""

import math

import numpy as np
import pytest
import scipy.stats
import torch

from vfmbench.errors import UserError
from vfmbench.measurement import Measurement
from vfmbench.randomness import PhiloxNoise, sample_rows
from vfmbench.tasks.exact import CheckerboardPrior, in_support, mode_index
from vfmbench.tasks.operators import Identity, MatrixOperator

CELLS = [(0, 0), (0, 2), (1, 1), (1, 3), (2, 0), (2, 2), (3, 1), (3, 3)]


def measured(*y: float, noise_std: float = 0.1) -> Measurement:
    rows = torch.zeros(len(y), dtype=torch.int64)
    operator = MatrixOperator(len(y), torch.tensor([[1.0, 0.0]]))
    return Measurement(torch.tensor(y)[:, None], operator, torch.full((len(y), 1), noise_std), rows, rows, "first_coordinate")


def samples(y: list[float], count: int, noise_std: float = 0.1, seed: int = 0) -> torch.Tensor:
    noise = PhiloxNoise(seed, "test", *sample_rows(torch.arange(len(y)), range(count)))
    return CheckerboardPrior().posterior(measured(*y, noise_std=noise_std)).sample(count, noise)


def grid(per_cell: int) -> torch.Tensor:
    """Midpoints of a grid on [-3, 3]^2, [N,2,1,1] float64."""
    side = (torch.arange(6 * per_cell, dtype=torch.float64) + 0.5) / per_cell - 3
    return torch.cartesian_prod(side, side)[..., None, None]


def test_modes_are_the_cells_with_an_even_sum():
    points = grid(8)
    expected = []
    for first, second in points[..., 0, 0].tolist():
        cell = (math.floor(first + 2), math.floor(second + 2))
        expected.append(CELLS.index(cell) if cell in CELLS else -1)
    assert mode_index(points).tolist() == expected
    assert torch.equal(in_support(points), mode_index(points) >= 0)


def test_cells_are_half_open():
    def mode(first: float, second: float) -> int:
        return int(mode_index(torch.tensor([first, second])[:, None, None]))

    below = float(np.nextafter(np.float32(0), np.float32(-1)))
    assert (mode(-2, -2), mode(-1, -1), mode(0, 0), mode(0, -2), mode(1, 1)) == (0, 2, 5, 4, 7)
    assert (mode(below, below), mode(0, below), mode(below, 0)) == (2, -1, -1)
    assert (mode(2, 1.5), mode(2, 2), mode(-3, -2), mode(1e30, 0), mode(math.nan, 0), mode(-math.inf, 0)) == (-1,) * 6


def test_shapes_of_points():
    points = torch.zeros(3, 4, 2, 1, 1)
    assert mode_index(points).shape == in_support(points).shape == CheckerboardPrior().log_density(points).shape == (3, 4)
    with pytest.raises(ValueError, match=r"points must have shape \[\.\.\., 2, 1, 1\]"):
        mode_index(torch.zeros(3, 2))


def test_prior_draws_are_uniform_on_the_cells():
    draws = CheckerboardPrior().draw(PhiloxNoise(0, "test", torch.arange(16_000)))
    assert (draws.shape, draws.dtype) == ((16_000, 2, 1, 1), torch.float32)
    assert in_support(draws).all()
    assert scipy.stats.chisquare(mode_index(draws).bincount(minlength=8)).pvalue > 0.01
    for coordinate in draws[..., 0, 0].T:
        assert scipy.stats.kstest(coordinate, scipy.stats.uniform(-2, 4).cdf).pvalue > 0.01
        # Within the cells, where the other coordinate is spread as well.
        assert scipy.stats.kstest(coordinate % 1, "uniform").pvalue > 0.01
    assert abs(np.corrcoef(draws[:, 0, 0, 0] % 1, draws[:, 1, 0, 0] % 1)[0, 1]) < 0.03


def test_prior_density_is_one_over_the_area():
    points = grid(4)
    density = CheckerboardPrior().log_density(points).exp()
    assert float(density.sum() / 16) == pytest.approx(1, abs=1e-12)
    assert density.unique().tolist() == [0, pytest.approx(1 / 8)]


def gauss_legendre(per_cell: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Points [N,2,1,1] and weights [N] that integrate over [-3, 3]^2 what is smooth within each unit cell."""
    axes = []
    for count in per_cell:
        node, weight = (torch.from_numpy(array) for array in np.polynomial.legendre.leggauss(count))
        axes.append(((torch.arange(-3, 3)[:, None] + (node + 1) / 2).flatten(), weight.repeat(6) / 2))
    points, weights = (torch.cartesian_prod(*pair) for pair in zip(*axes, strict=True))
    return points[..., None, None], weights.prod(1)


@pytest.mark.parametrize("noise_std", [0.05, 0.1, 0.7, 30.0])
def test_posterior_density_integrates_to_one_and_to_the_mode_weights(noise_std):
    y = [-1.5, -0.98, 0.3, 2.0, 2.4]
    posterior = CheckerboardPrior().posterior(measured(*y, noise_std=noise_std))
    points, weights = gauss_legendre((100, 2))
    points = points.expand(len(y), -1, -1, -1, -1)
    mass = posterior.log_density(points).exp() * weights
    np.testing.assert_allclose(mass.sum(1), 1, atol=1e-10, rtol=0)
    by_mode = torch.einsum("bs,bsk->bk", mass, posterior.mode_shares(points))
    np.testing.assert_allclose(by_mode, posterior.mode_weights(), atol=1e-10, rtol=0)


def test_posterior_is_prior_times_likelihood():
    measurement = measured(-1.2, 0.0, 2.05, 50.0)
    posterior = CheckerboardPrior().posterior(measurement)
    points = CheckerboardPrior().draw(PhiloxNoise(0, "test", torch.arange(4 * 50))).reshape(4, 50, 2, 1, 1)
    first, y = points[..., 0, 0, 0].double(), measurement.y.double()
    likelihood = torch.distributions.Normal(y, torch.tensor(0.1).double()).log_prob(first)
    constant = posterior.log_density(points) - likelihood
    np.testing.assert_allclose(constant, constant[:, :1].expand_as(constant), atol=1e-9, rtol=0)
    outside = torch.tensor([[-0.5, 0.5], [2.5, 2.5], [math.nan, 0]])[..., None, None].expand(4, 3, 2, 1, 1)
    assert (posterior.log_density(outside) == -math.inf).all()
    assert (posterior.mode_shares(outside) == 0).all()
    assert torch.equal(posterior.mode_shares(points).argmax(-1), mode_index(points))
    assert (posterior.mode_shares(points).sum(-1) == 1).all()


@pytest.mark.parametrize(("y", "noise_std"), [(-1.02, 0.1), (0.5, 0.1), (2.1, 0.1), (-0.9, 0.6)])
def test_posterior_draws_are_those_of_rejection_sampling(y, noise_std):
    """Accepts uniform points of the square where they are filled and with the likelihood's probability."""
    generator = np.random.default_rng(0)
    proposals = generator.uniform(-2, 2, (2_000_000, 2))
    likelihood = np.exp(-0.5 * ((proposals[:, 0] - y) / noise_std) ** 2)
    filled = np.floor(proposals + 2).sum(1) % 2 == 0
    accepted = proposals[filled & (generator.uniform(size=len(proposals)) < likelihood)][:4000]
    assert len(accepted) == 4000
    drawn = samples([y], 4000, noise_std)[0, ..., 0, 0].double()
    for coordinate in range(2):
        assert scipy.stats.ks_2samp(accepted[:, coordinate], drawn[:, coordinate]).pvalue > 0.01
    modes = [mode_index(torch.as_tensor(points)[..., None, None]).bincount(minlength=8).numpy() for points in (accepted, drawn)]
    present = np.sum(modes, axis=0) > 0
    assert scipy.stats.chi2_contingency(np.array(modes)[:, present]).pvalue > 0.01


@pytest.mark.parametrize("y", [-1.5, 1.98, 2.3, 3.0, -2.6])
def test_first_coordinate_is_a_truncated_gaussian(y):
    first = samples([y], 4000)[0, :, 0, 0, 0]
    ends = (np.array([-2, 2]) - y) / 0.1
    assert scipy.stats.kstest(first, scipy.stats.truncnorm(*ends, loc=y, scale=0.1).cdf).pvalue > 0.01


@pytest.mark.parametrize("y", [50.0, -50.0])
def test_far_observations_give_an_exponential_at_the_border(y):
    drawn = samples([y], 4000)[0]
    assert in_support(drawn).all()
    # 480 standard deviations away the Gaussian falls off like exp(-480 distance / 0.1), but for 1e-5 of the distance.
    distance = 2 - drawn[:, 0, 0, 0].double() * math.copysign(1, y)
    assert scipy.stats.kstest(distance, scipy.stats.expon(scale=0.01 / 48).cdf).pvalue > 0.01
    assert scipy.stats.kstest(drawn[:, 1, 0, 0] % 1, "uniform").pvalue > 0.01
    posterior = CheckerboardPrior().posterior(measured(y))
    assert posterior.log_density(drawn[None]).isfinite().all()
    assert posterior.mode_weights().isfinite().all()


@pytest.mark.parametrize("noise_std", [1e-4, 0.1, 1e4])
def test_draws_stay_in_their_cells_up_to_the_last_bit(noise_std):
    drawn = samples([-1.0, 0.0, 1.0, -2.0, 2.0, 1 - 2e-4], 3000, noise_std)
    assert in_support(drawn).all()
    assert drawn.isfinite().all()


def test_a_row_does_not_depend_on_the_others():
    y = [-1.2, 0.4, 1.9]
    whole = samples(y, 10)
    posterior = CheckerboardPrior().posterior(measured(y[2]))
    noise = PhiloxNoise(0, "test", *sample_rows(torch.tensor([2]), range(10)))
    assert torch.equal(posterior.sample(10, noise)[0], whole[2])


def test_other_observations_are_refused():
    measurement = measured(0.0, 1.0)
    rows = measurement.index
    second = MatrixOperator(2, torch.tensor([[0.0, 1.0]]))
    with pytest.raises(UserError, match="observed first coordinate only; use the task first_coordinate"):
        CheckerboardPrior().posterior(Measurement(measurement.y, second, measurement.noise_std, rows, rows, "other"))
    for operator in (Identity(2, (2, 1, 1)), MatrixOperator(2, torch.ones(1, 3))):
        with pytest.raises(UserError, match="linear observations of points in 2 dimensions"):
            CheckerboardPrior().posterior(Measurement(measurement.y, operator, measurement.noise_std, rows, rows, "other"))
    with pytest.raises(ValueError, match="positive noise"):
        CheckerboardPrior().posterior(measured(0.0, noise_std=0.0))
