"""The prior's ODE without guidance: what a guidance solver is at strength zero, and the floor of every table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from vfmbench.baselines.guidance import Draw, GuidanceSampler, Step
from vfmbench.interfaces import Suite, Task
from vfmbench.measurement import Measurement


class Unguided(GuidanceSampler):
    """Samples of the prior, of the image's class where there are classes: x' = x + (t' - t) v."""

    @classmethod
    def preset(cls, name: str, method: str, task: Task, suite: Suite) -> Mapping[str, Any]:
        """Its defaults under every name: there is nothing to tune."""
        return {}

    def step(self, x: Tensor, t: float, t_next: float, measurement: Measurement, draw: Draw) -> Step:
        estimate = self.estimate(x, t, measurement.label)
        return Step(estimate.euler(t_next), estimate.clean)
