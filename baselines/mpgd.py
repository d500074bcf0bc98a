"""MPGD: the clean estimate takes a gradient step on the data term, then goes back to the noise level along the same noise.

Source: He et al., Manifold Preserving Guided Diffusion (ICLR 2024, arXiv 2311.16424), algorithm 1 (without projection), in
flow-matching form and deterministic. The network's Jacobian is taken as the identity.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field
from torch import Tensor

from vfmbench.baselines.guidance import (
    Coordinates,
    Draw,
    GuidanceOptions,
    GuidanceSampler,
    Step,
    directed,
    interpolate,
    state_scale,
)
from vfmbench.measurement import Measurement


class MPGD(GuidanceSampler):
    """MPGD: the clean estimate takes the gradient step; the network is not differentiated.

    clean' = clean - c_t U(grad 1/2 |A D(clean) - y|^2), x' = (1-t') clean' + t' noise.

    With c_t = zeta / (1-t'), the authors' code in this form, the next state moves by zeta: FlowChef with one inner step.
    """

    class Options(GuidanceOptions):
        step_size: float = Field(1.0, ge=0, description="zeta")
        rule: Literal["unit", "residual"] = Field("unit", description="U: gradient of length 1, or gradient of |r|")
        scaling: Literal["state", "clean"] = Field("state", description="what moves by zeta: next state or clean estimate")
        coordinates: Coordinates = Field("flow", description="whose states zeta moves, if it moves a state")

    options: Options

    @classmethod
    def original(cls, problem: str) -> Mapping[str, Any]:
        """The released linear-problem settings for 100 steps without projection."""
        coordinates = {"coordinates": "variance_preserving"}
        return {"steps": 100, "guidance_scale": 1.0, "rule": "residual", "step_size": 4.0, **coordinates}

    def step(self, x: Tensor, t: float, t_next: float, measurement: Measurement, draw: Draw) -> Step:
        estimate = self.estimate(x, t, measurement.label)
        correction = directed(*self.clean_gradient(estimate.clean, measurement), self.options.rule)
        length = self.options.step_size
        if self.options.scaling == "state":
            length = length / ((1 - t_next) * state_scale(self.options.coordinates, t_next))
        clean = estimate.clean - length * correction
        # The noise of the unguided estimate: recomputed from the guided one, it would undo most of the step.
        return Step(interpolate(clean, estimate.noise, t_next), clean)
