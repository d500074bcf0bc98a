"""Operators that act on rows and columns independently: A X = L X R^T with small dense matrices."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from vfmbench.tasks.kernels import (
    PINV_TOLERANCE,
    bicubic_inverse,
    bicubic_matrix,
    bicubic_svd,
    gaussian_matrix,
    gaussian_svd,
)
from vfmbench.tasks.operators.base import BatchedOperator, ImageShape


def _sandwich(left: Tensor, x: Tensor, right: Tensor) -> Tensor:
    """left x right^T for every channel of x [B,C,H,W]."""
    return left @ (x @ right.mT)


def _filtered(left: tuple[Tensor, ...], right: tuple[Tensor, ...], y: Tensor, gain: Callable[[Tensor], Tensor]) -> Tensor:
    """An inverse of A X = L X R^T from the decompositions (U, s, V^T) of L and R: each component times gain(singular value)."""
    left_u, left_s, left_vt = left
    right_u, right_s, right_vt = right
    return _sandwich(left_vt.mT, gain(left_s[:, None] * right_s) * _sandwich(left_u.mT, y, right_u.mT), right_vt.mT)


def _tikhonov_gain(weight: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda singular: singular / (singular.square() + weight)


class SuperResolution(BatchedOperator):
    """Bicubic reduction with antialiasing, MATLAB's imresize; exact adjoint W^T Y W and pseudo-inverse W^+ Y W^{+T}.

    `to_image` repeats every pixel factor x factor times, as published solvers do (neither the adjoint nor the inverse).

    Args:
        rows: number of images.
        image_shape: (C, H, W), H and W multiples of the factor.
        factor: integer of at least 1.
    """

    def __init__(self, rows: int, image_shape: ImageShape, factor: int):
        channels, height, width = image_shape
        super().__init__(rows, image_shape, (channels, height // factor, width // factor))
        self.factor = factor

    def _matrices(self, like: Tensor) -> tuple[Tensor, Tensor]:
        _, height, width = self.image_shape
        return bicubic_matrix(like, height, self.factor)[0], bicubic_matrix(like, width, self.factor)[0]

    def _forward(self, x: Tensor) -> Tensor:
        left, right = self._matrices(x)
        return _sandwich(left, x, right)

    def _adjoint(self, y: Tensor) -> Tensor:
        left, right = self._matrices(y)
        return _sandwich(left.mT, y, right.mT)

    def _pinv(self, y: Tensor) -> Tensor:
        _, height, width = self.image_shape
        return _sandwich(bicubic_inverse(y, height, self.factor)[0], y, bicubic_inverse(y, width, self.factor)[0])

    def _tikhonov(self, y: Tensor, weight: Tensor) -> Tensor:
        _, height, width = self.image_shape
        left, right = bicubic_svd(y, height, self.factor), bicubic_svd(y, width, self.factor)
        return _filtered(left, right, y, _tikhonov_gain(weight))

    def _to_image(self, y: Tensor) -> Tensor:
        return y.repeat_interleave(self.factor, -2).repeat_interleave(self.factor, -1)


class GaussianBlur(BatchedOperator):
    """Gaussian blur with reflect padding (the border pixel is not repeated).

    The blur is numerically singular, so `pinv` is that of the operator whose singular values below PINV_TOLERANCE times the
    largest are set to zero: |A^T (A x - y)| <= PINV_TOLERANCE |A| |y|.

    Args:
        rows: number of images.
        image_shape: (C, H, W), H and W larger than kernel_size // 2.
        kernel_size: odd number of taps.
        std: standard deviation in pixels.
    """

    def __init__(self, rows: int, image_shape: ImageShape, kernel_size: int, std: float):
        super().__init__(rows, image_shape)
        _, height, width = image_shape
        self._height_key = (height, kernel_size, std)
        self._width_key = (width, kernel_size, std)

    def _forward(self, x: Tensor) -> Tensor:
        return _sandwich(gaussian_matrix(x, *self._height_key)[0], x, gaussian_matrix(x, *self._width_key)[0])

    def _adjoint(self, y: Tensor) -> Tensor:
        return _sandwich(gaussian_matrix(y, *self._height_key)[0].mT, y, gaussian_matrix(y, *self._width_key)[0].mT)

    def _pinv(self, y: Tensor) -> Tensor:
        def gain(singular: Tensor) -> Tensor:
            return (1 / singular).where(singular > PINV_TOLERANCE * singular.max(), 0)

        return _filtered(gaussian_svd(y, *self._height_key), gaussian_svd(y, *self._width_key), y, gain)

    def _tikhonov(self, y: Tensor, weight: Tensor) -> Tensor:
        left, right = gaussian_svd(y, *self._height_key), gaussian_svd(y, *self._width_key)
        return _filtered(left, right, y, _tikhonov_gain(weight))
