"""Latent DPS: Euler steps of the prior's ODE, corrected by the gradient of the data term at the clean estimate.

Source: Chung et al., Diffusion Posterior Sampling (ICLR 2023, arXiv 2209.14687), algorithm 1, in flow-matching
form; the step is the VFM paper's: a unit gradient per sample. The gradient passes operator, decoder and network.
"""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from vfmbench.baselines.guidance import GuidanceOptions, GuidanceSampler, data_gradient, unit
from vfmbench.interfaces import Measurement


class LatentDPS(GuidanceSampler):
    """x' = x + (t' - t) v - zeta * unit(grad_x 1/2 |A D(x - t v) - y|^2)."""

    class Options(GuidanceOptions):
        step_size: float = Field(1.0, ge=0, description="zeta, the L2 length of each correction")

    options: Options

    def step(self, x: Tensor, t: float, t_next: float, measurement: Measurement) -> Tensor:
        velocity, clean, clean_vjp = self.clean_estimate(x, t, measurement.label)
        images, decode_vjp = self.codec.decode_with_vjp(clean)
        gradient = clean_vjp(decode_vjp(data_gradient(measurement, images)))
        return x + (t_next - t) * velocity - self.options.step_size * unit(gradient)
