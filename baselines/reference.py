"""Trivial reconstructions that anchor a table: the adjoint and the pseudo-inverse of the observation."""

from __future__ import annotations

import torch
from torch import Tensor

from vfmbench.base import Options
from vfmbench.interfaces import Measurement, NoiseSource, Samples, Suite, Task
from vfmbench.models.metering import Meter


class Reference:
    """One deterministic image per measurement, repeated for every sample."""

    Options = Options
    weights = ()

    def __init__(self, suite: Suite, options: Options, device: torch.device):
        self.meter = Meter(device)

    @classmethod
    def supports(cls, task: Task, suite: Suite) -> tuple[bool, str]:
        return task.linear, "" if task.linear else f"{task.name} is not linear"

    def reconstruct(self, measurement: Measurement) -> Tensor:
        """[B,C,H,W]."""
        raise NotImplementedError

    def sample(self, measurement: Measurement, num_samples: int, noise: NoiseSource) -> Samples:
        images = self.reconstruct(measurement)
        return Samples(images[:, None].expand(-1, num_samples, -1, -1, -1))


class Adjoint(Reference):
    """A^T y."""

    def reconstruct(self, measurement: Measurement) -> Tensor:
        return measurement.operator.adjoint(measurement.y)


class PseudoInverse(Reference):
    """A^+ y."""

    def reconstruct(self, measurement: Measurement) -> Tensor:
        return measurement.operator.pinv(measurement.y)
