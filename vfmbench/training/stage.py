"""What the trainer needs of an objective. Objectives live beside the method that they belong to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from vfmbench.base import Options
from vfmbench.interfaces import Dataset, Suite
from vfmbench.models.images import to_float
from vfmbench.models.weights import WeightStore


class TrainingOptions(Options):
    """Options that every stage shares."""

    architecture: dict[str, Any] = Field(default_factory=dict, description="keyword arguments of the trained networks")
    steps: int = Field(ge=1)
    batch_size: int = Field(256, ge=2)
    learning_rate: float = Field(1e-4, gt=0)
    warmup_steps: int = Field(0, ge=0)
    schedule: str = Field("constant", pattern="^(constant|cosine)$", description="of the learning rate after the warm-up")
    weight_decay: float = Field(0.0, ge=0)
    gradient_clip: float | None = Field(1.0, gt=0, description="norm, each network by itself; null: none")
    adam_beta2: float = Field(0.95, gt=0, lt=1)
    precision: Literal["float32", "bfloat16"] = Field("float32", description="of the forward passes; weights stay float32")
    ema_decay: float = Field(0.9999, ge=0, lt=1)
    validate_every: int = Field(200, ge=1)
    checkpoint_every: int = Field(100, ge=1)
    seed: int = Field(0, ge=0)


class Stage:
    """One training stage: its networks, loss and evaluation. Subclasses set `networks` before training starts.

    Attributes:
        name: of the stage and of its weight file.
        needs: stages whose weights it starts from.
        networks: the trained networks by name; each gets its own AdamW optimiser and its own clipping.
    """

    name: ClassVar[str]
    needs: ClassVar[tuple[str, ...]] = ()
    Options: ClassVar[type[TrainingOptions]]
    networks: Mapping[str, nn.Module]

    def __init__(self, suite: Suite, options: TrainingOptions, weights: WeightStore, device: torch.device):
        self.suite, self.options, self.weights, self.device = suite, options, weights, device

    @classmethod
    def check(cls, suite: Suite, options: Any) -> None:
        """Cheap checks before any stage is trained. Raises UserError, or TypeError or ValueError for a wrong architecture."""

    def inputs(self) -> dict[str, str]:
        """SHA-256 of all that the stage starts from: the training split and the weights of earlier stages."""
        hashes = {f"{name} weights": self.weights.sha256(name) for name in self.needs}
        return {"training data": self.suite.dataset("train").sha256, **hashes}

    def loss(self, step: int, generator: torch.Generator, ema: Mapping[str, nn.Module]) -> tuple[Tensor, dict[str, Tensor]]:
        """The scalar to minimise and the terms to log. All randomness comes from `generator` (on the CPU) or from `step`."""
        raise NotImplementedError

    def evaluate(self, ema: Mapping[str, nn.Module], split: str) -> dict[str, float]:
        """Numbers of the EMA networks on `split`: drawn as validation curves, and on the test split written to the manifest."""
        raise NotImplementedError

    def manifest(self) -> dict[str, Any]:
        """Manifest fields that loading needs, at least `architecture`."""
        raise NotImplementedError


class Batches:
    """Random training batches of a data set on a device, drawn with replacement."""

    def __init__(self, dataset: Dataset, device: torch.device):
        self._dataset, self._device = dataset, device

    def draw(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Images [size,C,H,W] in [-1,1] and labels [size]."""
        rows = torch.randint(len(self._dataset), (size,), generator=generator)
        images, labels = self._dataset.load(rows.tolist())
        return to_float(images.to(self._device)), labels.to(self._device)


def whole_split(dataset: Dataset, device: torch.device) -> tuple[Tensor, Tensor]:
    """All images in [-1,1] and labels of a small split."""
    images, labels = dataset.load(range(len(dataset)))
    return to_float(images.to(device)), labels.to(device)
