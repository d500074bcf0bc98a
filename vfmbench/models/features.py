"""Feature spaces: networks seen as image embeddings for metrics."""

from __future__ import annotations

import torch
from torch import Tensor

from vfmbench.models.classifier import SmallClassifier
from vfmbench.models.images import to_float
from vfmbench.models.weights import Weights


class ClassifierFeatures:
    """Penultimate features of a `SmallClassifier`; implements `vfmbench.interfaces.FeatureSpace`."""

    def __init__(self, name: str, weights: Weights, device: torch.device):
        self.name, self.weights_sha256, self._device = name, weights.sha256, device
        self._network = SmallClassifier(**weights.entry["architecture"]["classifier"])
        self._network.load_state_dict(weights.part("classifier"))
        self._network.eval().requires_grad_(False).to(device)

    def features(self, images: Tensor) -> Tensor:
        return self._network.features(to_float(images.to(self._device))).cpu()

    def classify(self, images: Tensor) -> Tensor:
        return self._network(to_float(images.to(self._device))).argmax(1).cpu()
