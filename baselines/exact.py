"""Draws from the posterior itself, where a suite knows it: what a perfect sampler scores under every metric."""

from __future__ import annotations

from vfmbench.errors import UserError
from vfmbench.interfaces import Backbone, Sampler, Suite, Task
from vfmbench.measurement import Measurement, NoiseSource, Samples
from vfmbench.options import SamplerOptions


class ExactPosteriorSampler(Sampler):
    """Independent draws from the posterior under `suite.prior`; no network runs."""

    def __init__(self, suite: Suite, options: SamplerOptions, backbone: Backbone):
        super().__init__(suite, options, backbone)
        if suite.prior is None:
            raise UserError(f"The posterior is not known in the suite {suite.name}.")
        self._prior = suite.prior

    @classmethod
    def supports(cls, task: Task, suite: Suite) -> tuple[bool, str]:
        known = suite.prior is not None
        return known, "" if known else f"the posterior is not known in the suite {suite.name}"

    def sample(self, measurement: Measurement, num_samples: int, noise: NoiseSource) -> Samples:
        """Raises UserError for a task under which the posterior is not known."""
        return Samples(self._prior.posterior(measurement).sample(num_samples, noise))
