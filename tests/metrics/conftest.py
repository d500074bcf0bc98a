"""Small evaluation sets, and feature spaces that are plain arithmetic."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from vfmbench.metrics.evaluation import EvaluationSet


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
