"""Every solver's step again, for one image, as its formula reads: plain autograd through the whole chain, nothing shared."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from vfmbench.measurement import Measurement
from vfmbench.tasks.kernels import PINV_TOLERANCE

from .toys import ToySuite


def residual(measurement: Measurement, images: Tensor) -> Tensor:
    """A x - y at the observed entries, as a vector."""
    difference = measurement.operator.forward(images) - measurement.y
    observed = measurement.operator.observed
    return difference.flatten() if observed is None else difference[observed.expand_as(difference)]


def dense(measurement: Measurement) -> Tensor:
    """The matrix A of one row's linear operator, [entries of y, entries of x]."""
    operator = measurement.operator
    basis = torch.eye(64, dtype=torch.float64).reshape(64, 1, *operator.image_shape)
    return torch.stack([operator.forward(image).flatten() for image in basis], dim=1)


def gradient_of(loss, leaf: Tensor) -> Tensor:
    return torch.autograd.grad(loss(leaf), leaf)[0]


def directed(gradient: Tensor, residual_norm: float, rule: str) -> Tensor:
    if rule == "sign":
        return torch.where(gradient > 0, 1.0, torch.where(gradient < 0, -1.0, 0.0)).double()
    return gradient / (gradient.square().sum().sqrt() if rule == "unit" else residual_norm)


def unguided(suite: ToySuite, measurement: Measurement, x, t, t_next, options, fresh):
    velocity = suite.velocity(x, t, measurement.label, options.guidance_scale)
    return x + (t_next - t) * velocity, x - t * velocity


def latent_dps(suite: ToySuite, measurement: Measurement, x, t, t_next, options, fresh):
    leaf = x.clone().requires_grad_(True)
    clean = leaf - t * suite.velocity(leaf, t, measurement.label, options.guidance_scale)
    misfit = residual(measurement, suite.decode(clean))
    gradient = torch.autograd.grad(0.5 * misfit.square().sum(), leaf)[0]
    euler, clean = unguided(suite, measurement, x, t, t_next, options, fresh)
    return euler - options.step_size * directed(gradient, float(misfit.detach().norm()), options.rule), clean


def data_direction(suite: ToySuite, measurement: Measurement, latent: Tensor, rule: str) -> Tensor:
    leaf = latent.clone().requires_grad_(True)
    misfit = residual(measurement, suite.decode(leaf))
    gradient = torch.autograd.grad(0.5 * misfit.square().sum(), leaf)[0]
    return directed(gradient, float(misfit.detach().norm()), rule)


def mpgd(suite: ToySuite, measurement: Measurement, x, t, t_next, options, fresh):
    velocity = suite.velocity(x, t, measurement.label, options.guidance_scale)
    clean, noise = x - t * velocity, x + (1 - t) * velocity
    length = {"clean": options.step_size, "state": options.step_size / (1 - t_next)}[options.scaling]
    clean = clean - length * data_direction(suite, measurement, clean, options.rule)
    return (1 - t_next) * clean + t_next * noise, clean


def flowchef(suite: ToySuite, measurement: Measurement, x, t, t_next, options, fresh):
    velocity = suite.velocity(x, t, measurement.label, options.guidance_scale)
    if t_next > 0 or options.guide_last:
        for _ in range(options.inner_steps):
            x = x - options.step_size * data_direction(suite, measurement, x - t * velocity, options.rule)
    return x + (t_next - t) * velocity, x - t * velocity


def flowdps(suite: ToySuite, measurement: Measurement, x, t, t_next, options, fresh):
    velocity = suite.velocity(x, t, measurement.label, options.guidance_scale)
    clean, noise = x - t * velocity, x + (1 - t) * velocity
    theta = clean
    for _ in range(options.inner_steps):
        leaf = theta.clone().requires_grad_(True)
        misfit = residual(measurement, suite.decode(leaf))
        if measurement.condition == "super_resolution":
            misfit = torch.linalg.pinv(dense(measurement)) @ misfit
        theta = theta - options.step_size * torch.autograd.grad(misfit.norm(), leaf)[0]
    blend = (1 - t) * clean + t * theta
    if options.stochastic:
        noise = t_next**0.5 * noise + (1 - t_next) ** 0.5 * fresh
    return (1 - t_next) * blend + t_next * noise, blend


def psld(suite: ToySuite, measurement: Measurement, x, t, t_next, options, fresh):
    matrix = dense(measurement)
    y, shape = measurement.y[0].flatten(), measurement.operator.image_shape
    if measurement.operator.observed is not None:
        y = y * measurement.operator.observed.flatten()
    back, how = torch.eye(64, dtype=torch.float64), options.back_projection
    if how == "auto":
        how = "pinv" if measurement.condition == "super_resolution" else "to_image"
    if how == "adjoint":
        back = matrix.T
    elif how == "pinv":
        # A blur's smallest singular values count as zero.
        back = torch.linalg.pinv(matrix, rtol=PINV_TOLERANCE)
    elif measurement.condition == "super_resolution":
        small = torch.eye(16, dtype=torch.float64).reshape(16, 4, 4)
        back = torch.stack([torch.kron(image, torch.ones(2, 2)).flatten() for image in small], dim=1)

    def loss(leaf):
        clean = leaf - t * suite.velocity(leaf, t, measurement.label, options.guidance_scale)
        image = suite.decode(clean).flatten()
        glued = image + back @ (y - matrix @ image)
        gluing = (suite.encode(glued.reshape(1, *shape)) - clean).norm()
        return options.omega * (matrix @ image - y).norm() + options.gamma * gluing

    gradient = gradient_of(loss, x.clone().requires_grad_(True))
    if options.rule == "unit":
        gradient = gradient / gradient.norm()
    euler, clean = unguided(suite, measurement, x, t, t_next, options, fresh)
    return euler - options.step_size * gradient, clean


STEPS = {
    "Unguided": unguided,
    "LatentDPS": latent_dps,
    "MPGD": mpgd,
    "FlowChef": flowchef,
    "FlowDPS": flowdps,
    "PSLD": psld,
}


def levels(first: float, last: float, count: int) -> list[float]:
    """`count` intervals from first to last, equal in the seventh root."""
    a, b = first ** (1 / 7), last ** (1 / 7)
    return [(a + (b - a) * k / count) ** 7 for k in range(count + 1)]


def latent_daps(suite: ToySuite, measurement: Measurement, options, noise) -> list[tuple[Tensor, Tensor]]:
    """(state, clean) after each level, in the variance-exploding form u = x / (1 - t) = x_0 + sigma z, with a given eta_0."""
    draw = iter(range(100_000))

    def fresh():
        return noise.normal(suite.latent_shape, next(draw))

    sigmas = levels(options.sigma_max, 0.1, options.steps)
    sigmas[-1] = 0.0
    u, trajectory = sigmas[0] * fresh(), []
    for k in range(options.steps):
        sigma = sigmas[k]
        nodes = levels(sigma, options.ode_sigma_min, options.ode_steps)
        for s, s_next in pairwise(nodes):
            t = s / (1 + s)
            x = u / (1 + s)
            clean = x - t * suite.velocity(x, t, measurement.label, options.guidance_scale)
            u = u + (s_next - s) * (u - clean) / s
        mean = theta = u
        tau = float(measurement.noise_std.mean()) if options.likelihood_std is None else options.likelihood_std
        eta = options.learning_rate * (1 + k / (options.steps + 1) * (options.decay - 1))
        for _ in range(options.langevin_steps):

            def loss(leaf):
                return 0.5 * options.likelihood_weight * residual(measurement, suite.decode(leaf)).square().sum()

            pull = gradient_of(loss, theta.clone().requires_grad_(True))
            if options.clip:
                pull = pull.clip(-1, 1)
            theta = theta - eta * ((theta - mean) / sigma**2 + pull / tau**2) + (2 * eta) ** 0.5 * fresh()
        u = theta if k == options.steps - 1 else theta + sigmas[k + 1] * fresh()
        trajectory.append((u / (1 + sigmas[k + 1]), theta))
    return trajectory
