"""Nonlinear operators: clipped exposure and phase retrieval."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from vfmbench.tasks.operators.base import ImageShape, NonlinearOperator


class HDR(NonlinearOperator):
    """High dynamic range reconstruction: y = clip(2 x, -1, 1), an exposure that burns out; `to_image` is y."""

    def _forward(self, x: Tensor) -> Tensor:
        return (2 * x).clamp(-1, 1)


class PhaseRetrieval(NonlinearOperator):
    """Amplitude of the centred, orthonormal Fourier transform of the zero-padded image.

    As in DPS and DAPS, the image is first mapped to [0, 1] (padding is black), and oversampling 2 means padding by 2/8 of the
    side at both ends, so that a measurement has (3/2)^2 = 2.25 times as many entries as the image has pixels.

    `to_image` is the logarithm of the central H x W amplitudes, scaled so that no light is -1 and the largest possible
    amplitude (that of zero frequency for a white image) is 1.

    Args:
        rows: number of images.
        image_shape: (C, H, W).
    """

    def __init__(self, rows: int, image_shape: ImageShape):
        channels, height, width = image_shape
        self._pad_rows, self._pad_columns = height // 4, width // 4
        super().__init__(rows, image_shape, (channels, height + 2 * self._pad_rows, width + 2 * self._pad_columns))

    def _forward(self, x: Tensor) -> Tensor:
        padded = F.pad((x + 1) / 2, (self._pad_columns, self._pad_columns, self._pad_rows, self._pad_rows))
        return torch.fft.fftshift(torch.fft.fft2(padded, norm="ortho"), dim=(-2, -1)).abs()

    def _to_image(self, y: Tensor) -> Tensor:
        _, height, width = self.image_shape
        largest = height * width / math.sqrt(y.shape[-2] * y.shape[-1])
        centre = y[..., self._pad_rows : self._pad_rows + height, self._pad_columns : self._pad_columns + width]
        # Noise can push an amplitude below zero.
        return 2 * torch.log1p(centre.clamp_min(0)) / math.log1p(largest) - 1
