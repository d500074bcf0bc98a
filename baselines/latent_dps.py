"""Latent DPS: Euler steps of the prior's ODE, corrected by the gradient of the data term at the clean estimate.

Source: Chung et al., Diffusion Posterior Sampling (ICLR 2023, arXiv 2209.14687), algorithm 1, in flow-matching form, on the
deterministic ODE; the default step is the VFM paper's, a unit gradient per sample. The gradient passes operator, decoder and
network; without the network's part the method is FlowChef with one inner step.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field
from torch import Tensor

from vfmbench.baselines.guidance import Coordinates, Draw, GuidanceOptions, GuidanceSampler, Step, directed, state_scale
from vfmbench.measurement import Measurement


class LatentDPS(GuidanceSampler):
    """Latent DPS: ODE steps corrected by the data term's gradient through decoder and network.

    x' = x + (t' - t) v - zeta U(grad_x 1/2 |A D(x - t v) - y|^2).
    """

    class Options(GuidanceOptions):
        step_size: float = Field(1.0, ge=0, description="zeta: L2 length of each correction, or factor of the gradient of |r|")
        rule: Literal["unit", "residual"] = Field("unit", description="U: gradient of length 1, or gradient of |r|")
        coordinates: Coordinates = Field("flow", description="whose states zeta moves")

    options: Options

    @classmethod
    def original(cls, problem: str) -> Mapping[str, Any]:
        """The released code's step on the gradient of |r|, 1000 steps; its ancestral noise is not part of an ODE."""
        step_size = 0.5 if problem.startswith("inpaint") else 0.3
        coordinates = {"coordinates": "variance_preserving"}
        return {"steps": 1000, "guidance_scale": 1.0, "rule": "residual", "step_size": step_size, **coordinates}

    def step(self, x: Tensor, t: float, t_next: float, measurement: Measurement, draw: Draw) -> Step:
        estimate, clean_vjp = self.estimate_with_vjp(x, t, measurement.label)
        clean_gradient, residual_norm = self.clean_gradient(estimate.clean, measurement)
        before, after = (state_scale(self.options.coordinates, time) for time in (t, t_next))
        correction = directed(clean_vjp(clean_gradient) / before, residual_norm, self.options.rule) / after
        return Step(estimate.euler(t_next) - self.options.step_size * correction, estimate.clean)
