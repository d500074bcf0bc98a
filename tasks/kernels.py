"""Blur kernels and the one-dimensional matrices of separable operators.

Matrices depend on a few integers only, so they are built once in float64 with NumPy, kept in a cache, and handed out in the
dtype and on the device of the tensor they will multiply.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache, wraps

import numpy as np
import torch
from torch import Tensor

from vfmbench.measurement import NoiseSource

# Relative size below which singular values of a blur count as zero, and at which its iterative solver stops.
PINV_TOLERANCE = 1e-2

# Vertices of a motion path, and points drawn on each of its segments.
_PATH_STEPS = 64
_POINTS_PER_STEP = 4


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


def motion_kernels(noise: NoiseSource, draw: int, kernel_size: int, intensity: float) -> Tensor:
    """Camera-shake kernels, one a row of `noise`: float64 [rows, kernel_size, kernel_size], non-negative, sum one.

    A kernel is the trace of a point that moves for 64 steps of random length. The model follows Borodenko's generator
    (github.com/LeviBorodenko/motionblur) in spirit, with an own parametrisation:

    * the path is 0.75 sqrt(2) kernel_size (u + intensity^2 u') pixels long, u and u' uniform in [0, 1];
    * it starts in a uniform direction and turns by intensity pi (2 u'' - 1) in all, evenly along the way;
    * on top of that the direction walks randomly, by steps that grow from 0 at the start to a standard deviation of
      intensity pi / 8 at the end: a smooth start, a jittery end, and a straight line at intensity 0.

    The trace is centred on its mean, shrunk if it would leave the support, and drawn with bilinear (sub-pixel) weights.

    Args:
        noise: source of the random numbers; draws `draw`, `draw + 1` and `draw + 2` are used.
        kernel_size: odd number of pixels.
        intensity: in [0, 1].
    """
    length, more_length, direction, bend = noise.uniform((4,), draw).double().unbind(1)
    jitter = noise.normal((_PATH_STEPS,), draw + 1).double()
    pace = -torch.log1p(-noise.uniform((_PATH_STEPS,), draw + 2).double())

    progress = (torch.arange(_PATH_STEPS, device=pace.device) + 0.5) / _PATH_STEPS
    turn = intensity * math.pi * ((2 * bend[:, None] - 1) + jitter * progress * math.sqrt(_PATH_STEPS)) / _PATH_STEPS
    heading = 2 * math.pi * direction[:, None] + turn.cumsum(1)
    total = 0.75 * math.sqrt(2) * kernel_size * (length + intensity**2 * more_length)
    step = total[:, None] * pace / pace.sum(1, keepdim=True)

    move = step[:, :, None] * torch.stack([heading.sin(), heading.cos()], dim=2)
    start = move.cumsum(1) - move
    fraction = (torch.arange(_POINTS_PER_STEP, device=pace.device) + 0.5) / _POINTS_PER_STEP
    trace = (start[:, :, None] + move[:, :, None] * fraction[:, None]).flatten(1, 2)
    trace = trace - trace.mean(1, keepdim=True)
    radius = kernel_size // 2
    reach = trace.abs().amax((1, 2), keepdim=True)
    trace = trace * (radius / reach.clamp_min(torch.finfo(reach.dtype).tiny)).clamp_max(1)

    # A tent per axis splits each point among its four pixels; the product sums over the points.
    pixel = torch.arange(-radius, radius + 1, device=pace.device)
    rows, columns = (1 - (trace[:, :, None] - pixel[:, None]).abs()).clamp_min(0).unbind(3)
    return rows.mT @ columns / trace.shape[1]
