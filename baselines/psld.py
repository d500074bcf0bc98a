"""PSLD: Latent DPS with a second term that asks the clean estimate to be a fixed point of decoding, gluing and encoding.

Source: Rout et al., Solving Linear Inverse Problems Provably via Posterior Sampling with Latent Diffusion Models (NeurIPS 2023,
arXiv 2307.00619), algorithm 2, in flow-matching form on the deterministic ODE. As in the released code, norms are not squared;
unlike it, no noise is added to the predicted measurement and the encoder's mean is used.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from vfmbench.baselines.guidance import (
    Coordinates,
    Draw,
    GuidanceOptions,
    GuidanceSampler,
    Step,
    per_sample,
    smooth_norms,
    state_scale,
    unit,
)
from vfmbench.errors import UserError
from vfmbench.interfaces import Backbone, Suite
from vfmbench.measurement import Measurement


class PSLD(GuidanceSampler):
    """PSLD: Latent DPS with a term that keeps latents on the autoencoder's fixed points.

    x' = x + (t' - t) v - c grad_x [omega |A p - y| + gamma |E(p + T (y - A p)) - clean|], p = D(clean), clean = x - t v.
    """

    needs_linear = True

    class Options(GuidanceOptions):
        omega: float = Field(1.0, ge=0, description="weight of the measurement term")
        gamma: float = Field(0.1, ge=0, description="weight of the gluing term")
        step_size: float = Field(1.0, ge=0, description="c")
        rule: Literal["raw", "unit"] = Field("raw", description="take the gradient as it is, or at length 1")
        coordinates: Coordinates = Field("flow", description="whose states c moves")
        back_projection: Literal["auto", "adjoint", "pinv", "to_image"] = Field(
            "auto", description="T; auto: pseudo-inverse where A reduces the number of pixels, else identity (zero in holes)"
        )

    options: Options

    def __init__(self, suite: Suite, options: Options, backbone: Backbone):
        super().__init__(suite, options, backbone)
        if not self.codec.has_encoder:
            raise UserError("PSLD compares latents with re-encoded images, and this suite's codec has no encoder.")

    @classmethod
    def original(cls, problem: str) -> Mapping[str, Any]:
        """The released defaults on Stable Diffusion; boxes have weights of their own."""
        weights = {"omega": 0.1, "gamma": 0.01} if problem == "inpaint_box" else {"omega": 1.0, "gamma": 0.1}
        return {"steps": 1000, "guidance_scale": 7.5, "coordinates": "variance_preserving", **weights}

    def step(self, x: Tensor, t: float, t_next: float, measurement: Measurement, draw: Draw) -> Step:
        estimate, clean_vjp = self.estimate_with_vjp(x, t, measurement.label)
        gradient = clean_vjp(self._clean_gradient(estimate.clean, measurement))
        before, after = (state_scale(self.options.coordinates, time) for time in (t, t_next))
        correction = (unit(gradient) if self.options.rule == "unit" else gradient / before) / after
        return Step(estimate.euler(t_next) - self.options.step_size * correction, estimate.clean)

    def _clean_gradient(self, clean: Tensor, measurement: Measurement) -> Tensor:
        """Gradient of both terms at the clean estimate: one pass back through the encoder, one through the decoder."""
        images, decode_vjp = self.codec.decode_with_vjp(clean)
        with torch.enable_grad():
            leaf = images.detach().requires_grad_(True)
            # Zero wherever y carries no signal, so that the noise in a hole is never pasted into the image.
            residual = measurement.residual(leaf)
            misfit = self.options.omega * smooth_norms(residual).sum()
            glued = leaf - self._back_project(residual, measurement)
            encoded, encode_vjp = self.codec.encode_with_vjp(glued.detach())
            gap = encoded - clean
            direction = self.options.gamma * gap / per_sample(smooth_norms(gap), gap)
            gradient = torch.autograd.grad([misfit, glued], leaf, [None, encode_vjp(direction)])[0]
        return decode_vjp(gradient) - direction

    def _back_project(self, residual: Tensor, measurement: Measurement) -> Tensor:
        operator, how = measurement.operator, self.options.back_projection
        if how == "auto":
            how = "to_image" if operator.measurement_shape == operator.image_shape else "pinv"
        project = {"adjoint": operator.adjoint, "pinv": operator.pinv, "to_image": operator.to_image}[how]
        return project(residual)
