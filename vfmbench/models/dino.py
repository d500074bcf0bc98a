"""The feature space of DINO: a self-supervised vision transformer."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from vfmbench.models.images import require_rgb
from vfmbench.weights.external import ExternalWeights

_BATCH = 64
_SIDE = 224


class DinoFeatures:
    """The 384 features of the class token of timm's `vit_small_patch16_224.dino`; a `vfmbench.interfaces.FeatureSpace`.

    Caron et al. 2021, "Emerging properties in self-supervised vision transformers". Preprocessing: the whole image (no crop)
    to 224x224, bicubic with antialiasing, clamped to [0, 1], normalised by ImageNet's mean and standard deviation.

    Raises:
        UserError: the weights are not this network's.
    """

    name = "dino"

    def __init__(self, weights: ExternalWeights, device: torch.device):
        import timm
        from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

        self._network = timm.create_model("vit_small_patch16_224.dino", pretrained=False, num_classes=0)
        weights.fill(self._network.load_state_dict)
        self._network.eval().requires_grad_(False).to(device)
        self._mean = torch.tensor(IMAGENET_DEFAULT_MEAN, device=device)[:, None, None]
        self._std = torch.tensor(IMAGENET_DEFAULT_STD, device=device)[:, None, None]
        self.weights_sha256, self._device = weights.sha256, device
        self.settings = (
            f"{weights.origin}; DINO ViT-S/16, 384 features of the class token, whole image resized to {_SIDE} (bicubic, "
            "antialiased), normalised by ImageNet's mean and standard deviation"
        )

    def features(self, images: Tensor) -> Tensor:
        """Raises UserError unless the images have three channels."""
        require_rgb(images, 1, self.name)
        with torch.no_grad():
            return torch.cat([self._network(self._prepare(batch)).cpu() for batch in images.split(_BATCH)])

    def _prepare(self, images: Tensor) -> Tensor:
        unit = images.to(self._device).float() / 255
        resized = interpolate(unit, size=(_SIDE, _SIDE), mode="bicubic", antialias=True).clamp(0, 1)
        return (resized - self._mean) / self._std

    def classify(self, images: Tensor) -> None:
        """None: DINO was trained without classes."""
        return None
