"""Feature spaces: networks seen as image embeddings for metrics."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from vfmbench.domains import IMAGES
from vfmbench.interfaces import FeatureSpace
from vfmbench.models.classifier import SmallClassifier
from vfmbench.models.dino import DinoFeatures
from vfmbench.models.feature_cache import CachedFeatures, cache_folder
from vfmbench.models.inception import InceptionFeatures
from vfmbench.models.photonet import PhotoNet
from vfmbench.registry import feature_spaces
from vfmbench.weights.external import ExternalPaths, load_external
from vfmbench.weights.store import Weights

_BATCH = 256


def external_space(name: str, paths: ExternalPaths, device: torch.device) -> FeatureSpace:
    """One of the registered spaces, ready on `device`.

    Raises:
        MissingError: its weights are not there.
        UserError: an unknown name, or weights that the user names and that are not the network's.
    """
    load: Callable[[ExternalPaths, torch.device], FeatureSpace] = feature_spaces.get(name)
    return load(paths, device)


def inception(paths: ExternalPaths, device: torch.device) -> FeatureSpace:
    """torch-fidelity's InceptionV3; its features are cached on disk."""
    weights = load_external("inception", paths.path_of("inception"))
    return CachedFeatures(InceptionFeatures(weights, device), cache_folder())


def dino(paths: ExternalPaths, device: torch.device) -> FeatureSpace:
    """DINO ViT-S/16; its features are cached on disk."""
    return CachedFeatures(DinoFeatures(load_external("dino", paths.path_of("dino")), device), cache_folder())


def embedded_space(name: str, weights: Weights, device: torch.device) -> FeatureSpace:
    """The space of a suite's own weights, ready on `device`; their manifest entry names the network."""
    (kind,) = weights.entry["architecture"]
    return _EMBEDDED_SPACES[kind](name, weights, device)


class ClassifierFeatures:
    """Penultimate features of a `SmallClassifier`; implements `vfmbench.interfaces.FeatureSpace`."""

    settings = ""

    def __init__(self, name: str, weights: Weights, device: torch.device):
        self.name, self.weights_sha256, self._device = name, weights.sha256, device
        self._network = SmallClassifier(**weights.entry["architecture"]["classifier"])
        weights.fill(self._network, "classifier")
        self._network.eval().requires_grad_(False).to(device)

    def features(self, images: Tensor) -> Tensor:
        return self._network.features(IMAGES.restore(images.to(self._device))).cpu()

    def classify(self, images: Tensor) -> Tensor:
        return self._network(IMAGES.restore(images.to(self._device))).argmax(1).cpu()


class PhotoFeatures:
    """Features of a `PhotoNet`; implements `vfmbench.interfaces.FeatureSpace`."""

    settings = ""

    def __init__(self, name: str, weights: Weights, device: torch.device):
        self.name, self.weights_sha256, self._device = name, weights.sha256, device
        self._network = PhotoNet(**weights.entry["architecture"]["photonet"])
        weights.fill(self._network, "photonet")
        self._network.eval().requires_grad_(False).to(device)

    def features(self, images: Tensor) -> Tensor:
        return torch.cat([self._network(IMAGES.restore(batch.to(self._device))).cpu() for batch in images.split(_BATCH)])

    def classify(self, images: Tensor) -> None:
        """None: it knows its training's photographs, and no classes."""
        return None


_EMBEDDED_SPACES: Mapping[str, Callable[[str, Weights, torch.device], FeatureSpace]] = {
    "classifier": ClassifierFeatures,
    "photonet": PhotoFeatures,
}
