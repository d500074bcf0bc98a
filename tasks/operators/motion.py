"""Motion blur: a convolution with a kernel of its own for every image."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from scipy.fft import next_fast_len
from torch import Tensor

from vfmbench.tasks.kernels import PINV_TOLERANCE
from vfmbench.tasks.operators.base import BatchedOperator, ImageShape
from vfmbench.tasks.operators.least_squares import least_squares

# Up to this size grouped convolution beats the FFT in float32 (CPU, 8 to 256 pixels); in float64 it loses from 5 on.
_LARGEST_DIRECT_KERNEL = 15

_PINV_ITERATIONS = 500


class MotionBlur(BatchedOperator):
    """y = k * x for every image and channel, k correlated as in `torch.nn.functional.conv2d`, with reflect padding.

    `pinv` is the least-squares solution of least norm by conjugate gradients on the normal equations, each image on its own,
    until |A^T (A x - y)| <= PINV_TOLERANCE |A^T y| or 500 iterations.

    Args:
        kernel: [B,k,k], k odd, k // 2 smaller than H and W; float64 for exact adjoints in float64.
        image_shape: (C, H, W).
    """

    _per_row = ("_kernel",)

    def __init__(self, kernel: Tensor, image_shape: ImageShape):
        super().__init__(len(kernel), image_shape)
        self._kernel = kernel
        self._radius = kernel.shape[-1] // 2

    def _forward(self, x: Tensor) -> Tensor:
        return _correlate(F.pad(x, (self._radius,) * 4, mode="reflect"), self._kernel.to(x.dtype))

    def _adjoint(self, y: Tensor) -> Tensor:
        spread = _spread(y, self._kernel.to(y.dtype))
        return _fold(_fold(spread, self._radius, -1), self._radius, -2)

    def _pinv(self, y: Tensor) -> Tensor:
        return least_squares(self._forward, self._adjoint, y, PINV_TOLERANCE, _PINV_ITERATIONS)


def _correlate(x: Tensor, kernel: Tensor) -> Tensor:
    """Valid correlation: [B,C,H,W] with [B,k,k] -> [B,C,H-k+1,W-k+1]."""
    batch, channels, height, width = x.shape
    trim = kernel.shape[-1] - 1
    if _is_direct(x, kernel):
        y = F.conv2d(x.reshape(1, -1, height, width), _weight(kernel, channels), groups=batch * channels)
        return y.reshape(batch, channels, height - trim, width - trim)
    # The circular transform spoils only the last k - 1 rows and columns, which a valid correlation does not have.
    lengths = _lengths(height, width)
    spectrum = torch.fft.rfft2(x, lengths)
    spectrum *= torch.fft.rfft2(kernel, lengths).conj()[:, None]
    return torch.fft.irfft2(spectrum, lengths)[..., : height - trim, : width - trim]


def _spread(y: Tensor, kernel: Tensor) -> Tensor:
    """Transpose of `_correlate`, a full convolution: [B,C,H,W] with [B,k,k] -> [B,C,H+k-1,W+k-1]."""
    batch, channels, height, width = y.shape
    full_height, full_width = height + kernel.shape[-1] - 1, width + kernel.shape[-1] - 1
    if _is_direct(y, kernel):
        x = F.conv_transpose2d(y.reshape(1, -1, height, width), _weight(kernel, channels), groups=batch * channels)
        return x.reshape(batch, channels, full_height, full_width)
    lengths = _lengths(full_height, full_width)
    spectrum = torch.fft.rfft2(y, lengths)
    spectrum *= torch.fft.rfft2(kernel, lengths)[:, None]
    return torch.fft.irfft2(spectrum, lengths)[..., :full_height, :full_width]


def _is_direct(x: Tensor, kernel: Tensor) -> bool:
    return x.dtype == torch.float32 and kernel.shape[-1] <= _LARGEST_DIRECT_KERNEL


def _weight(kernel: Tensor, channels: int) -> Tensor:
    """One filter a group of a grouped convolution: [B*C,1,k,k]."""
    return kernel[:, None].repeat_interleave(channels, 0)


def _lengths(height: int, width: int) -> list[int]:
    return [next_fast_len(height, real=True), next_fast_len(width, real=True)]


def _fold(z: Tensor, radius: int, dim: int) -> Tensor:
    """Transpose of reflect padding along one dimension: the padded borders are added back onto the pixels they came from."""
    if radius == 0:
        return z
    size = z.shape[dim] - 2 * radius
    before, inside, after = z.split([radius, size, radius], dim)
    inside = inside.clone()
    inside.narrow(dim, 1, radius).add_(before.flip(dim))
    inside.narrow(dim, size - 1 - radius, radius).add_(after.flip(dim))
    return inside
