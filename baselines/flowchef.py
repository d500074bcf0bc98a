"""FlowChef: corrects the state by the data term's gradient at the clean estimate, the velocity held fixed; then an Euler step.

Source: Patel et al., Steering Rectified Flow Models in the Vector Field (ICCV 2025, arXiv 2412.00100), algorithm 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field
from torch import Tensor
from torch.nn.functional import interpolate

from vfmbench.baselines.guidance import Draw, GuidanceOptions, GuidanceSampler, Step, directed, norms
from vfmbench.errors import UserError
from vfmbench.measurement import Measurement


class FlowChef(GuidanceSampler):
    """FlowChef: the state takes the gradient step at a fixed velocity; the network is not differentiated.

    x <- x - zeta U(grad 1/2 |A D(x - t v) - y|^2), K times with the same v; x' = x + (t' - t) v.

    For a mask, the data term may be that of latents: 1/2 |m (x - t v - E(A^T y))|^2, m being the mask at the latents' size.
    """

    class Options(GuidanceOptions):
        step_size: float = Field(1.0, ge=0, description="zeta: L2 length of each correction, or its size per entry")
        rule: Literal["unit", "sign"] = Field("unit", description="U: gradient of length 1, or its sign")
        inner_steps: int = Field(1, ge=1, description="K, corrections in each step")
        guide_last: bool = Field(True, description="also correct in the last step")
        data_term: Literal["pixels", "latents"] = Field("pixels", description="what is compared; latents: of a mask only")

    options: Options

    @classmethod
    def original(cls, problem: str) -> Mapping[str, Any]:
        """The released latent settings: one step of a fresh Adam is a sign step, of 0.5 on masked latents for boxes and 0.02
        on decoded pixels otherwise.
        """
        if problem == "inpaint_box":
            return {"steps": 200, "guidance_scale": 1.0, "rule": "sign", "step_size": 0.5, "data_term": "latents"}
        return {"steps": 100, "guidance_scale": 1.0, "rule": "sign", "step_size": 0.02}

    def step(self, x: Tensor, t: float, t_next: float, measurement: Measurement, draw: Draw) -> Step:
        estimate = self.estimate(x, t, measurement.label)
        shift = x.new_zeros(())
        if t_next > 0 or self.options.guide_last:
            gradient_of = self.clean_gradient if self.options.data_term == "pixels" else self._latent_gradient
            for _ in range(self.options.inner_steps):
                gradient = gradient_of(estimate.clean + shift, measurement)
                shift = shift - self.options.step_size * directed(*gradient, self.options.rule)
        return Step(estimate.euler(t_next) + shift, estimate.clean + shift)

    def _latent_gradient(self, clean: Tensor, measurement: Measurement) -> tuple[Tensor, Tensor]:
        """Gradient of 1/2 |m (z - E(A^T y))|^2 at the latent z, [B,c,h,w], and |m (z - E(A^T y))|, [B].

        m is 1 where more than half of what a latent stands for is observed, so that what lies in a hole is left to the prior.

        Raises UserError for an operator that is not a mask.
        """
        operator = measurement.operator
        if operator.observed is None or operator.measurement_shape != operator.image_shape:
            raise UserError("method.data_term: latents are compared under a mask only; take pixels for this task.")
        share = interpolate(operator.observed.float(), clean.shape[-2:], mode="bilinear", antialias=True)
        difference = (share > 0.5) * (clean - self.codec.encode(operator.adjoint(measurement.y)))
        return difference, norms(difference)
