"""What a sampler sees and gives: measurements and their operators, random numbers, samples and what they cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol, Self, runtime_checkable

import torch
from torch import Tensor


@runtime_checkable
class NoiseSource(Protocol):
    """Random numbers keyed by (seed, stream, image index, sample index, draw); see `vfmbench.randomness`."""

    def normal(self, shape: Sequence[int], draw: int) -> Tensor:
        """Standard normal numbers [rows, *shape], float32; the same (row, draw) always gives the same numbers."""

    def uniform(self, shape: Sequence[int], draw: int) -> Tensor:
        """Uniform numbers in [0, 1), [rows, *shape], float32."""


class Operator(Protocol):
    """A batched forward operator A; row b of a batch is measured with row b's own parameters (mask, kernel, ...).

    Attributes:
        linear: whether `<A x, y> = <x, adjoint(y)>` holds for all x, y.
        image_shape: (C, H, W) of one input image.
        measurement_shape: shape of one measurement.
        observed: boolean mask broadcastable to [B, *measurement_shape], True where an entry carries signal; None if all do.
            Entries outside hold pure noise, and data-fidelity terms must leave them out.
    """

    linear: bool
    image_shape: tuple[int, int, int]
    measurement_shape: tuple[int, ...]
    observed: Tensor | None

    def __len__(self) -> int:
        """Number of rows."""

    def forward(self, x: Tensor) -> Tensor:
        """A x: [B,C,H,W] -> [B, *measurement_shape]; differentiable."""

    def adjoint(self, y: Tensor) -> Tensor:
        """A^T y: [B, *measurement_shape] -> [B,C,H,W]."""

    def pinv(self, y: Tensor) -> Tensor:
        """A^+ y, exact or a least-squares solution to the tolerance that the class states: -> [B,C,H,W]."""

    def tikhonov(self, y: Tensor, weight: Tensor) -> Tensor:
        """argmin_x |A x - y|^2 + weight |x|^2, exact or to the tolerance that the class states: -> [B,C,H,W].

        `weight` is positive, [B,1,1,1] or [1,1,1,1].
        """

    def to_image(self, y: Tensor) -> Tensor:
        """T y, the observation as an image, as an adapter sees it: -> [B,C,H,W]."""

    def repeat(self, times: int) -> Self:
        """Every row `times` times in a row (as `torch.repeat_interleave`), for several samples of one measurement."""

    def to(self, device: torch.device | str) -> Self:
        """The same operator with its parameters on `device`."""


@dataclass(frozen=True)
class Measurement:
    """All a sampler ever sees of a batch of images.

    Attributes:
        y: [B, *operator.measurement_shape].
        operator: the B rows' operator.
        noise_std: standard deviation of the noise in y, broadcastable to y ([B,1,...] or y's shape).
        label: class of each image, int64 [B]; zeros where the data has no classes.
        index: position of each image in its split, int64 [B].
        condition: what a noise adapter is conditioned on: the name of a task, e.g. "gaussian_deblur".
    """

    y: Tensor
    operator: Operator
    noise_std: Tensor
    label: Tensor
    index: Tensor
    condition: str

    def __len__(self) -> int:
        return len(self.y)

    def repeat(self, times: int) -> Measurement:
        """Every row `times` times in a row."""
        return replace(
            self,
            y=self.y.repeat_interleave(times, 0),
            operator=self.operator.repeat(times),
            noise_std=self.noise_std.repeat_interleave(times, 0),
            label=self.label.repeat_interleave(times, 0),
            index=self.index.repeat_interleave(times, 0),
        )

    def residual(self, images: Tensor) -> Tensor:
        """A x - y, zero at entries that carry no signal: [B, *measurement_shape]."""
        difference = self.operator.forward(images) - self.y
        return difference if self.operator.observed is None else difference * self.operator.observed

    def normalised_residual(self, images: Tensor) -> Tensor:
        """Root mean square of (A x - y) / noise_std over the observed entries, [B]; about 1 for the true image."""
        squared = (self.residual(images) / self.noise_std).square()
        return (squared.flatten(1).sum(1) / self.observed_entries().flatten(1).sum(1).clamp_min(1)).sqrt()

    def log_likelihood(self, images: Tensor) -> Tensor:
        """log p(y | x) of Gaussian noise in nats, summed over the observed entries, [B]."""
        squared = (self.residual(images) / self.noise_std).square()
        entries = -0.5 * (squared + math.log(2 * math.pi) + 2 * self.noise_std.log())
        return (entries * self.observed_entries()).flatten(1).sum(1)

    def observed_entries(self) -> Tensor:
        """1 where an entry of y carries signal, 0 elsewhere; in y's shape."""
        observed = self.operator.observed
        return torch.ones_like(self.y) if observed is None else observed.expand_as(self.y).to(self.y)


@dataclass(frozen=True)
class Evaluations:
    """How often networks ran for one sample, each branch of classifier-free guidance counted."""

    adapter_forwards: float = 0
    network_forwards: float = 0
    network_vjps: float = 0
    decoder_forwards: float = 0
    decoder_vjps: float = 0
    encoder_forwards: float = 0
    encoder_vjps: float = 0


@dataclass(frozen=True)
class Samples:
    """Posterior samples, all [B,S,C,H,W].

    Attributes:
        images: in [-1, 1], before the shared round-and-clamp (points: of any range).
        latents: what they were decoded from.
        source: the noise at t = 1 that a deterministic map took to each of them; stored for points only.
        effective_samples: number of independent draws that the S samples of each measurement are worth, [B]; None: all S.
            Several calls for one image are taken to draw from one source: 1 / effective = 1 / S + 1 / (worth of the source).
    """

    images: Tensor
    latents: Tensor | None = None
    source: Tensor | None = None
    effective_samples: Tensor | None = None
