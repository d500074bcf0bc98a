"""Source reweighting against posteriors in closed form and by quadrature; its Monte-Carlo error against repetitions."""

from __future__ import annotations

import math
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from vfmbench.baselines.particles import effective_ancestors, effective_size, index_at, temperature_step
from vfmbench.baselines.pool_likelihood import MatrixLikelihood, OperatorLikelihood
from vfmbench.baselines.source_reweighting import SourceReweighting
from vfmbench.domains import IMAGES, POINTS
from vfmbench.errors import UserError
from vfmbench.measurement import Measurement
from vfmbench.options import validate
from vfmbench.randomness import PhiloxNoise, sample_rows
from vfmbench.tasks.operators import HDR, Identity

from .toys import (
    CPU,
    LINEAR,
    MEAN,
    VARIANCE,
    GaussianVelocity,
    MatrixOperator,
    MixtureVelocity,
    ToySuite,
    direct,
    gaussian_measurement,
    measure,
    toy_task,
)


class Suite(ToySuite):
    domain = POINTS

    @property
    def image_shape(self):
        return self.latent_shape


class AffineMap(nn.Module):
    """Average velocity of the one-step map z -> mean + std z, which makes N(mean, std^2) of N(0, I)."""

    def __init__(self, mean: Tensor, std: Tensor):
        super().__init__()
        self.mean, self.std = mean, std

    def forward(self, x, t, r, label):
        assert (t == 1).all()
        assert (r == 0).all()
        return x - self.mean - self.std * x


def build(network, shape, **options):
    return sampler_of(Suite(network, shape, 0), **options)


def sampler_of(suite, **options):
    return SourceReweighting(suite, SourceReweighting.Options(**options), suite.backbone(CPU))


def gaussian(**options):
    """The prior of `toys.gaussian_suite`, by its velocity or in one step."""
    one_step = options.get("map") == "one_step"
    return build(AffineMap(MEAN, VARIANCE.sqrt()) if one_step else GaussianVelocity(MEAN, VARIANCE), (1, 2, 2), **options)


def draw(sampler, measurement, samples, seed=0):
    noise = PhiloxNoise(seed, "sampling", *sample_rows(measurement.index, range(samples)))
    return sampler.sample(measurement, samples, noise)


def observation(matrix, y, noise_std) -> Measurement:
    """y [B,m] of points through one matrix [m,d]."""
    y, matrix = (torch.as_tensor(values, dtype=torch.float64) for values in (y, matrix))
    rows = torch.arange(len(y))
    operator = MatrixOperator(matrix, (matrix.shape[1], 1, 1), len(y))
    return Measurement(y, operator, torch.full((len(y), 1), noise_std, dtype=torch.float64), 0 * rows, rows, "toy")


# The right distribution.


@pytest.mark.parametrize(
    "options",
    [
        {"map": "one_step"},
        {"map": "ode", "pool": 2**14},
        {"map": "one_step", "pool": 256, "particles": 2048, "moves": 12},
        # Eight draws say nothing about the posterior: what comes out is the work of the moves.
        {"map": "one_step", "pool": 8, "particles": 512, "moves": 60},
    ],
)
def test_gaussian_prior(options):
    """The first and third pixel are seen with noise of 0.1, the others not at all."""
    measurement = gaussian_measurement()
    seen = torch.tensor([1.0, 0.0, 1.0, 0.0], dtype=torch.float64)
    variance = 1 / (1 / VARIANCE.flatten() + seen / 0.01)
    mean = variance * (MEAN.flatten() / VARIANCE.flatten() + seen * measurement.y.flatten() / 0.01)
    samples = draw(gaussian(**options), measurement, 512).images[0].flatten(1).double()
    # The error of 200 independent draws; those of the fixed seeds are worth more.
    assert ((samples.mean(0) - mean) / variance.sqrt()).abs().max() < 3 / 200**0.5
    assert (samples.var(0) / variance - 1).abs().max() < 3 * (2 / 200) ** 0.5


def component_posterior(means: Tensor, variance: float, matrix: Tensor, y: Tensor, noise_std: float) -> tuple[Tensor, Tensor]:
    """Weights [B,K] and means [B,K,d] of the components under the posterior of an equal mixture of N(m_k, variance I)."""
    covariance = variance * matrix @ matrix.mT + noise_std**2 * torch.eye(len(matrix), dtype=torch.float64)
    innovation = y[:, None] - means @ matrix.mT
    solved = torch.linalg.solve(covariance, innovation.mT).mT
    return (-0.5 * (innovation * solved).sum(-1)).softmax(1), means + variance * solved @ matrix


def check_mode_weights(sampler, means, variance, matrix, y, noise_std, samples):
    weights, centres = component_posterior(means, variance, matrix, y, noise_std)
    drawn = draw(sampler, observation(matrix, y, noise_std), samples)
    nearest = torch.cdist(drawn.images.flatten(2).double(), centres).argmin(2)
    shares = nn.functional.one_hot(nearest, len(means)).double().mean(1)
    error = (shares - weights) / (weights * (1 - weights) / drawn.effective_samples[:, None]).sqrt().clamp_min(1e-3)
    assert error.abs().max() < 4
    assert error.square().mean() < 2
    return drawn


def test_mode_weights_of_a_mixture_in_two_dimensions():
    means = torch.tensor([[0.0, 1.0], [0.15, -1.0], [1.0, 0.0]], dtype=torch.float64)
    y = torch.tensor([[0.0], [0.1], [0.3], [0.55], [0.7]], dtype=torch.float64)
    sampler = build(MixtureVelocity(means[..., None, None], 0.01), (2, 1, 1), pool=2**14)
    drawn = check_mode_weights(sampler, means, 0.01, torch.tensor([[1.0, 0.0]], dtype=torch.float64), y, 0.1, 1000)
    assert (drawn.effective_samples > 300).all()


def test_mode_weights_of_a_mixture_in_sixteen_dimensions_by_annealing():
    """Ten of sixteen coordinates are seen through a random matrix that can hardly tell the two components apart."""
    random = torch.randn(16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    basis = torch.linalg.qr(random).Q.mT
    matrix = basis[:10]
    means = torch.stack([basis[10] + 0.04 * basis[0], -basis[10]])
    y = 0.1 * torch.randn(6, 10, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    sampler = build(MixtureVelocity(means[..., None, None], 0.01), (16, 1, 1), pool=2**12, particles=1024, moves=6, ode_steps=8)
    drawn = check_mode_weights(sampler, means, 0.01, matrix, y, 0.05, 64)
    assert sampler.meter.counts["network_forwards"] > 2 * 8 * (2**12 + 6 * 1024 * 6 * 2)
    residual = observation(matrix, y, 0.05).repeat(64).normalised_residual(drawn.images.flatten(0, 1).double())
    # A x given y has 0.8 of the noise's variance, 0.01 / (0.01 + 0.05^2), and its mean is off y by a fifth of y.
    assert residual.square().mean() == pytest.approx(0.8 + 0.04 * (y / 0.05).square().mean().item(), rel=0.15)


def test_nonlinear_operator_by_quadrature():
    """y = clip(2 x, -1, 1) + n of one pixel: above 1/2 the observation says nothing but that."""
    y, noise_std = 0.9, 0.2
    grid = torch.linspace(-5, 5, 100_001, dtype=torch.float64)
    density = (-0.5 * grid.square() - 0.5 * (((2 * grid).clamp(-1, 1) - y) / noise_std).square()).exp()
    mean = (grid * density).sum() / density.sum()
    variance = ((grid - mean).square() * density).sum() / density.sum()
    one = torch.ones(1, dtype=torch.float64)
    samples = draw(
        build(AffineMap(0 * one, one), (1, 1, 1), map="one_step"), direct([[[y]]], HDR(1, (1, 1, 1)), noise_std), 4000
    )
    assert float(samples.images.mean()) == pytest.approx(float(mean), abs=4 * float(variance / 3500) ** 0.5)
    assert float(samples.images.var()) == pytest.approx(float(variance), rel=0.1)


class OfClass(nn.Module):
    """In one step, N(k, 0.1^2) for class k."""

    def forward(self, x, t, r, label):
        return 0.9 * x - label[:, None, None, None]


@pytest.mark.parametrize("options", [{"pool": 500}, {"pool": 8, "particles": 64, "moves": 10}], ids=["served", "annealed"])
def test_each_class_has_its_own_map(options):
    sampler = sampler_of(Suite(OfClass(), (1, 1, 1), 3), map="one_step", **options)
    label = torch.tensor([2, 0, 1])
    ones = torch.ones(3, 1, 1, 1, dtype=torch.float64)
    y = ones * label[:, None, None, None]
    drawn = draw(sampler, Measurement(y, Identity(3, (1, 1, 1)), ones, label, torch.arange(3), "toy"), 100)
    assert (drawn.images.flatten(1).mean(1) - label).abs().max() < 0.08
    if "particles" not in options:
        assert sampler.meter.counts["network_forwards"] == 3 * options["pool"]


# The error that is reported.


def repeated_means(pool: int) -> tuple[Tensor, Tensor]:
    """Means over S = 2000 samples for 100 pools, [100,2], and effective samples, [100].

    The prior is N(0, I) in two dimensions, the first coordinate is seen as 1 with noise of 0.2.
    """
    measurement, zero = observation([[1.0, 0.0]], [[1.0]], 0.2), torch.zeros(1, dtype=torch.float64)
    drawn = [
        draw(
            build(AffineMap(zero, zero + 1), (2, 1, 1), map="one_step", pool=pool, pool_seed=seed, particles=4),
            measurement,
            2000,
            seed,
        )
        for seed in range(100)
    ]
    means = torch.stack([samples.images.double().mean((0, 1, 3, 4)) for samples in drawn])
    return means, torch.cat([samples.effective_samples for samples in drawn])


def test_error_falls_with_the_pool_and_is_the_one_reported():
    """Weights that do not depend on a coordinate give its mean the error reported; the observed one does better."""
    seen = 1 / 1.04
    squared = []
    for pool in (200, 800):
        means, effective = repeated_means(pool)
        assert ((effective > 0) & (effective < 2000)).all()
        errors = (means - torch.tensor([seen, 0.0])).square().mean(0) / torch.tensor([0.04 / 1.04, 1.0])
        reported = float((1 / effective).mean())
        assert float(errors[1]) == pytest.approx(reported, rel=0.4)
        assert float(errors[0]) < reported
        squared.append(float(errors[1]))
    assert 1.5 < (squared[0] / squared[1]) ** 0.5 < 2.7


def test_effective_ancestors_count_families_once():
    log_weights = torch.tensor([[0.1, 0.2, 0.3, 0.4]]).log()
    for ancestor, shares in (([2, 5, 7, 9], (0.1, 0.2, 0.3, 0.4)), ([2, 2, 7, 7], (0.3, 0.7)), ([3, 3, 3, 3], (1.0,))):
        expected = 1 / sum(share**2 for share in shares)
        assert effective_ancestors(log_weights, torch.tensor([ancestor])).item() == pytest.approx(expected)


def test_temperature_step_leaves_the_effective_size():
    values = -20 * torch.rand(1000, generator=torch.Generator().manual_seed(0), dtype=torch.float64).square()
    values = torch.stack([values, 1e4 * values])
    step = temperature_step(values, torch.ones(2, dtype=torch.float64), 500)
    assert effective_size(step[:, None] * values).tolist() == pytest.approx([500, 500], rel=1e-4)
    assert step[0].item() == pytest.approx(1e4 * step[1].item(), rel=1e-5)
    assert temperature_step(values[:1], torch.tensor([1e-3], dtype=torch.float64), 500).item() == 1e-3


def test_choice_is_by_weight_and_never_of_weight_zero():
    log_weights = torch.tensor([[-math.inf, 0.0, -math.inf, math.log(3), -math.inf]], dtype=torch.float64)
    position = torch.tensor([[0.0, 0.2499, 0.2501, 1 - 2.0**-24]], dtype=torch.float64)
    assert index_at(log_weights - 1e4, position).tolist() == [[1, 1, 3, 3]]


# What a sample depends on.

OPTIONS = {"served": {"pool": 4096, "particles": 4}, "annealed": {"pool": 256, "particles": 64, "moves": 3}}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_a_measurement_alone_and_in_a_batch(options):
    matrix, y = [[1.0, 0.5]], torch.tensor([[-2.0], [0.1], [1.0], [3.0]])
    zero, std = torch.zeros(2, 1, 1, dtype=torch.float64), torch.tensor([1.0, 2.0], dtype=torch.float64)[:, None, None]

    def some(rows: list[int]) -> list:
        everything = observation(matrix, y, 0.05)
        index = torch.tensor(rows)
        operator = MatrixOperator(torch.tensor(matrix, dtype=torch.float64), (2, 1, 1), len(rows))
        chosen = Measurement(everything.y[index], operator, everything.noise_std[index], 0 * index, index, "toy")
        samples = draw(build(AffineMap(zero, std), (2, 1, 1), map="one_step", **options), chosen, 8)
        return [samples.images, samples.source, samples.effective_samples]

    together = some([0, 1, 2, 3])
    for rows in ([2], [3, 0], [1, 3, 2]):
        for part, whole in zip(some(rows), together, strict=True):
            torch.testing.assert_close(part, whole[rows], rtol=1e-6, atol=1e-6)


def test_samples_drawn_from_the_pool_do_not_depend_on_their_number():
    sampler, measurement = gaussian(map="one_step"), gaussian_measurement()
    assert torch.equal(draw(sampler, measurement, 5).images, draw(sampler, measurement, 20).images[:, :5])


def test_a_sample_is_what_the_map_makes_of_its_source():
    drawn = draw(gaussian(map="one_step", pool=64), gaussian_measurement(), 10)
    expected = MEAN + VARIANCE.sqrt() * drawn.source.double()
    assert (drawn.images - expected).abs().max() < 1e-6
    assert drawn.images.dtype == torch.float32


# The map.


def test_ode_converges_to_the_flow():
    z = torch.randn(100, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    label = torch.zeros(100, dtype=torch.int64)
    exact = MEAN + VARIANCE.sqrt() * z
    errors = [float((gaussian(ode_steps=steps).transport(z, label) - exact).abs().max()) for steps in (2, 4, 8, 16, 32)]
    assert all(error < previous / 3 for previous, error in pairwise(errors))
    assert errors[-1] < 1e-3


def test_prior_draws():
    rows = torch.arange(5000)
    noise = PhiloxNoise(0, "prior", rows)
    images = gaussian(map="one_step").sample_prior(noise)
    assert torch.allclose(images, (MEAN + VARIANCE.sqrt() * noise.normal((1, 2, 2), 0)).float(), atol=1e-6)


def test_evaluations_are_counted_when_they_happen():
    measurement = gaussian_measurement()
    for options, evaluations in (({"map": "one_step"}, 1), ({"ode_steps": 3}, 6)):
        sampler = gaussian(pool=1000, particles=4, **options)
        for _ in range(2):
            draw(sampler, measurement, 10)
            assert sampler.meter.counts["network_forwards"] == 1000 * evaluations
    annealed = gaussian(pool=1000, particles=100, moves=2, map="one_step")
    draw(annealed, measurement, 10)
    moved = annealed.meter.counts["network_forwards"] - 1000 - 2 * 10
    assert moved > 0
    assert moved % (2 * 100) == 0


# Likelihoods.


@pytest.mark.parametrize("problem", LINEAR)
def test_both_likelihoods_are_the_measurements(problem):
    measurement = measure(problem)
    pools = torch.rand(2, 5, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    which = torch.tensor([1, 0, 0, 1])
    expected = measurement.repeat(5).log_likelihood(pools[which].flatten(0, 1)).unflatten(0, (4, 5))
    for likelihood in (MatrixLikelihood(measurement), OperatorLikelihood(measurement)):
        found = torch.empty(4, 5, dtype=torch.float64)
        for rows, values in likelihood.of_pool(pools, which):
            found[rows] = values
        assert (found - found[:, :1] - expected + expected[:, :1]).abs().max() < 1e-9
        rows = torch.tensor([3, 1])
        assert (likelihood.of_particles(pools[which[rows]], rows) - found[rows]).abs().max() < 1e-9


class Broken(AffineMap):
    """Not a number for the share of source noise whose first entry is above a limit."""

    def __init__(self, limit: float):
        super().__init__(torch.zeros(1), torch.ones(1))
        self.limit = limit

    def forward(self, x, t, r, label):
        broken = x[:, :1, :1, :1] > self.limit
        return torch.where(broken, torch.nan, super().forward(x, t, r, label))


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("y", [0.0, 1e4])
def test_what_is_not_a_number_has_no_weight(options, y):
    """Nor does a likelihood that underflows everywhere do harm."""
    sampler = build(Broken(0.0), (2, 1, 1), map="one_step", **options)
    drawn = draw(sampler, observation([[0.0, 1.0]], [[y]], 0.1), 50)
    assert drawn.images.isfinite().all()
    assert (drawn.source[:, :, 0] <= 0).all()
    assert 0 < drawn.effective_samples.item() <= 50


def test_without_any_likelihood_nothing_is_pretended():
    sampler = build(Broken(-math.inf), (2, 1, 1), map="one_step", pool=100)
    drawn = draw(sampler, observation([[0.0, 1.0]], [[0.0]], 0.1), 50)
    assert drawn.images.isnan().all()
    assert drawn.effective_samples.tolist() == [0]


# Support and options.


def test_support():
    points, images = SimpleNamespace(domain=POINTS), SimpleNamespace(domain=IMAGES)
    assert SourceReweighting.supports(toy_task("hdr"), points) == (True, "")
    supported, note = SourceReweighting.supports(toy_task("denoise"), images)
    assert supported
    assert "method.pool evaluations" in note
    supported, reason = SourceReweighting.supports(toy_task("denoise", noise="poisson"), points)
    assert not supported
    assert "poisson noise" in reason


@pytest.mark.parametrize("options", [{"pool": 0}, {"particles": 1}, {"moves": -1}, {"map": "euler"}, {"ode_steps": 0}])
def test_bad_options_name_the_field(options):
    with pytest.raises(UserError, match=f"method.{next(iter(options))}: "):
        validate(SourceReweighting.Options, options, "method.")


def test_guidance_takes_both_branches():
    sampler = sampler_of(Suite(OfClass(), (1, 1, 1), 3), pool=20, particles=4, ode_steps=1, guidance_scale=2.0)
    draw(sampler, direct([[[0.0]]], Identity(1, (1, 1, 1)), 1.0), 2)
    # Two evaluations a step, each of the class and of the null class.
    assert sampler.meter.counts["network_forwards"] == 20 * 4
