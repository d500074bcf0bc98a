"""FlowChef: corrects the state by the data term's gradient at the clean estimate, the velocity held fixed; then an Euler step.

Source: Patel et al., Steering Rectified Flow Models in the Vector Field (ICCV 2025, arXiv 2412.00100), algorithm 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field
from torch import Tensor

from vfmbench.baselines.guidance import Draw, GuidanceOptions, GuidanceSampler, Step, directed
from vfmbench.measurement import Measurement


class FlowChef(GuidanceSampler):
    """FlowChef: the state takes the gradient step at a fixed velocity; the network is not differentiated.

    x <- x - zeta U(grad 1/2 |A D(x - t v) - y|^2), K times with the same v; x' = x + (t' - t) v.
    """

    class Options(GuidanceOptions):
        step_size: float = Field(1.0, ge=0, description="zeta: L2 length of each correction, or its size per entry")
        rule: Literal["unit", "sign"] = Field("unit", description="U: gradient of length 1, or its sign")
        inner_steps: int = Field(1, ge=1, description="K, corrections in each step")
        guide_last: bool = Field(True, description="also correct in the last step")

    options: Options

    @classmethod
    def original(cls, problem: str) -> Mapping[str, Any]:
        """The released latent settings: one step of a fresh Adam is a sign step, of 0.5 for boxes and 0.02 otherwise.

        Their loss on masked latents for boxes has no counterpart here: the data term is that of decoded pixels throughout.
        """
        box = problem == "inpaint_box"
        return {"steps": 200 if box else 100, "guidance_scale": 1.0, "rule": "sign", "step_size": 0.5 if box else 0.02}

    def step(self, x: Tensor, t: float, t_next: float, measurement: Measurement, draw: Draw) -> Step:
        estimate = self.estimate(x, t, measurement.label)
        shift = x.new_zeros(())
        if t_next > 0 or self.options.guide_last:
            for _ in range(self.options.inner_steps):
                gradient = self.clean_gradient(estimate.clean + shift, measurement)
                shift = shift - self.options.step_size * directed(*gradient, self.options.rule)
        return Step(estimate.euler(t_next) + shift, estimate.clean + shift)
