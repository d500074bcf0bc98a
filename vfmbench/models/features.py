"""Feature spaces: networks seen as image embeddings for metrics."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from vfmbench.interfaces import FeatureSpace
from vfmbench.models.classifier import SmallClassifier
from vfmbench.models.dino import DinoFeatures
from vfmbench.models.external import ExternalPaths, ExternalWeights, load_external
from vfmbench.models.feature_cache import CachedFeatures, cache_folder
from vfmbench.models.images import to_float
from vfmbench.models.inception import InceptionFeatures
from vfmbench.models.weights import Weights
from vfmbench.registry import unknown_name

EXTERNAL_SPACES: Mapping[str, Callable[[ExternalWeights, torch.device], FeatureSpace]] = {
    "inception": InceptionFeatures,
    "dino": DinoFeatures,
}


def external_space(name: str, paths: ExternalPaths, device: torch.device) -> FeatureSpace:
    """One of `EXTERNAL_SPACES`, ready on `device`, its features cached on disk.

    Raises:
        MissingError: its weights are not there.
        UserError: an unknown name, or weights that the user names and that are not the network's.
    """
    if name not in EXTERNAL_SPACES:
        raise unknown_name("feature space", name, EXTERNAL_SPACES)
    return CachedFeatures(EXTERNAL_SPACES[name](load_external(name, paths.path_of(name)), device), cache_folder())


class ClassifierFeatures:
    """Penultimate features of a `SmallClassifier`; implements `vfmbench.interfaces.FeatureSpace`."""

    settings = ""

    def __init__(self, name: str, weights: Weights, device: torch.device):
        self.name, self.weights_sha256, self._device = name, weights.sha256, device
        self._network = SmallClassifier(**weights.entry["architecture"]["classifier"])
        self._network.load_state_dict(weights.part("classifier"))
        self._network.eval().requires_grad_(False).to(device)

    def features(self, images: Tensor) -> Tensor:
        return self._network.features(to_float(images.to(self._device))).cpu()

    def classify(self, images: Tensor) -> Tensor:
        return self._network(to_float(images.to(self._device))).argmax(1).cpu()
