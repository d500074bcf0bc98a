"""The one-dimensional matrices of separable operators.

Matrices depend on a few integers only, so they are built once in float64 with NumPy, kept in a cache, and handed out in the
dtype and on the device of the tensor they will multiply.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, wraps

import numpy as np
import torch
from torch import Tensor

# Relative size below which singular values of a blur count as zero, and at which its iterative solver stops.
PINV_TOLERANCE = 1e-2


def _cached_matrices(build: Callable[..., tuple[np.ndarray, ...]]) -> Callable[..., tuple[Tensor, ...]]:
    """Turns `build(*key)` into `f(like, *key)`: the same arrays as tensors of `like`'s dtype on its device, each made once."""
    build_once = lru_cache(maxsize=64)(build)

    @lru_cache(maxsize=64)
    def convert(dtype: torch.dtype, device: torch.device, *key) -> tuple[Tensor, ...]:
        # A tensor born in inference mode could never take part in a later training step.
        with torch.inference_mode(False):
            return tuple(torch.from_numpy(array).to(device, dtype) for array in build_once(*key))

    @wraps(build)
    def lookup(like: Tensor, *key) -> tuple[Tensor, ...]:
        return convert(like.dtype, like.device, *key)

    return lookup


def _keys_cubic(distance: np.ndarray) -> np.ndarray:
    """Keys' cubic interpolation kernel with a = -1/2 ("Cubic convolution interpolation", 1981, eq. 15)."""
    d = np.abs(distance)
    near = 1.5 * d**3 - 2.5 * d**2 + 1
    far = -0.5 * d**3 + 2.5 * d**2 - 4 * d + 2
    return np.where(d <= 1, near, np.where(d < 2, far, 0.0))


def _bicubic(size: int, factor: int) -> np.ndarray:
    """Antialiased bicubic reduction of `size` samples by `factor` as MATLAB's imresize defines it: [size // factor, size].

    The kernel is stretched by the factor, its weights sum to one, and beyond the border the signal is mirrored with the edge
    sample repeated, as often as the kernel needs.
    """
    centre = (np.arange(size // factor) + 0.5) * factor - 0.5
    tap = np.floor(centre)[:, None].astype(int) + np.arange(-2 * factor, 2 * factor + 2)
    weight = _keys_cubic((centre[:, None] - tap) / factor)
    weight /= weight.sum(1, keepdims=True)
    folded = tap % (2 * size)
    source = np.where(folded < size, folded, 2 * size - 1 - folded)
    matrix = np.zeros((len(centre), size))
    np.add.at(matrix, (np.arange(len(centre))[:, None], source), weight)
    return matrix


@_cached_matrices
def bicubic_matrix(size: int, factor: int) -> tuple[np.ndarray, ...]:
    """(W,), W [size // factor, size]; see `_bicubic`."""
    return (_bicubic(size, factor),)


@_cached_matrices
def bicubic_inverse(size: int, factor: int) -> tuple[np.ndarray, ...]:
    """(W^+,), the Moore-Penrose inverse of `bicubic_matrix`: [size, size // factor]."""
    return (np.linalg.pinv(_bicubic(size, factor)),)


@_cached_matrices
def bicubic_svd(size: int, factor: int) -> tuple[np.ndarray, ...]:
    """U [n,n], s [n], V^T [n,size] of `bicubic_matrix`, n = size // factor."""
    return tuple(np.linalg.svd(_bicubic(size, factor), full_matrices=False))


def gaussian_kernel(kernel_size: int, std: float) -> np.ndarray:
    """Sampled Gaussian of `kernel_size` (odd) taps, standard deviation in pixels, sum one: [kernel_size]."""
    tap = np.arange(kernel_size) - kernel_size // 2
    weight = np.exp(-0.5 * (tap / std) ** 2)
    return weight / weight.sum()


def _gaussian(size: int, kernel_size: int, std: float) -> np.ndarray:
    """Gaussian blur of `size` samples, mirrored at the border without repeating the edge sample: [size, size]."""
    radius = kernel_size // 2
    tap = np.arange(size)[:, None] + np.arange(-radius, radius + 1)
    source = size - 1 - np.abs(size - 1 - np.abs(tap))
    matrix = np.zeros((size, size))
    np.add.at(matrix, (np.arange(size)[:, None], source), gaussian_kernel(kernel_size, std))
    return matrix


@_cached_matrices
def gaussian_matrix(size: int, kernel_size: int, std: float) -> tuple[np.ndarray, ...]:
    """(G,), G [size, size]; needs kernel_size // 2 < size."""
    return (_gaussian(size, kernel_size, std),)


@_cached_matrices
def gaussian_svd(size: int, kernel_size: int, std: float) -> tuple[np.ndarray, ...]:
    """U [size, size], s [size], V^T [size, size] of `gaussian_matrix`."""
    return tuple(np.linalg.svd(_gaussian(size, kernel_size, std)))
