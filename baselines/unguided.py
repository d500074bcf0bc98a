"""The prior's ODE without guidance: what a guidance solver is at strength zero, and the floor of every table."""

from __future__ import annotations

from torch import Tensor

from vfmbench.baselines.guidance import Draw, GuidanceSampler, Step
from vfmbench.interfaces import Measurement


class Unguided(GuidanceSampler):
    """Samples of the prior, of the image's class where there are classes: x' = x + (t' - t) v."""

    def step(self, x: Tensor, t: float, t_next: float, measurement: Measurement, draw: Draw) -> Step:
        estimate = self.estimate(x, t, measurement.label)
        return Step(estimate.euler(t_next), estimate.clean)
