"""Latent DAPS: at each noise level, a clean estimate by a short ODE, Langevin steps on its posterior, and fresh noise.

Source: Zhang et al., Improving Diffusion Inverse Problem Solving with Decoupled Noise Annealing (CVPR 2025, arXiv 2407.01521),
algorithm 1, with the VFM paper's budget of 50 levels x 5 ODE steps and 50 Langevin steps. Noise levels are those of the
variance-exploding form, sigma = t / (1-t).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from vfmbench.baselines.guidance import (
    Draw,
    SolverOptions,
    Step,
    TrajectorySampler,
    draws,
    interpolate,
    norms,
    per_sample,
    unit,
)
from vfmbench.interfaces import Backbone, Suite
from vfmbench.measurement import Measurement, NoiseSource
from vfmbench.precision import PLAIN

_FIRST_POWER_ITERATIONS, _POWER_ITERATIONS = 8, 2
_FINITE_DIFFERENCE = 1e-2
_NUMBERS_AT_ONCE = 2**12
_RELEASED_RATES = {"inpaint_box": 5e-5, "motion_deblur": 5e-5, "phase_retrieval": 5e-5, "hdr": 2e-5}


def noise_levels(first: float, last: float, count: int) -> list[float]:
    """`count` levels from first to last, equidistant in the seventh root (Karras et al. 2022, eq. 5)."""
    ends = first ** (1 / 7), last ** (1 / 7)
    return [(ends[0] + k / (count - 1) * (ends[1] - ends[0])) ** 7 for k in range(count)]


class LatentDAPS(TrajectorySampler):
    """Latent DAPS: Langevin steps on the posterior of the clean latent at each noise level.

    For each level sigma: clean <- ODE(x); theta <- clean; repeat
    theta <- theta - eta [(theta - clean) / sigma^2 + kappa / tau^2 grad 1/2 |A D(theta) - y|^2] + sqrt(2 eta) noise;
    x <- (1-t') theta + t' noise. The last theta is the result.
    """

    class Options(SolverOptions):
        steps: int = Field(50, ge=1, description="noise levels")
        ode_steps: int = Field(5, ge=1, description="Euler steps in sigma from each level to ode_sigma_min")
        langevin_steps: int = Field(50, ge=1, description="Langevin steps at each level")
        sigma_max: float = Field(10.0, gt=0.1, description="first level; the last before zero is about 0.1")
        ode_sigma_min: float = Field(1e-3, gt=0, lt=0.1, description="where each ODE ends")
        likelihood_std: float | None = Field(0.01, gt=0, description="tau; null: the measurement's own noise level")
        likelihood_weight: float = Field(1.0, ge=0, description="kappa; the released code, whose loss has no 1/2, has 2")
        step_size: float = Field(0.3, ge=0, lt=2, description="alpha: eta_0 = alpha / (1 / sigma^2 + kappa lambda_max / tau^2)")
        learning_rate: float | None = Field(None, gt=0, description="eta_0 itself, instead of step_size")
        decay: float = Field(
            0.01, gt=0, le=1, description="delta: eta falls linearly from eta_0 to delta eta_0 over the levels"
        )
        clip: bool = Field(False, description="clip each entry of kappa times the gradient to [-1, 1] before 1 / tau^2")

    options: Options

    def __init__(self, suite: Suite, options: Options, backbone: Backbone):
        super().__init__(suite, options, backbone)
        # A finite difference of a decoder in half precision would be mostly rounding.
        half = backbone.execution.precision != PLAIN.precision
        self._exact_codec = backbone.under(PLAIN).codec if half else self.codec

    @classmethod
    def original(cls, problem: str) -> Mapping[str, Any]:
        """The released Langevin form with its rates for each task; their loss has no 1/2, and latents get Hamiltonian steps."""
        return {
            "steps": 200,
            "sigma_max": 100.0,
            "ode_sigma_min": 0.01,
            "langevin_steps": 100,
            "likelihood_weight": 2.0,
            "learning_rate": _RELEASED_RATES.get(problem, 1e-4),
            "guidance_scale": 1.0,
        }

    def trajectory(self, measurement: Measurement, noise: NoiseSource) -> Iterator[Step]:
        options = self.options
        size = math.prod(self.flow.latent_shape)
        draw = draws(noise, self.flow.latent_shape, at_once=max(1, _NUMBERS_AT_ONCE // size))
        # As published, the grid ends one step below the last level, whose successor is zero.
        levels = [*noise_levels(options.sigma_max, 0.1, options.steps + 1)[:-1], 0.0]
        x = levels[0] / (1 + levels[0]) * draw()
        curvature, direction = x.new_zeros(len(x)), None
        for k, (sigma, sigma_next) in enumerate(pairwise(levels)):
            clean = self.clean_by_ode(x, sigma, measurement.label)
            if options.learning_rate is None:
                found, direction = self._largest_curvature(clean, measurement, direction)
                # The clean estimate wanders within a level, so what another level found still bounds the step.
                curvature = torch.maximum(curvature, found)
            eta = self._learning_rate(curvature, sigma, measurement) * (1 + k / (options.steps + 1) * (options.decay - 1))
            theta = self.langevin(clean, sigma, per_sample(eta, clean), measurement, draw)
            t_next = sigma_next / (1 + sigma_next)
            x = interpolate(theta, draw(), t_next) if sigma_next > 0 else theta
            yield Step(x, theta)

    def clean_by_ode(self, x: Tensor, sigma: float, label: Tensor) -> Tensor:
        """Euler in sigma from x at level sigma to ode_sigma_min, seen from there as a clean image; Euler in t is the same."""
        nodes = [level / (1 + level) for level in noise_levels(sigma, self.options.ode_sigma_min, self.options.ode_steps + 1)]
        for t, t_next in pairwise(nodes):
            x = self.estimate(x, t, label).euler(t_next)
        return x / (1 - nodes[-1])

    def langevin(self, clean: Tensor, sigma: float, eta: Tensor, measurement: Measurement, draw: Draw) -> Tensor:
        """Langevin steps of size eta [B,1,...] on N(theta; clean, sigma^2) times the likelihood, from clean."""
        likelihood_std = self._likelihood_std(measurement)
        theta = clean
        for _ in range(self.options.langevin_steps):
            gradient = self.options.likelihood_weight * self.clean_gradient(theta, measurement)[0]
            if self.options.clip:
                gradient = gradient.clamp(-1, 1)
            drift = (theta - clean) / sigma**2 + gradient / likelihood_std**2
            theta = theta - eta * drift + (2 * eta).sqrt() * draw()
        return theta

    def _likelihood_std(self, measurement: Measurement) -> Tensor:
        """tau of each row, [B,1,1,1]."""
        if self.options.likelihood_std is not None:
            return measurement.y.new_full((len(measurement), 1, 1, 1), self.options.likelihood_std)
        # Where the noise differs between entries, their mean variance.
        variance = measurement.noise_std.square().flatten(1).mean(1)
        return variance.sqrt().expand(len(measurement)).reshape(-1, 1, 1, 1)

    def _learning_rate(self, curvature: Tensor, sigma: float, measurement: Measurement) -> Tensor:
        """eta_0 of each row, [B]; a step on a quadratic of this curvature is stable for step_size < 2."""
        if self.options.learning_rate is not None:
            return torch.full_like(curvature, self.options.learning_rate)
        likelihood = self.options.likelihood_weight * curvature / self._likelihood_std(measurement).flatten() ** 2
        return self.options.step_size / (1 / sigma**2 + likelihood)

    def _largest_curvature(self, z: Tensor, measurement: Measurement, direction: Tensor | None) -> tuple[Tensor, Tensor]:
        """Largest eigenvalue of J^T A^T A J, J = dD/dz, for each row by power iteration, [B], and its direction.

        A J u is a finite difference, which needs no forward-mode derivative of the decoder. Without a direction from before, or
        in rows where it has come to lie in the null space, the iteration starts from the gradient of the data term.
        """
        iterations = _FIRST_POWER_ITERATIONS if direction is None else _POWER_ITERATIONS
        direction = torch.zeros_like(z) if direction is None else direction
        lost = norms(direction) == 0
        if lost.any():
            direction = torch.where(per_sample(lost, z), unit(self.clean_gradient(z, measurement)[0]), direction)
        curvature = z.new_zeros(len(z))
        for _ in range(iterations):
            moved = measurement.residual(self._exact_codec.decode(z + _FINITE_DIFFERENCE * direction))
            images, decode_vjp = self._exact_codec.decode_with_vjp(z)
            with torch.enable_grad():
                leaf = images.detach().requires_grad_(True)
                residual = measurement.residual(leaf)
                change = (moved - residual.detach()) / _FINITE_DIFFERENCE
                product = decode_vjp(torch.autograd.grad(residual, leaf, change)[0])
            curvature, direction = norms(product), unit(product)
        return curvature, direction
