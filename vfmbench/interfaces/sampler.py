"""The base of every method."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor

from vfmbench.interfaces.data import Task
from vfmbench.interfaces.suite import Backbone, Suite
from vfmbench.measurement import Measurement, NoiseSource, Samples
from vfmbench.metering import Meter
from vfmbench.options import SamplerOptions


class Sampler(ABC):
    """Draws posterior samples. Built once a run; a subclass has `sample`, and changes what else it needs.

    >>> class FromNothing(Sampler):
    ...     def sample(self, measurement, num_samples, noise):
    ...         x = noise.normal(measurement.operator.image_shape, draw=0)
    ...         return Samples(x.unflatten(0, (len(measurement), num_samples)))

    Attributes:
        Options: what `--set method.key=value` may change.
        weights: names of the suite's weight files that this method needs; their hashes become part of the run's identity. A
            method that needs any has the codec too; "codec" is for one that needs nothing else.
        suite, options, backbone: as given. The networks of `backbone` are read when they are first asked for.
    """

    Options: ClassVar[type[SamplerOptions]] = SamplerOptions
    weights: ClassVar[Sequence[str]] = ()
    options: SamplerOptions

    def __init__(self, suite: Suite, options: SamplerOptions, backbone: Backbone):
        self.suite, self.options, self.backbone = suite, options, backbone

    @property
    def meter(self) -> Meter:
        """Counts the evaluations of its networks."""
        return self.backbone.meter

    @classmethod
    def supports(cls, task: Task, suite: Suite) -> tuple[bool, str]:
        """Whether this method can run, and the reason if not, or a caution to show beside the result. Must not load weights."""
        return True, ""

    @classmethod
    def preset(cls, name: str, method: str, task: Task, suite: Suite) -> Mapping[str, Any]:
        """Options by name, or from a file where the name ends in .yaml or .yml; here its defaults under every preset.

        Raises MissingError where nothing has been tuned.
        """
        return {}

    @abstractmethod
    def sample(self, measurement: Measurement, num_samples: int, noise: NoiseSource) -> Samples:
        """Draws `num_samples` samples for each row.

        `noise` has len(measurement) * num_samples rows, those of one measurement adjacent.
        """

    def sample_prior(self, noise: NoiseSource) -> Tensor | None:
        """One draw from the method's own prior for each row of the noise, [rows,C,H,W]; None if it has no such prior.

        Suites whose domain keeps sources judge it beside the posterior.
        """
        return None
