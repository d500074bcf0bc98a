"""A small convolutional network on photographs; its features are the embedded feature space `photonet`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_NORM_GROUPS = 8

# Side of the blocks of the cosine transform. The next block is one pixel less further on, so that all phases occur.
_BLOCK = 4

# Amplitude at which the logarithm levels off, twice that of rounding images to 8 bits.
_FLOOR = 0.005


class PhotoNet(nn.Module):
    """Residual stages at 1/2, 1/4, 1/8, ... of the resolution, and two layers on spatial means of what is in an image.

    The means are those of every stage's activations, for content, and of the log amplitudes of the cosine transform of 4x4
    blocks, in which noise, sharpness and pixelation stand out: the mean of a logarithm is that of flat regions as much as of
    edges. Features are centred and have the norm sqrt(feature_size): otherwise contrast, which varies most among photographs,
    would outweigh all else in every distance.

    Takes any batch of images [B, in_channels, H, W] in [-1, 1] with even H and W of at least 4; returns [B, feature_size].

    Args:
        channels: of each stage, multiples of 8.
    """

    def __init__(self, in_channels: int = 3, channels: Sequence[int] = (32, 48, 96, 128), feature_size: int = 64):
        super().__init__()
        self.first = nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(4 * in_channels, channels[0], 3, padding=1), nn.SiLU())
        self.stages = nn.ModuleList(
            nn.Sequential(_convolution(narrow, wide, stride=2), _Residual(wide)) for narrow, wide in pairwise(channels)
        )
        means = _BLOCK**2 * in_channels + sum(channels)
        hidden = 2 * feature_size
        self.last = nn.Sequential(
            nn.Linear(means, hidden),
            nn.LayerNorm(hidden),
            nn.SiLU(),
            nn.Linear(hidden, feature_size),
            nn.LayerNorm(feature_size, elementwise_affine=False),
        )
        self.feature_size = feature_size
        self._cosines: Tensor
        self.register_buffer("_cosines", _cosine_transform(), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        x = self.first(images)
        means = [self._log_amplitudes(images), x.mean((2, 3))]
        for stage in self.stages:
            x = stage(x)
            means.append(x.mean((2, 3)))
        return self.last(torch.cat(means, 1))

    def _log_amplitudes(self, images: Tensor) -> Tensor:
        """Spatial means of each channel's log amplitude at each frequency, [B, 16 in_channels]."""
        # Half precision would round the images more coarsely than 8 bits do.
        with torch.autocast(images.device.type, enabled=False):
            transformed = F.conv2d(images.flatten(0, 1)[:, None], self._cosines, stride=_BLOCK - 1)
            amplitudes = 0.5 * (transformed / _FLOOR).square().log1p()
            return amplitudes.mean((2, 3)).unflatten(0, images.shape[:2]).flatten(1)


class _Residual(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.body = _convolution(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


def _convolution(narrow: int, wide: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(narrow, wide, 3, stride, padding=1), nn.GroupNorm(_NORM_GROUPS, wide), nn.SiLU())


def _cosine_transform() -> Tensor:
    """The orthonormal two-dimensional cosine transform (DCT-II) of a block as filters: [16,1,4,4]."""
    k = torch.arange(_BLOCK, dtype=torch.float64)
    rows = (2 / _BLOCK) ** 0.5 * (math.pi / _BLOCK * (k + 0.5) * k[:, None]).cos()
    rows[0] /= 2**0.5
    return (rows[:, None, :, None] * rows[None, :, None, :]).float().view(_BLOCK**2, 1, _BLOCK, _BLOCK)
