"""Training of the embedded feature space of photographs, `photonet`: which photograph a patch is from, and what was done to it.

A classifier alone learns to overlook blur, noise and holes, which is what metrics of restored images must see; so the features
also have to tell how much of each an image has.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, Protocol, cast, runtime_checkable

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from vfmbench.errors import UserError
from vfmbench.interfaces import Suite
from vfmbench.models.photonet import PhotoNet
from vfmbench.training.batches import Batch, whole_split
from vfmbench.training.stage import Stage, TrainingOptions
from vfmbench.weights.store import WeightStore

DEGRADATIONS = ("blur", "noise", "pixelation", "box")
LARGEST_BLUR = 3.0
LARGEST_NOISE = 0.3
BLOCKS = (1, 2, 4, 8)
BOX_SIDES = (0.125, 0.625)

# Cosines with orthogonal directions have squares that add up to 1 at most, and all amounts may be 1.
_AMOUNT_OF_COSINE = len(DEGRADATIONS) ** 0.5

AUGMENTATION_NUMBERS = 7
DEGRADATION_NUMBERS = 11


@runtime_checkable
class _Photographs(Protocol):
    """What a training split must have beyond a `vfmbench.interfaces.Dataset`."""

    num_photographs: int

    def photograph(self, index: Tensor) -> Tensor:
        """Which of the photographs each patch is from, int64 [B] -> int64 [B]."""


class _CosineHead(nn.Module):
    """Cosines of features with learned directions, [B,d] -> [B,size].

    A linear head would be content with features that hardly change where they should, and make its weights large instead; but
    it is the features' distances that metrics see.
    """

    def __init__(self, feature_size: int, size: int):
        super().__init__()
        self.directions = nn.Parameter(torch.randn(size, feature_size))

    def forward(self, features: Tensor) -> Tensor:
        return F.linear(F.normalize(features), F.normalize(self.directions))


class PhotographStage(Stage):
    """Cross-entropy of the training photograph and squared errors of the degradations' amounts, both read off cosines.

    The training split must tell which photograph each patch is from, as that of photos64 does.
    """

    name = "features"

    class Options(TrainingOptions):
        label_smoothing: float = Field(0.1, ge=0, lt=1)
        cosine_scale: float = Field(16.0, gt=0, description="of the cosines that are the classifier's logits")
        degradation_share: float = Field(0.3, gt=0, le=1, description="of the patches that each degradation is applied to")
        degradation_weight: float = Field(10.0, ge=0, description="of the amounts' squared error beside the cross-entropy")

    options: Options

    def __init__(self, suite: Suite, options: TrainingOptions, weights: WeightStore, device: torch.device):
        super().__init__(suite, options, weights, device)
        self._photographs = cast(_Photographs, self.suite.dataset("train"))
        self._architecture = self._resolve(self.suite, self.options)
        photonet = PhotoNet(**self._architecture)
        sizes = {"photograph": self._photographs.num_photographs, "amounts": len(DEGRADATIONS)}
        heads = nn.ModuleDict({name: _CosineHead(photonet.feature_size, size) for name, size in sizes.items()})
        self.networks = {"photonet": photonet.to(self.device), "heads": heads.to(self.device)}

    @staticmethod
    def _resolve(suite: Suite, options: TrainingOptions) -> dict[str, Any]:
        return {"in_channels": suite.image_shape[0], **options.architecture}

    @classmethod
    def check(cls, suite: Suite, options: TrainingOptions) -> None:
        if not isinstance(suite.dataset("train"), _Photographs):
            raise UserError(f"features.objective: patches of the suite {suite.name} do not say which photograph they are from.")
        PhotoNet(**cls._resolve(suite, options))

    def loss(self, batch: Batch, ema: Mapping[str, nn.Module]) -> tuple[Tensor, dict[str, Tensor]]:
        images, _ = self._loader.load(batch.positions)
        uniform = batch.uniform(AUGMENTATION_NUMBERS + DEGRADATION_NUMBERS)
        of_augmentation, of_degradation = uniform.split([AUGMENTATION_NUMBERS, DEGRADATION_NUMBERS], 1)
        images = augmented(images, of_augmentation)
        noise = batch.normal(*images.shape[1:])
        images, amounts = degraded(images, of_degradation, noise, self.options.degradation_share)
        features = self.networks["photonet"](images)
        heads: Any = self.networks["heads"]
        cross_entropy = F.cross_entropy(
            self.options.cosine_scale * heads["photograph"](features),
            self._photographs.photograph(batch.positions).to(self.device),
            label_smoothing=self.options.label_smoothing,
        )
        error = F.mse_loss(_AMOUNT_OF_COSINE * heads["amounts"](features), amounts)
        terms = {"cross_entropy": cross_entropy.detach(), "amounts_error": error.detach()}
        return cross_entropy + self.options.degradation_weight * error, terms

    @torch.no_grad()
    def evaluate(self, ema: Mapping[str, nn.Module], split: str, rows: int) -> dict[str, float]:
        """Share of the amounts' variance that is explained, and of patches whose other corner is the nearest of all.

        Both corners are three quarters of a side wide, and one of them is augmented. None of it depends on the training's
        photographs.
        """
        images, _ = whole_split(self.suite, split, self.device, self.options.validate_images)
        generator = torch.Generator().manual_seed(0)
        uniform = torch.rand(len(images), AUGMENTATION_NUMBERS + DEGRADATION_NUMBERS, generator=generator).to(self.device)
        noise = torch.randn(images.shape, generator=generator).to(self.device)
        of_augmentation, of_degradation = uniform.split([AUGMENTATION_NUMBERS, DEGRADATION_NUMBERS], 1)
        changed, amounts = degraded(images, of_degradation, noise, self.options.degradation_share)
        heads: Any = ema["heads"]
        found = _AMOUNT_OF_COSINE * heads["amounts"](self._embedded(ema, changed))
        explained = 1 - (found - amounts).square().sum(0) / (amounts - amounts.mean(0)).square().sum(0)
        side = images.shape[-1] * 3 // 4
        one = self._embedded(ema, images[..., :side, :side])
        other = self._embedded(ema, augmented(images[..., -side:, -side:], of_augmentation))
        nearest = torch.cdist(one, other).argmin(1)
        retrieved = (nearest == torch.arange(len(images), device=self.device)).float().mean().item()
        return {"retrieval": retrieved} | {
            f"explained_{name}": value for name, value in zip(DEGRADATIONS, explained.tolist(), strict=True)
        }

    def _embedded(self, ema: Mapping[str, nn.Module], images: Tensor) -> Tensor:
        return torch.cat([ema["photonet"](piece) for piece in images.split(self.options.batch_size)])

    def manifest(self) -> dict[str, Any]:
        return {"architecture": {"photonet": self._architecture}}


def augmented(images: Tensor, uniform: Tensor) -> Tensor:
    """Images [B,3,H,W] in [-1, 1], mirrored or not, each channel's contrast changed by 25 % and its level by 0.2 at most.

    Less would leave the mean colour as what tells photographs apart best.

    Args:
        uniform: numbers in [0, 1), [B, AUGMENTATION_NUMBERS].
    """
    mirror, gain, level = uniform[:, :, None, None].split([1, 3, 3], 1)
    images = torch.where(mirror < 0.5, images.flip(3), images)
    return (images * (0.75 + 0.5 * gain) + 0.4 * (level - 0.5)).clamp(-1, 1)


def degraded(images: Tensor, uniform: Tensor, noise: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Blurs, pixelates, makes noisy and covers by a box a random `share` of the images each, in this order.

    The amount a, uniform in (0, 1], is a Gaussian blur of standard deviation 3 a^2 pixels, noise of 0.3 a^2, pixels of size 2,
    4 and 8 (a = 1/3, 2/3 and 1), or a box of 5/8 a of the image's side, at least 1/8, filled with grey or the image's mean.

    Args:
        images: square, [B,C,S,S] in [-1, 1].
        uniform: numbers in [0, 1), [B, DEGRADATION_NUMBERS].
        noise: standard normal numbers, [B,C,S,S].

    Returns:
        images in [-1, 1], and the amounts in the order of `DEGRADATIONS`, [B,4]; 0 where a degradation was not applied.
    """
    count, size = len(DEGRADATIONS), images.shape[-1]
    chosen, strength, place, fill = uniform.split([count, count, 2, 1], 1)
    # In half precision, small amounts of blur would be lost in rounding.
    with torch.autocast(images.device.type, enabled=False):
        blur, dots, pixels, box = (1 - strength).unbind(1)
        level = (pixels * (len(BLOCKS) - 1)).ceil()
        box = BOX_SIDES[0] + (BOX_SIDES[1] - BOX_SIDES[0]) * box
        amounts = torch.stack([blur, dots, level / (len(BLOCKS) - 1), box / BOX_SIDES[1]], 1) * (chosen < share)
        blur, dots, pixels, box = amounts.unbind(1)
        averages = _block_averages(size, images.device)[(pixels * (len(BLOCKS) - 1)).round().long()]
        matrix = (averages @ _gaussian_blurs(LARGEST_BLUR * blur.square(), size))[:, None]
        mean = images.mean((2, 3), keepdim=True)
        images = matrix @ images @ matrix.mT + LARGEST_NOISE * dots.square()[:, None, None, None] * noise
        side = (BOX_SIDES[1] * box * size).round()[:, None]
        start = (place * (size - side + 1)).floor()
        pixel = torch.arange(size, device=images.device)
        rows, columns = ((pixel >= start[:, :, None]) & (pixel < (start + side)[:, :, None])).unbind(1)
        inside = (rows[:, :, None] & columns[:, None, :])[:, None]
        colour = torch.where(fill[:, :, None, None] < 0.5, mean, 0.0)
        return torch.where(inside, colour, images).clamp(-1, 1), amounts


def _gaussian_blurs(std: Tensor, size: int) -> Tensor:
    """Blur matrices for standard deviations [B] in pixels, the kernel renormalised at the border: [B,size,size]."""
    pixel = torch.arange(size, device=std.device, dtype=std.dtype)
    # Below a tenth of a pixel the neighbours' weights vanish, and 0 would be divided by.
    distance = (pixel[:, None] - pixel) / std.clamp_min(0.1)[:, None, None]
    return torch.softmax(-0.5 * distance.square(), -1)


@cache
def _block_averages(size: int, device: torch.device) -> Tensor:
    """Matrices that replace each pixel by the mean of its block, for each size in `BLOCKS`: [4,size,size]."""
    pixel = torch.arange(size, device=device)
    same = torch.stack([pixel[:, None] // block == pixel // block for block in BLOCKS]).float()
    return same / same.sum(2, keepdim=True)
