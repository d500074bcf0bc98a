"""The base of every method, and what is tried when its options are chosen."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from pydantic import Field
from torch import Tensor

from vfmbench.interfaces.data import Task
from vfmbench.interfaces.suite import Backbone, Suite
from vfmbench.measurement import Measurement, NoiseSource, Samples
from vfmbench.metering import Meter
from vfmbench.options import Options, SamplerOptions


class MethodGrid(Options):
    """What `vfmbench tune` tries for a method: every combination of the values in `grid`, on top of `fixed`.

    >>> MethodGrid(fixed={"steps": 50}, grid={"step_size": (0.3, 1.0), "shift": (1.0, 3.0)})  # four trials
    """

    grid: dict[str, tuple[Any, ...]] = Field(min_length=1)
    fixed: dict[str, Any] = Field(default_factory=dict)


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

    @classmethod
    def grid(cls, method: str, suite: str) -> MethodGrid | None:
        """What `vfmbench tune` tries for this method on a suite; None where it has nothing to choose from.

        Args:
            method: the name that it is registered under.
        """
        return None

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
