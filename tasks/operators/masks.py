"""Operators that keep or drop pixels: denoising and inpainting."""

from __future__ import annotations

from torch import Tensor

from vfmbench.tasks.operators.base import BatchedOperator, ImageShape


class Identity(BatchedOperator):
    """A = I; adjoint and exact pseudo-inverse are I too."""

    def _forward(self, x: Tensor) -> Tensor:
        return x

    def _adjoint(self, y: Tensor) -> Tensor:
        return y

    def _pinv(self, y: Tensor) -> Tensor:
        return y

    def _tikhonov(self, y: Tensor, weight: Tensor) -> Tensor:
        return y / (1 + weight)


class Mask(BatchedOperator):
    """A x = m x with a binary mask of its own for every image; A = A^T = A^+ exactly.

    A measurement also holds noise where m = 0, and `to_image` shows it, as the paper's adapter is trained on it. Nothing else
    depends on those entries.

    Args:
        observed: bool [B,1,H,W], True where a pixel is kept, in all channels.
        image_shape: (C, H, W).
    """

    observed: Tensor
    _per_row = ("observed",)

    def __init__(self, observed: Tensor, image_shape: ImageShape):
        super().__init__(len(observed), image_shape)
        self.observed = observed

    def _forward(self, x: Tensor) -> Tensor:
        return x * self.observed

    def _adjoint(self, y: Tensor) -> Tensor:
        return y * self.observed

    def _pinv(self, y: Tensor) -> Tensor:
        return y * self.observed

    def _tikhonov(self, y: Tensor, weight: Tensor) -> Tensor:
        return y * self.observed / (1 + weight)
