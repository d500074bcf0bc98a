"""The feature space of FID: torch-fidelity's InceptionV3."""

from __future__ import annotations

import io

import torch
from torch import Tensor

from vfmbench.models.images import require_rgb
from vfmbench.weights.external import ExternalWeights

_BATCH = 64


class InceptionFeatures:
    """The 2048 pooled features of InceptionV3 with the weights ported from TensorFlow; a `vfmbench.interfaces.FeatureSpace`.

    The network resizes by itself: bilinear to 299x299 as TensorFlow 1 did (no antialiasing, corners not aligned), then
    (x - 128) / 128.

    Raises:
        UserError: the weights are not this network's.
    """

    name = "inception"

    def __init__(self, weights: ExternalWeights, device: torch.device):
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        def build(tensors: dict[str, Tensor]) -> None:
            # The extractor unpickles any object from the file it is given. It is given the tensors that were read safely.
            copy = io.BytesIO()
            torch.save(tensors, copy)
            copy.seek(0)
            self._network = FeatureExtractorInceptionV3(self.name, ["2048"], feature_extractor_weights_path=copy).to(device)

        weights.fill(build)
        self.weights_sha256, self._device = weights.sha256, device
        self.settings = f"{weights.origin}; torch-fidelity's InceptionV3, 2048 pooled features, its own bilinear resize to 299"

    def features(self, images: Tensor) -> Tensor:
        """Raises UserError unless the images have three channels."""
        require_rgb(images, 1, self.name)
        with torch.no_grad():
            return torch.cat([self._network(batch.to(self._device))[0].cpu() for batch in images.split(_BATCH)])

    def classify(self, images: Tensor) -> None:
        """None: its classes are not those of any data set here."""
        return None
