"""FlowDPS: data consistency on the clean estimate, blended in by time, and a noise end that may be refreshed.

Source: Kim et al., FlowDPS: Flow-Driven Posterior Sampling for Inverse Problems (ICCV 2025, arXiv 2503.08136), algorithm 1; the
VFM paper runs it without fresh noise.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from vfmbench.baselines.guidance import Draw, GuidanceOptions, GuidanceSampler, Step, interpolate, smooth_norms, time_grid
from vfmbench.errors import UserError
from vfmbench.measurement import Measurement, Operator


class FlowDPS(GuidanceSampler):
    """FlowDPS: data consistency on the clean estimate, blended in by time.

    theta <- clean, K times theta <- theta - s grad |R (A D(theta) - y)|;
    x' = (1-t') [(1-t) clean + t theta] + t' noise.

    By default R is the pseudo-inverse where A reduces the number of pixels, the identity otherwise.
    """

    class Options(GuidanceOptions):
        step_size: float = Field(15.0, ge=0, description="s, on the gradient of the norm; the VFM paper's value is not known")
        inner_steps: int = Field(3, ge=1, description="K, data-consistency steps")
        stochastic: bool = Field(False, description="refresh the noise: sqrt(t') noise + sqrt(1-t') fresh")
        residual_map: Literal["auto", "identity", "adjoint", "pinv"] = Field("auto", description="R")
        last_time: float | None = Field(
            None, gt=0, lt=1, description="last time before 0, ahead of the shift; null: the steps are equally long"
        )

    options: Options

    @classmethod
    def original(cls, problem: str) -> Mapping[str, Any]:
        """The released settings: 28 steps, time shift 4, fresh noise, and A^T for R where A is a Gaussian blur.

        Their scheduler's shortest time is 0.001 under Stable Diffusion 3's own shift of 3, so that the grid ends at
        0.143, 0.0119, 0.
        """
        residual_map = "adjoint" if problem == "gaussian_deblur" else "auto"
        grid = {"steps": 28, "shift": 4.0, "last_time": 0.003 / 1.002}
        return {**grid, "guidance_scale": 2.0, "step_size": 15.0, "stochastic": True, "residual_map": residual_map}

    def times(self) -> Iterator[tuple[float, float]]:
        return time_grid(self.options.steps, self.options.shift, self.options.last_time)

    def step(self, x: Tensor, t: float, t_next: float, measurement: Measurement, draw: Draw) -> Step:
        estimate = self.estimate(x, t, measurement.label)
        theta = estimate.clean
        for _ in range(self.options.inner_steps):
            theta = theta - self.options.step_size * self._norm_gradient(theta, measurement)
        clean = interpolate(estimate.clean, theta, t)
        noise = estimate.noise
        if self.options.stochastic:
            noise = t_next**0.5 * noise + (1 - t_next) ** 0.5 * draw()
        return Step(interpolate(clean, noise, t_next), clean)

    def _norm_gradient(self, theta: Tensor, measurement: Measurement) -> Tensor:
        """Gradient of |R (A D(theta) - y)| through operator and decoder."""
        images, decode_vjp = self.codec.decode_with_vjp(theta)
        with torch.enable_grad():
            leaf = images.detach().requires_grad_(True)
            residual = measurement.residual(leaf)
            mapped = self._mapped(residual, measurement.operator)
            gradient = torch.autograd.grad(smooth_norms(mapped).sum(), leaf)[0]
        return decode_vjp(gradient)

    def _mapped(self, residual: Tensor, operator: Operator) -> Tensor:
        """R r. Raises UserError for a map that an operator which is not linear does not have."""
        how = self.options.residual_map
        if how == "auto":
            how = "pinv" if operator.linear and operator.measurement_shape != operator.image_shape else "identity"
        if how == "identity":
            return residual
        if not operator.linear:
            raise UserError(f"method.residual_map: {how} needs a linear operator; take auto or identity.")
        return operator.pinv(residual) if how == "pinv" else operator.adjoint(residual)
