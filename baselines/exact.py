"""Draws from the posterior itself, where a suite knows it: what a perfect sampler scores under every metric."""

from __future__ import annotations

import torch

from vfmbench.interfaces import Suite, Task
from vfmbench.measurement import Measurement, NoiseSource, Samples
from vfmbench.models.metering import Meter
from vfmbench.options import SamplerOptions


class ExactPosteriorSampler:
    """Independent draws from `suite.posterior(measurement)`; no network runs."""

    Options = SamplerOptions
    weights = ()

    def __init__(self, suite: Suite, options: SamplerOptions, device: torch.device):
        self._suite = suite
        self.meter = Meter(device)

    @classmethod
    def supports(cls, task: Task, suite: Suite) -> tuple[bool, str]:
        return suite.posterior_known, "" if suite.posterior_known else f"the posterior is not known in the suite {suite.name}"

    def sample(self, measurement: Measurement, num_samples: int, noise: NoiseSource) -> Samples:
        """Raises UserError for a task under which the suite does not know its posterior."""
        return Samples(self._suite.posterior(measurement).sample(num_samples, noise))
