"""Training of the embedded feature space: a classifier of the suite's classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from vfmbench.interfaces import Suite
from vfmbench.models.classifier import SmallClassifier
from vfmbench.training.batches import Batch, whole_split
from vfmbench.training.stage import Stage, TrainingOptions
from vfmbench.weights.store import WeightStore


class FeatureStage(Stage):
    """Cross-entropy on noisy training images; noise keeps the features meaningful for imperfect samples."""

    name = "features"

    class Options(TrainingOptions):
        input_noise: float = Field(0.1, ge=0, description="standard deviation of the noise added to images in [-1, 1]")
        label_smoothing: float = Field(0.05, ge=0, lt=1)

    options: Options

    def __init__(self, suite: Suite, options: TrainingOptions, weights: WeightStore, device: torch.device):
        super().__init__(suite, options, weights, device)
        self._architecture = self._resolve(self.suite, self.options)
        self.networks = {"classifier": SmallClassifier(**self._architecture).to(self.device)}

    @staticmethod
    def _resolve(suite: Suite, options: TrainingOptions) -> dict[str, Any]:
        return {"in_channels": suite.image_shape[0], "num_classes": suite.num_classes, **options.architecture}

    @classmethod
    def check(cls, suite: Suite, options: TrainingOptions) -> None:
        SmallClassifier(**cls._resolve(suite, options))

    def loss(self, batch: Batch, ema: Mapping[str, nn.Module]) -> tuple[Tensor, dict[str, Tensor]]:
        images, label = self._loader.load(batch.positions)
        images = images + self.options.input_noise * batch.normal(*images.shape[1:])
        logits = self.networks["classifier"](images)
        loss = F.cross_entropy(logits, label, label_smoothing=self.options.label_smoothing)
        return loss, {"cross_entropy": loss.detach()}

    @torch.no_grad()
    def evaluate(self, ema: Mapping[str, nn.Module], split: str, rows: int) -> dict[str, float]:
        images, label = whole_split(self.suite, split, self.device, self.options.validate_images)
        return {"accuracy": (ema["classifier"](images).argmax(1) == label).float().mean().item()}

    def manifest(self) -> dict[str, Any]:
        return {"architecture": {"classifier": self._architecture}}
