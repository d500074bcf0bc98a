"""Closed forms: exact guidance, step lengths, identities between solvers, and where solvers end on known priors."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from vfmbench.baselines.flowchef import FlowChef
from vfmbench.baselines.flowdps import FlowDPS
from vfmbench.baselines.guidance import GuidanceSampler
from vfmbench.baselines.latent_daps import LatentDAPS
from vfmbench.baselines.latent_dps import LatentDPS
from vfmbench.baselines.mpgd import MPGD
from vfmbench.baselines.psld import PSLD
from vfmbench.baselines.unguided import Unguided
from vfmbench.randomness import PhiloxNoise, sample_rows
from vfmbench.tasks.operators import Identity

from .checks import (
    TIMES,
    advance,
    build,
    check_exact_guidance,
    check_gradient_directions,
    check_step_length,
    daps_moments,
    largest_difference,
)
from .toys import (
    MEAN,
    VARIANCE,
    FastNoise,
    Float64Noise,
    GaussianVelocity,
    ImpulseNoise,
    MatrixOperator,
    MixtureVelocity,
    ToySuite,
    autoencoder,
    direct,
    gaussian_measurement,
    gaussian_suite,
    measure,
    moments,
    random_suite,
)

OBSERVED = torch.tensor([[[True, False], [True, False]]])


# The loop, its clock and its signs.


def test_exact_guidance_ends_on_the_posterior():
    check_exact_guidance(GuidanceSampler)


@pytest.mark.parametrize(
    ("steps", "ratios"), [(250, (0.98822, 0.98977, 0.98822, 0.98142)), (50, (0.94244, 0.94988, 0.94244, 0.91044))]
)
def test_unguided_euler_has_the_closed_form_variance(steps, ratios):
    noise = ImpulseNoise(1)
    solver = build(Unguided, gaussian_suite(), {"steps": steps})
    mean, variance = moments(solver.sample(gaussian_measurement(), noise.rows, noise).images[0])
    assert (mean - MEAN[0]).abs().max() < 1e-12
    assert (variance / VARIANCE[0]).flatten().tolist() == pytest.approx(ratios, abs=1e-4)


# What one step does.


@pytest.mark.parametrize("codec", ["identity", "autoencoder"])
@pytest.mark.parametrize(
    ("solver_class", "options", "length"),
    [
        (LatentDPS, {"step_size": 0.3}, lambda t_next: 0.3),
        (FlowChef, {"step_size": 0.3}, lambda t_next: 0.3),
        (FlowChef, {"step_size": 0.3, "guide_last": False}, lambda t_next: 0.3 if t_next > 0 else 0.0),
        (MPGD, {"step_size": 0.3}, lambda t_next: 0.3),
        (MPGD, {"step_size": 0.3, "scaling": "clean"}, lambda t_next: 0.3 * (1 - t_next)),
        (PSLD, {"step_size": 0.3, "rule": "unit"}, lambda t_next: 0.3),
    ],
)
def test_a_correction_has_the_length_of_its_rule(solver_class, options, length, codec):
    check_step_length(solver_class, options, length, codec)


@pytest.mark.parametrize(
    ("solver_class", "rule"), [(LatentDPS, "unit"), (MPGD, "unit"), (FlowChef, "unit"), (FlowChef, "sign")]
)
def test_a_unit_step_does_not_depend_on_the_scale_of_the_measurement(solver_class, rule):
    """Each row of A and y times a constant of its own; powers of two leave every bit."""
    image, y = torch.randn(2, 16, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    suite = ToySuite(GaussianVelocity(torch.zeros(1), torch.ones(1)), (1, 4, 4), 0)
    solver = build(solver_class, suite, {"rule": rule})
    matrix = image.outer(image)[:5] + torch.eye(16, dtype=torch.float64)[:5]

    def states(factor):
        measurement = direct(factor * y[:5], MatrixOperator(factor * matrix, (1, 4, 4)))
        return advance(solver, measurement, Float64Noise(measurement.index))

    assert largest_difference(states(1e-3), states(1.0)) < 1e-11
    assert largest_difference(states(1e3), states(1.0)) < 1e-11
    assert largest_difference(states(2.0**10), states(1.0)) == 0


@pytest.mark.parametrize(("t", "cosine"), [(0.95, 0.6425), (0.8, 0.6633), (0.5, 0.8014), (0.2, 0.9660), (0.05, 0.9998)])
@pytest.mark.parametrize(
    ("solver_class", "options", "through_network"),
    [
        (LatentDPS, {}, True),
        (PSLD, {}, True),
        (PSLD, {"gamma": 0.0}, True),
        (MPGD, {}, False),
        (FlowChef, {}, False),
        (FlowDPS, {}, False),
        (LatentDAPS, {}, False),
    ],
)
def test_only_dps_and_psld_pass_the_gradient_through_the_network(solver_class, options, through_network, t, cosine):
    check_gradient_directions(solver_class, options, t, cosine if through_network else 1.0)


def test_flowdps_inner_steps_move_the_residual_by_their_length():
    """With an orthonormal A the gradient of |r| has length 1, so |r| -> ||r| - s|; at t = 1 the blend is all theta."""
    image, away = torch.tensor([[[[0.3, -0.2], [0.1, 0.7]]], [[[0.6, 0.0], [0.0, 0.8]]]], dtype=torch.float64)
    measurement = direct((image + 1.22292 * away).tolist(), Identity(1, (1, 2, 2)))
    # The velocity of a prior that is the image alone.
    suite = ToySuite(GaussianVelocity(image, torch.zeros(1)), (1, 2, 2), 0)
    for inner_steps, expected in ((1, 0.52292), (2, 0.17708), (3, 0.52292)):
        solver = build(FlowDPS, suite, {"step_size": 0.7, "inner_steps": inner_steps})
        clean = advance(solver, measurement, Float64Noise(measurement.index))[0][1]
        assert float(measurement.residual(clean).norm()) == pytest.approx(expected, abs=1e-9)


def test_flowdps_fresh_noise_enters_with_its_share():
    """x' is linear in the fresh noise, with factor t' sqrt(1 - t'); the kept noise has the factor t' sqrt(t')."""
    suite, measurement = random_suite(), measure("super_resolution")
    x, fresh = (Float64Noise(measurement.index).normal((1, 8, 8), draw) for draw in range(2))
    still, mixed, pure = (
        build(FlowDPS, suite, {"stochastic": stochastic}).step(x, 0.6, 0.5, measurement, lambda draw=draw: draw).state
        for stochastic, draw in ((False, fresh), (True, fresh), (True, 0 * fresh))
    )
    assert ((mixed - pure) - 0.5 * 0.5**0.5 * fresh).abs().max() < 1e-12
    noise = build(Unguided, suite, {}).estimate(x, 0.6, measurement.label).noise
    assert ((still - pure) - 0.5 * (1 - 0.5**0.5) * noise).abs().max() < 1e-12


# Solvers that are one another.


class DetachedDPS(LatentDPS):
    """Latent DPS with the network's Jacobian taken as the identity."""

    def estimate_with_vjp(self, x, t, label):
        return self.estimate(x, t, label), lambda cotangent: cotangent


@pytest.mark.parametrize("codec", ["identity", "autoencoder"])
@pytest.mark.parametrize("problem", ["super_resolution", "inpaint_box", "motion_deblur", "hdr"])
def test_flowchef_is_mpgd_is_dps_without_the_network(problem, codec):
    suite, measurement = random_suite(codec), measure(problem)
    noise = Float64Noise(measurement.index)
    flowchef, mpgd, dps = (
        [(state,) for state, _ in advance(build(solver_class, suite, {"step_size": 0.7}), measurement, noise)]
        for solver_class in (FlowChef, MPGD, DetachedDPS)
    )
    assert largest_difference(flowchef, mpgd) < 1e-10
    assert largest_difference(flowchef, dps) < 1e-10
    true_dps = [(state,) for state, _ in advance(build(LatentDPS, suite, {"step_size": 0.7}), measurement, noise)]
    assert largest_difference(flowchef, true_dps) > 1e-2


def test_mpgd_scalings_differ_by_a_factor_of_the_step():
    suite, measurement = random_suite("autoencoder"), measure("super_resolution")
    noise = Float64Noise(measurement.index)
    for t, t_next in TIMES:
        on_state = advance(build(MPGD, suite, {"step_size": 0.4}), measurement, noise, [(t, t_next)])
        on_clean = build(MPGD, suite, {"step_size": 0.4 / (1 - t_next), "scaling": "clean"})
        assert largest_difference(on_state, advance(on_clean, measurement, noise, [(t, t_next)])) < 1e-12


@pytest.mark.parametrize("codec", ["identity", "autoencoder"])
def test_psld_without_gluing_is_dps_on_the_norm(codec):
    suite, measurement = random_suite(codec), measure("gaussian_deblur")
    noise = Float64Noise(measurement.index)
    psld = build(PSLD, suite, {"omega": 0.6, "gamma": 0.0})
    dps = build(LatentDPS, suite, {"rule": "residual", "step_size": 0.6})
    assert largest_difference(advance(psld, measurement, noise), advance(dps, measurement, noise)) < 1e-10


@pytest.mark.parametrize("back_projection", ["auto", "adjoint", "pinv", "to_image"])
@pytest.mark.parametrize("problem", ["inpaint_box", "inpaint_random", "denoise"])
def test_psld_on_images_is_dps_with_both_weights(problem, back_projection):
    """For images as latents and A A^T = I the gluing error is the residual itself."""
    suite, measurement = random_suite(), measure(problem)
    noise = Float64Noise(measurement.index)
    psld = build(PSLD, suite, {"omega": 0.6, "gamma": 0.3, "back_projection": back_projection})
    dps = build(LatentDPS, suite, {"rule": "residual", "step_size": 0.9})
    assert largest_difference(advance(psld, measurement, noise), advance(dps, measurement, noise)) < 1e-10


def test_flowdps_with_its_blend_undone_is_flowchef():
    """One inner step of length 1 / ((1 - t') t), where the gradient of |r| has length 1."""
    suite, measurement = random_suite(), measure("inpaint_box")
    x = Float64Noise(measurement.index).normal((1, 8, 8), 0)
    for t, t_next in TIMES:
        flowdps = build(FlowDPS, suite, {"inner_steps": 1, "step_size": 1 / ((1 - t_next) * t)})
        flowchef = build(FlowChef, suite, {})
        states = (solver.step(x, t, t_next, measurement, None).state for solver in (flowdps, flowchef))
        assert next(states) == pytest.approx(next(states), abs=1e-10)


# Where whole trajectories end on the Gaussian toy: what is not observed stays as it is, whatever is observed.


@pytest.mark.parametrize(
    ("solver_class", "options"),
    [(LatentDPS, {}), (MPGD, {}), (MPGD, {"scaling": "clean"}), (FlowChef, {}), (PSLD, {}), (FlowDPS, {"step_size": 0.1})],
)
def test_unobserved_independent_pixels_stay_unguided(solver_class, options):
    suite, measurement = gaussian_suite(), gaussian_measurement()
    solver = build(solver_class, suite, {"steps": 250, **options})
    samples = solver.sample(measurement, 50, FastNoise(50)).images[0]
    free = suite.ode(FastNoise(50).normal((1, 2, 2), 0), torch.zeros(50, dtype=torch.int64), 250, 1.0)
    assert (samples - free)[:, ~OBSERVED].abs().max() < 1e-9
    assert (samples - free)[:, OBSERVED].abs().max() > 0.1


@pytest.mark.parametrize("step_size", [1.0, 0.3, 0.1, 0.03])
@pytest.mark.parametrize("solver_class", [LatentDPS, FlowChef])
def test_a_unit_step_ends_at_a_residual_of_its_own_length(solver_class, step_size):
    """The last steps jump over the measurement by up to zeta and back: |A x - y| <= zeta, about zeta / 2 on average."""
    solver = build(solver_class, gaussian_suite(), {"step_size": step_size})
    measurement = gaussian_measurement()
    samples = solver.sample(measurement, 1000, FastNoise(1000)).images[0]
    residual = measurement.repeat(1000).residual(samples).flatten(1).norm(dim=1) / step_size
    assert residual.max() <= 1 + 1e-6
    assert 0.4 < residual.mean() < 0.65


def test_spread_after_unit_steps_is_a_matter_of_the_step_and_not_of_the_noise_level():
    """The posterior's variance of the first pixel is 0.00998; Latent DPS gives about 0.2 at zeta = 1 and 0.0024 at 0.1."""
    posterior = 1 / (1 / 4.0 + 1 / 0.01)
    ends = {}
    for step_size in (1.0, 0.1):
        for noise_std in (0.1, 0.5):
            measurement = direct([[[1.2, 0.0], [-0.4, 0.0]]], gaussian_measurement().operator, noise_std)
            solver = build(LatentDPS, gaussian_suite(), {"step_size": step_size})
            ends[step_size, noise_std] = solver.sample(measurement, 1000, FastNoise(1000)).images[0, :, 0, 0, 0]
        assert torch.equal(ends[step_size, 0.1], ends[step_size, 0.5])
    assert float(ends[1.0, 0.1].var()) == pytest.approx(0.22, abs=0.03) != pytest.approx(posterior, rel=0.5)
    assert float(ends[0.1, 0.1].var()) == pytest.approx(0.0024, abs=0.0003) != pytest.approx(posterior, rel=0.5)


# Latent DAPS.

SCALAR = {"langevin_steps": 50, "likelihood_std": 0.1, "steps": 50, "ode_steps": 5}


@pytest.mark.parametrize(("likelihood_weight", "mean", "variance"), [(1.0, 1.17247, 0.028147), (2.0, 1.18781, 0.012436)])
def test_daps_has_the_moments_of_its_recursion(likelihood_weight, mean, variance):
    """Prior N(0.3, 1), y = 1.2 with tau = 0.1, eta_0 = 1e-3; the numbers are those of `recursion`."""
    options = {**SCALAR, "learning_rate": 1e-3, "likelihood_weight": likelihood_weight}
    assert recursion(1.0, 0.3, 1.2, options) == pytest.approx((mean, variance), abs=6e-6)
    assert daps_moments(LatentDAPS, options, 1.0, 0.3, 1.2) == pytest.approx((mean, variance), abs=6e-6)


@pytest.mark.parametrize(
    "changes",
    [{}, {"decay": 0.5}, {"ode_steps": 2, "ode_sigma_min": 0.01}, {"sigma_max": 30.0, "steps": 20}, {"langevin_steps": 3}],
)
def test_daps_follows_its_recursion_for_any_options(changes):
    options = {**SCALAR, "langevin_steps": 10, "steps": 10, "learning_rate": 1e-3, **changes}
    expected = recursion(0.25, -0.4, 0.7, options)
    assert daps_moments(LatentDAPS, options, 0.25, -0.4, 0.7) == pytest.approx(expected, rel=1e-9)


def recursion(prior_variance, prior_mean, y, options):
    """Mean and variance of DAPS's result on one pixel y = x + noise, from sigma = t / (1 - t) and z = x_t / (1 - t) alone."""
    o = LatentDAPS.Options(**options)
    root = o.sigma_max ** (1 / 7), 0.1 ** (1 / 7)
    sigmas = [*[(root[0] + k / o.steps * (root[1] - root[0])) ** 7 for k in range(o.steps)], 0.0]
    mean, variance = 0.0, sigmas[0] ** 2
    for k, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        root = sigma ** (1 / 7), o.ode_sigma_min ** (1 / 7)
        nodes = [(root[0] + j / o.ode_steps * (root[1] - root[0])) ** 7 for j in range(o.ode_steps + 1)]
        # dz / dsigma = (z - E[x | z]) / sigma = sigma (z - prior mean) / (prior variance + sigma^2).
        gain = math.prod(1 + (after - s) * s / (prior_variance + s**2) for s, after in pairwise(nodes))
        mean, variance = prior_mean + gain * (mean - prior_mean), gain**2 * variance
        eta = o.learning_rate * (1 + k / (o.steps + 1) * (o.decay - 1))
        pull = o.likelihood_weight / o.likelihood_std**2
        stiffness = 1 / sigma**2 + pull
        rest = 1 - eta * stiffness
        kept = rest**o.langevin_steps
        mean = (kept + (1 - kept) / (sigma**2 * stiffness)) * mean + (1 - kept) * pull * y / stiffness
        variance *= (kept + (1 - kept) / (sigma**2 * stiffness)) ** 2
        variance += 2 * eta * (1 - kept**2) / (1 - rest**2) + sigma_next**2
    return mean, variance


@pytest.mark.parametrize(("ode_steps", "ratios"), [(5, (0.6888, 0.6994, 0.7083, 0.7103)), (2, (0.520, 0.525, 0.526, 0.506))])
def test_daps_on_the_prior_alone_is_too_narrow(ode_steps, ratios):
    """Euler with few steps contracts too much: five lose a third of the prior's variance, fifty about 4 %."""
    options = {"steps": 50, "langevin_steps": 1, "likelihood_weight": 0.0, "learning_rate": 1e-14}
    noise = ImpulseNoise(1 + 50 + 49)
    ends = {
        steps: moments(
            build(LatentDAPS, gaussian_suite(), {**options, "ode_steps": steps})
            .sample(gaussian_measurement(), noise.rows, noise)
            .images[0]
        )
        for steps in (ode_steps, 50)
    }
    assert (ends[ode_steps][1] / VARIANCE[0]).flatten().tolist() == pytest.approx(ratios, abs=6e-4)
    assert (ends[50][1] / VARIANCE[0]).flatten().tolist() == pytest.approx([0.96] * 4, abs=0.005)
    assert (ends[ode_steps][0] - MEAN[0]).abs().max() < 1e-9


def test_daps_with_converged_langevin_steps_is_near_the_posterior():
    """Prior N(0, 1), y = 1 with tau = 0.1: posterior N(0.9901, 0.0099), where the measurement says more than the last level."""
    many = {**SCALAR, "langevin_steps": 4000, "learning_rate": 2e-4, "decay": 0.2}
    assert recursion(1.0, 0.0, 1.0, many) == pytest.approx((0.9933, 0.00994), abs=5e-5)
    options = {**SCALAR, "steps": 10, "langevin_steps": 300, "learning_rate": 2e-3, "decay": 0.2}
    mean, variance = daps_moments(LatentDAPS, options, 1.0, 0.0, 1.0)
    assert mean == pytest.approx(0.9933, abs=0.002)
    assert variance == pytest.approx(0.0099, rel=0.05)
    assert (mean, variance) == pytest.approx(recursion(1.0, 0.0, 1.0, options), rel=1e-9)


def test_daps_draws_independent_unit_noise():
    """The recursion again, with the harness's own noise: 2000 samples within three standard errors."""
    options = {**SCALAR, "steps": 20, "langevin_steps": 10, "learning_rate": 1e-3}
    measurement = direct([[[1.2]]], Identity(1, (1, 1, 1)))
    solver = build(LatentDAPS, scalar_suite(1.0, 0.3), options)
    noise = PhiloxNoise(0, "sampling", *sample_rows(measurement.index, range(2000)))
    values = solver.sample(measurement, 2000, noise).images.flatten()
    mean, variance = recursion(1.0, 0.3, 1.2, options)
    assert float(values.mean()) == pytest.approx(mean, abs=3 * (variance / 2000) ** 0.5)
    assert float(values.var()) == pytest.approx(variance, rel=3 * (2 / 2000) ** 0.5)


def scalar_suite(variance, mean):
    return ToySuite(GaussianVelocity(torch.tensor([mean]).double(), torch.tensor([variance]).double()), (1, 1, 1), 0)


def test_daps_gives_the_last_theta():
    measurement = measure("super_resolution")
    solver = build(LatentDAPS, random_suite("autoencoder"), {"learning_rate": 1e-3})
    noise = Float64Noise(measurement.index)
    *_, last = solver.trajectory(measurement, noise)
    assert torch.equal(last.state, last.clean)
    assert torch.equal(solver.sample(measurement, 1, noise).latents[:, 0], last.clean)


def test_daps_rollout_is_the_same_in_flow_time():
    """Euler on du/dsigma = (u - clean) / sigma with u = x / (1 - t)."""
    suite, measurement = random_suite(), measure("super_resolution")
    solver = build(LatentDAPS, suite, {"ode_steps": 5})
    x = Float64Noise(measurement.index).normal((1, 8, 8), 0)
    for sigma in (10.0, 1.0, 0.12):
        u = (1 + sigma) * x
        nodes = [(sigma ** (1 / 7) + j / 5 * (1e-3 ** (1 / 7) - sigma ** (1 / 7))) ** 7 for j in range(6)]
        for s, after in pairwise(nodes):
            t = s / (1 + s)
            clean = u / (1 + s) - t * suite.velocity(u / (1 + s), t, measurement.label, 2.0)
            u = u + (after - s) * (u - clean) / s
        assert (solver.clean_by_ode(x, sigma, measurement.label) - u).abs().max() < 1e-10


@pytest.mark.parametrize("problem", ["super_resolution", "inpaint_box", "motion_deblur"])
@pytest.mark.parametrize("codec", ["identity", "autoencoder"])
def test_daps_step_size_is_safe_for_the_largest_curvature(problem, codec):
    """Power iteration from below: at most the largest eigenvalue, and near enough that twice the step would still be stable."""
    suite, measurement = random_suite(codec), measure(problem)
    solver = build(LatentDAPS, suite, {})
    z = 0.3 * Float64Noise(measurement.index).normal(suite.latent_shape, 0)
    curvature, direction = solver._largest_curvature(z, measurement, None)
    refined = solver._largest_curvature(z, measurement, direction)[0]
    for row in range(4):
        one = measure(problem, [row])
        jacobian = torch.autograd.functional.jacobian(lambda latent, m=one: m.residual(suite.decode(latent)), z[row : row + 1])
        largest = float(torch.linalg.matrix_norm(jacobian.reshape(-1, z[row].numel()), 2) ** 2)
        assert 0.7 * largest < float(curvature[row]) < 1.01 * largest
        assert float(refined[row]) > 0.99 * float(curvature[row])


@pytest.mark.parametrize(
    ("problem", "options"),
    [
        ("super_resolution", {"step_size": 1.5}),
        # The measurement says less than the level, or nothing: the prior's term limits the step.
        ("super_resolution", {"likelihood_std": 2.0, "step_size": 1.5}),
        ("super_resolution", {"likelihood_weight": 0.0}),
        # Saturated pixels have no gradient, until noise takes one back into the range.
        ("hdr", {"likelihood_std": 0.01}),
    ],
)
def test_daps_is_stable_below_a_step_size_of_two(problem, options):
    mean = 0.7 * (2 * (torch.arange(64).reshape(1, 1, 8, 8) % 2) - 1).double()
    suite, measurement = ToySuite(GaussianVelocity(mean, torch.full((1,), 0.01)), (1, 8, 8), 0), measure(problem)
    chosen = {"steps": 20, "langevin_steps": 20, "ode_steps": 3, "decay": 1.0, **options}
    samples = build(LatentDAPS, suite, chosen).sample(measurement, 2, Float64Noise(measurement.index, 2)).images
    assert samples.abs().max() < 10


# Mixtures: two modes at -1 and 1, of deviation 0.3, that the measurement does not tell apart for sure.


def mixture_suite(dimensions: int) -> ToySuite:
    means = torch.tensor([-1.0, 1.0], dtype=torch.float64).reshape(2, 1, 1, 1).expand(2, 1, 1, dimensions)
    return ToySuite(MixtureVelocity(means, 0.09), (1, 1, dimensions), 0)


def daps_density(y: float, o: LatentDAPS.Options) -> tuple[np.ndarray, np.ndarray]:
    """Grid and density of DAPS's result on the one-dimensional mixture: every level is a map and a Gaussian blur."""

    def clean(u, sigma):
        total = 0.09 + sigma**2
        right = 1 / (1 + np.exp(-2 * u / total))
        return sum(share * (m + 0.09 / total * (u - m)) for m, share in ((-1, 1 - right), (1, right)))

    roots = np.linspace(o.sigma_max ** (1 / 7), 0.1 ** (1 / 7), o.steps + 1)
    sigmas = [*(roots[:-1] ** 7), 0.0]
    grid, mass = np.array([0.0]), np.array([1.0])
    spread, landing = sigmas[0], grid
    for k, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        u = np.linspace(landing.min() - 6 * spread, landing.max() + 6 * spread, 1200)
        density = np.exp(-0.5 * ((u[:, None] - landing) / spread) ** 2) @ mass
        grid, mass = u, density / density.sum()
        landing = u
        for s, after in pairwise(np.linspace(sigma ** (1 / 7), o.ode_sigma_min ** (1 / 7), o.ode_steps + 1) ** 7):
            landing = landing + (after - s) * (landing - clean(landing, s)) / s
        eta = o.learning_rate * (1 + k / (o.steps + 1) * (o.decay - 1))
        stiffness = 1 / sigma**2 + 1 / o.likelihood_std**2
        rest = 1 - eta * stiffness
        kept = rest**o.langevin_steps
        target = (landing / sigma**2 + y / o.likelihood_std**2) / stiffness
        landing = kept * landing + (1 - kept) * target
        spread = math.sqrt(2 * eta * (1 - kept**2) / (1 - rest**2) + sigma_next**2)
    final = np.linspace(-4, 4, 2001)
    density = np.exp(-0.5 * ((final[:, None] - landing) / spread) ** 2) @ mass
    return final, density / density.sum()


def test_daps_on_a_mixture_has_the_law_of_its_levels():
    """DAPS takes x_0 given x_t for a Gaussian of deviation sigma about one ODE sample, so it is not exact: the law that this
    implies is computed on a grid. It leans to the right mode, but less than the posterior (0.76).
    """
    y, std = 0.2, 0.5
    options = {"steps": 30, "ode_steps": 10, "langevin_steps": 30, "likelihood_std": std, "learning_rate": 0.01, "decay": 0.5}
    solver = build(LatentDAPS, mixture_suite(1), options)
    samples = solver.sample(direct([[[y]]], Identity(1, (1, 1, 1)), std), 4000, FastNoise(4000)).images.flatten().numpy()
    grid, density = daps_density(y, solver.options)
    distance = np.abs(np.searchsorted(np.sort(samples), grid) / 4000 - density.cumsum()).max()
    # Kolmogorov-Smirnov, one in a thousand.
    assert distance < 1.95 / 4000**0.5
    posterior = 1 / (1 + math.exp(-2 * y / (0.09 + std**2)))
    right = float((samples > 0).mean())
    assert posterior == pytest.approx(0.7643, abs=1e-4)
    assert right == pytest.approx(density[grid > 0].sum(), abs=3 * 0.5 / 4000**0.5)
    assert 0.5 < right < posterior


@pytest.mark.parametrize(
    ("solver_class", "options"),
    [
        (LatentDPS, {"step_size": 0.1}),
        (MPGD, {"step_size": 0.1}),
        (FlowChef, {"step_size": 0.1}),
        (PSLD, {"omega": 0.1, "gamma": 0.05}),
        (FlowDPS, {"step_size": 0.1}),
        (LatentDAPS, {"steps": 30, "ode_steps": 5, "langevin_steps": 20, "likelihood_std": None}),
    ],
)
def test_a_clear_measurement_of_one_pixel_picks_the_mode_of_the_other(solver_class, options):
    """y = 0.9 of the left pixel, noise 0.1: the modes are told apart, so the right pixel is 1 +- 0.3 in the posterior too."""
    measurement = direct([0.9], MatrixOperator(torch.tensor([[1.0, 0.0]], dtype=torch.float64), (1, 1, 2)))
    guided, free = (
        build(solver, mixture_suite(2), {"steps": 100, **chosen}).sample(measurement, 500, FastNoise(500)).images[0, :, 0, 0]
        for solver, chosen in ((solver_class, options), (Unguided, {}))
    )
    assert float((free[:, 1] > 0).double().mean()) == pytest.approx(0.5, abs=0.07)
    assert float((guided[:, 1] > 0).double().mean()) > 0.95
    assert float(guided[:, 1].mean()) == pytest.approx(1.0, abs=0.2)
    assert float(guided[:, 0].mean()) == pytest.approx(0.9, abs=0.1)


def test_decoder_of_the_toys_is_curved():
    """Otherwise the tests through it would show nothing that those on images do not."""
    decoder, _ = autoencoder()
    a, b = torch.randn(2, 1, 4, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert (decoder(a) + decoder(b) - decoder(a + b) - decoder(0 * a)).abs().max() > 0.1
