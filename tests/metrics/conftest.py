"""Small evaluation sets, feature spaces that are plain arithmetic, and a posterior that is known exactly."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from vfmbench.domains import POINTS
from vfmbench.measurement import NoiseSource
from vfmbench.metrics.evaluation import EvaluationSet
from vfmbench.randomness import PhiloxNoise, sample_rows


class PixelSpace:
    """The first `dimension` pixels, shifted and scaled, as features; the class is the brighter half of them."""

    weights_sha256 = "0" * 64
    settings = ""

    def __init__(self, name: str = "pixels", dimension: int = 6):
        self.name = name
        self.dimension = dimension
        self.batches: list[int] = []

    def features(self, images: Tensor) -> Tensor:
        self.batches.append(len(images))
        return images.flatten(1)[:, : self.dimension].float() / 64 + 0.1

    def classify(self, images: Tensor) -> Tensor | None:
        first, second = self.features(images).chunk(2, dim=1)
        return (second.sum(1) > first.sum(1)).long()


@pytest.fixture
def pixel_space() -> type[PixelSpace]:
    return PixelSpace


@pytest.fixture
def make_set() -> Callable[..., EvaluationSet]:
    """`make_set(n, S, shape, noise)`: random true images, and samples that are the truth with noise (in 8-bit levels)."""

    def make(
        n: int = 12, count: int = 4, shape: tuple[int, int, int] = (1, 8, 8), noise: float = 40, **fields
    ) -> EvaluationSet:
        generator = torch.Generator().manual_seed(0)
        truth = torch.randint(0, 256, (n, *shape), generator=generator, dtype=torch.uint8)
        shifts = noise * torch.randn((n, count, *shape), generator=generator)
        samples = (truth[:, None] + shifts).clamp(0, 255).round().to(torch.uint8)
        return EvaluationSet(truth=truth, samples=samples, **{"planned": n, **fields})

    return make


class TwoSquares:
    """Row i is uniform on [0,1)^2 with probability p_i, and else on [2,3) x [0,1)."""

    def __init__(self, first: Tensor):
        self.first = first.double()

    def __len__(self) -> int:
        return len(self.first)

    def sample(self, count: int, noise: NoiseSource) -> Tensor:
        uniform = noise.uniform((3,), 0).double().reshape(len(self), count, 3)
        shift = 2.0 * (uniform[..., 0] >= self.first[:, None])
        return torch.stack([uniform[..., 1] + shift, uniform[..., 2]], -1).float()[..., None, None]

    def log_density(self, points: Tensor) -> Tensor:
        return (self.mode_shares(points) * self.mode_weights()[:, None]).sum(-1).log()

    def mode_weights(self) -> Tensor:
        return torch.stack([self.first, 1 - self.first], 1)

    def mode_shares(self, points: Tensor) -> Tensor:
        x, y = points.flatten(2).unbind(-1)
        inside = (y >= 0) & (y < 1)
        return torch.stack([inside & (x >= 0) & (x < 1), inside & (x >= 2) & (x < 3)], -1).double()


@pytest.fixture
def two_squares() -> type[TwoSquares]:
    return TwoSquares


@pytest.fixture
def make_points() -> Callable[..., EvaluationSet]:
    """`make_points(n, S, p, scale)`: truth, samples and prior from the posterior, the samples stretched about the origin."""

    def make(n: int = 12, count: int = 10, first: float = 0.3, scale: float = 1.0, seed: int = 0, **fields) -> EvaluationSet:
        posterior = TwoSquares(torch.full((n,), first))
        rows = sample_rows(torch.arange(n), range(count))
        truth, samples, prior = (
            posterior.sample(count, PhiloxNoise(seed, stream, *rows)) for stream in ("truth", "samples", "prior")
        )
        known = {"domain": POINTS, "samples": scale * samples, "exact": posterior, "prior": prior, "planned": n}
        return EvaluationSet(truth=truth[:, 0].clone(), **{**known, **fields})

    return make
