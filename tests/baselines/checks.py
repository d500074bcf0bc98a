"""Checks that take any solver class, so that a solver that is wrong on purpose can be shown to fail them."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from vfmbench.baselines.guidance import Step
from vfmbench.baselines.latent_daps import LatentDAPS
from vfmbench.conformance.samplers import check_batch_size, check_broken_neighbour, check_order, check_result
from vfmbench.conformance.trials import Trial
from vfmbench.tasks.operators import Identity

from . import derivations
from .toys import (
    CPU,
    MEAN,
    SHAPE,
    VARIANCE,
    Float64Noise,
    GaussianVelocity,
    ImpulseNoise,
    MatrixOperator,
    ToySuite,
    direct,
    gaussian_measurement,
    gaussian_suite,
    measure,
    moments,
    random_suite,
)

# (t, t') at the beginning, in the middle and at the end.
TIMES = ((1.0, 0.9), (0.6, 0.5), (0.1, 0.0))
SHORT_DAPS = {"steps": 2, "ode_steps": 2, "langevin_steps": 3, "likelihood_std": 0.2}


def build(solver_class, suite, options):
    return solver_class(suite, chosen(solver_class, options), suite.backbone(CPU))


def chosen(solver_class, options):
    return solver_class.Options(**{**(SHORT_DAPS if issubclass(solver_class, LatentDAPS) else {}), **options})


def advance(solver, measurement, noise, times=TIMES) -> list[tuple[Tensor, Tensor]]:
    """(state, clean) after single steps from a shared state, one for each of the times; DAPS: after each of its levels."""
    measurement = solver.conditioned(measurement)
    if isinstance(solver, LatentDAPS):
        return list(solver.trajectory(measurement, noise))
    x, fresh = (noise.normal(solver.flow.latent_shape, draw) for draw in range(2))
    return [solver.step(x, t, t_next, measurement, lambda: fresh) for t, t_next in times]


def largest_difference(first, second) -> float:
    return max(
        float((a - b).abs().max()) for one, other in zip(first, second, strict=True) for a, b in zip(one, other, strict=True)
    )


def check_derivation(solver_class, options, problem: str, codec: str, tolerance: float = 1e-10):
    """One image's states and clean estimates against `derivations`."""
    suite, measurement = random_suite(codec), measure(problem, rows=[1])
    noise = Float64Noise(measurement.index)
    results = advance(build(solver_class, suite, options), measurement, noise)
    # Not the solver's own: it may have taken one for another.
    given = chosen(solver_class, options)
    if given.label == "null":
        measurement = replace(measurement, label=torch.tensor([3]))
    if issubclass(solver_class, LatentDAPS):
        expected = derivations.latent_daps(suite, measurement, given, noise)
    else:
        x, fresh = (noise.normal(suite.latent_shape, draw) for draw in range(2))
        name = next(base.__name__ for base in solver_class.__mro__ if base.__name__ in derivations.STEPS)
        derive = derivations.STEPS[name]
        expected = [derive(suite, measurement, x, t, t_next, given, fresh) for t, t_next in TIMES]
    difference = largest_difference(results, expected)
    assert difference < tolerance, f"differs by {difference:.2g}"


def check_batch_invariance(solver_class, options, problem: str, codec: str, tolerance: float = 1e-9):
    """What every sampler must hold, here to rounding in double precision: rows alone, moved, and beside a broken one."""
    suite = random_suite(codec)
    few = {} if issubclass(solver_class, LatentDAPS) else {"steps": 2}
    trial = Trial(
        build=partial(build, solver_class, suite, {**few, **options}),
        measure=partial(measure, problem),
        image_shape=SHAPE,
        latent_shape=suite.latent_shape,
        noise=Float64Noise,
        num_samples=1,
        tolerance=tolerance,
    )
    for check in (check_result, check_batch_size, check_order, check_broken_neighbour):
        check(trial)


def check_hole(solver_class, options, problem: str, codec: str):
    """What a measurement says inside the hole changes nothing."""
    solver = build(solver_class, random_suite(codec), options)
    measurement = measure(problem)
    altered = replace(measurement, y=torch.where(measurement.operator.observed, measurement.y, 7.0))
    noise = Float64Noise(measurement.index)
    given, filled = (advance(solver, seen, noise, TIMES[1:2]) for seen in (measurement, altered))
    assert largest_difference(given, filled) == 0


def check_zero_strength(solver_class, options, codec: str, steps: int = 5):
    """Without guidance: the prior's Euler sample of the same noise."""
    suite, measurement = random_suite(codec), measure("super_resolution")
    solver = build(solver_class, suite, {"steps": steps, **options})
    samples = solver.sample(measurement, 2, Float64Noise(measurement.index, 2))
    label = measurement.label.repeat_interleave(2)
    if solver.options.label == "null":
        label = torch.full_like(label, 3)
    start = Float64Noise(measurement.index, 2).normal(suite.latent_shape, 0)
    expected = suite.ode(start, label, steps, solver.options.guidance_scale)
    assert (samples.latents.flatten(0, 1) - expected).norm() < 1e-10 * expected.norm()
    assert (samples.images.flatten(0, 1) - suite.decode(expected)).norm() < 1e-10 * suite.decode(expected).norm()


def check_step_length(solver_class, options, length, codec: str):
    """|x' - Euler| of each row is length(t')."""
    suite, measurement = random_suite(codec), measure("super_resolution")
    noise = Float64Noise(measurement.index)
    x = noise.normal(suite.latent_shape, 0)
    for (state, _), (t, t_next) in zip(advance(build(solver_class, suite, options), measurement, noise), TIMES, strict=True):
        euler = x + (t_next - t) * suite.velocity(x, t, measurement.label, 2.0)
        lengths = (state - euler).flatten(1).norm(dim=1)
        assert (lengths - length(t_next)).abs().max() < 1e-12


def check_gradient_directions(solver_class, options, t: float, cosine: float):
    """The angle between a correction and A^T r for the Gaussian toy, of which the mean pixel is observed, A = (1, 1, 1, 1) / 2.

    A^T r has four equal entries; through the network, each is multiplied by (1-t) C_i / ((1-t)^2 C_i + t^2).
    """
    suite = gaussian_suite()
    measurement = direct([0.8], MatrixOperator(torch.full((1, 4), 0.5, dtype=torch.float64), (1, 2, 2)))
    solver = build(solver_class, suite, options)
    x = Float64Noise(measurement.index).normal((1, 2, 2), 0)
    if issubclass(solver_class, LatentDAPS):
        correction = solver.langevin(x, 1.0, torch.ones(()), measurement, lambda: 0 * x) - x
    else:
        t_next = 0.9 * t
        correction = solver.step(x, t, t_next, measurement, None).state - solver.estimate(x, t, measurement.label).euler(t_next)
    found = correction.flatten() @ torch.ones(4, dtype=torch.float64) / (2 * correction.norm())
    assert abs(abs(float(found)) - cosine) < 6e-5, f"cosine {float(found):.4f}"


def check_exact_guidance(base):
    """The ODE of the posterior, x' = x + (t' - t) v_y, in a subclass of `base`, on the Gaussian toy.

    v_y = v - t/(1-t) grad log p(y | x_t), with y | x_t ~ N(A clean, sigma_y^2 + V) and V = t^2 C / ((1-t)^2 C + t^2): the
    result has the posterior's mean exactly, and its variance up to the error of Euler steps.
    """

    class Exact(base):
        def step(self, x, t, t_next, measurement, draw):
            estimate, vjp = self.estimate_with_vjp(x, t, measurement.label)
            variance = measurement.noise_std**2 + t**2 * VARIANCE / ((1 - t) ** 2 * VARIANCE + t**2)
            score = measurement.operator.adjoint(measurement.residual(estimate.clean) / variance)
            # The network's Jacobian goes to zero with 1 - t; together they go to the prior's variance.
            pull = t / (1 - t) * vjp(score) if t < 1 else VARIANCE * score
            return Step(x + (t_next - t) * (estimate.velocity + pull), estimate.clean)

    noise, measurement = ImpulseNoise(1), gaussian_measurement()
    solver = build(Exact, gaussian_suite(), {})
    mean, variance = moments(solver.sample(measurement, noise.rows, noise).images[0])
    precision = 1 / VARIANCE + measurement.operator.observed / 0.01
    posterior = (MEAN / VARIANCE + measurement.operator.observed * measurement.y / 0.01) / precision
    assert (mean - posterior[0]).abs().max() < 1e-9
    ratios = torch.tensor([[[0.96486, 0.98977], [0.96430, 0.98142]]], dtype=torch.float64)
    assert (variance * precision[0] - ratios).abs().max() < 1e-4


def daps_moments(solver_class, options, prior_variance: float, prior_mean: float, y: float) -> tuple[float, float]:
    """Exact mean and variance of DAPS on one pixel: it is linear in its noise."""
    velocity = GaussianVelocity(
        torch.tensor([prior_mean], dtype=torch.float64), torch.tensor([prior_variance], dtype=torch.float64)
    )
    solver = build(solver_class, ToySuite(velocity, (1, 1, 1), 0), options)
    noise = ImpulseNoise(solver.options.steps * (solver.options.langevin_steps + 1))
    mean, variance = moments(solver.sample(direct([[[y]]], Identity(1, (1, 1, 1))), noise.rows, noise).images[0])
    return float(mean), float(variance)
