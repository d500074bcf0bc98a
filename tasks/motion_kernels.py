"""Kernels of camera shake: Borodenko's generator, with which the published adapters were trained, and one of thin traces."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from vfmbench.measurement import NoiseSource

# Vertices of a traced path, and points drawn on each of its segments.
_PATH_STEPS = 64
_POINTS_PER_STEP = 4

# Lengths of the steps of Borodenko's paths: beta(1, 30), times the support's diagonal and 1.1 - intensity.
_STEP_SHAPE = 30
_LEAST_PACE = 0.1
# The sign of a step's angle changes with a probability of beta(2, 20): the second least of 21 uniform numbers.
_SIGN_NUMBERS = 21


def borodenko_kernels(noise: NoiseSource, draw: int, kernel_size: int, intensity: float) -> Tensor:
    """Camera-shake kernels, one a row of `noise`: float64 [rows, kernel_size, kernel_size], non-negative, sum one.

    The distribution of L. Borodenko's generator (github.com/LeviBorodenko/motionblur), which the VFM release and many
    benchmarks use, drawn for all rows at once. In a support of twice the size with diagonal D:

    * the path is 0.75 D (u + u') long, u uniform in [0, 1] and u' in [0, intensity^2];
    * its steps are (1.1 - intensity) D beta(1, 30) long, until the length is reached;
    * all steps head to one side by a largest angle that is uniform in [0, intensity pi]: triangular angles, whose sign changes
      from one step to the next with a probability of beta(2, 20);
    * it is centred on the mean of its vertices, rotated by a uniform angle, drawn one pixel wide where it stays inside,
      smoothed by a Gaussian of floor(D / 100) pixels, and reduced to half its size.

    It covers the pixels of the path evenly, however long the camera stayed. Unlike there, the smoothing is an exact Gaussian,
    nothing is rounded to 8 bits, and pairs of pixels are averaged.

    Args:
        noise: source of the random numbers; draws `draw`, `draw + 1` and `draw + 2` are used.
        kernel_size: odd number of pixels.
        intensity: in [0, 1].
    """
    diagonal = math.sqrt(2) * 2 * kernel_size
    pace = (1 - intensity + _LEAST_PACE) * diagonal
    longest = 0.75 * diagonal * (1 + intensity**2)
    # Twice the mean number of steps, and more for short paths: a path that needs more ends early, once in many thousands.
    count = math.ceil(2 * longest * (_STEP_SHAPE + 1) / pace) + 16
    length, more_length, widest, first, rotation = noise.uniform((5,), draw).double().unbind(1)
    jitter = noise.uniform((_SIGN_NUMBERS,), draw + 1).double().sort(1).values[:, 1]
    steps, angles, signs = noise.uniform((3, count), draw + 2).double().unbind(1)

    total = 0.75 * diagonal * (length + intensity**2 * more_length)
    # The step that reaches the length is the last one; it ends where the length does if it is longer than all that.
    step = torch.minimum(pace * (1 - (1 - steps) ** (1 / _STEP_SHAPE)), total[:, None])
    moves = step.cumsum(1) - step < total[:, None]
    widest = intensity * math.pi * widest
    angle = _triangular(angles, intensity * widest[:, None], widest[:, None] + _LEAST_PACE)
    angle[:, 0] = widest * (2 * first - 1).abs()
    flips = torch.where(signs < jitter[:, None], -1.0, 1.0).double()
    flips[:, 0] = torch.where(first < 0.5, -1.0, 1.0)
    heading = angle * flips.cumprod(1) + math.pi * rotation[:, None]

    vertex = (step[:, :, None] * torch.stack([heading.sin(), heading.cos()], 2)).cumsum(1)
    weight = moves[:, :, None].double()
    vertex = vertex - (vertex * weight).sum(1, keepdim=True) / weight.sum(1, keepdim=True) + kernel_size
    drawn = _lines(vertex, moves, 2 * kernel_size, 2 * longest)
    smooth = _smoothed(drawn, int(diagonal / 100))
    kernel = F.avg_pool2d(smooth[:, None], 2)[:, 0]
    return kernel / kernel.sum((1, 2), keepdim=True)


def _triangular(uniform: Tensor, mode: Tensor, upper: Tensor) -> Tensor:
    """Triangular numbers on [0, upper] by the inverse distribution function."""
    below = (uniform * upper * mode).sqrt()
    above = upper - ((1 - uniform) * upper * (upper - mode)).sqrt()
    return torch.where(uniform * upper < mode, below, above)


def _lines(vertex: Tensor, present: Tensor, size: int, longest: float) -> Tensor:
    """1 on the pixels of the lines between the present vertices, which come first, else 0: [rows,size,size].

    Each line has as many pixels as the longer of its extents, as Bresenham's.

    Args:
        vertex: [rows,n,2] in pixels.
        present: bool [rows,n].
        longest: bound on the length of a row's lines together.
    """
    start, move = vertex[:, :-1], vertex.diff(dim=1)
    extent = move.abs().amax(2).ceil().clamp_min(1) * present[:, 1:]
    ends = extent.cumsum(1)
    # Pixel p of a row lies on the line whose pixels end behind p; those behind the last line repeat its end.
    pixel = torch.arange(math.ceil(longest) + vertex.shape[1] + 1, dtype=vertex.dtype, device=vertex.device)
    pixel = torch.minimum(pixel.expand(len(vertex), -1), ends[:, -1:])
    line = torch.searchsorted(ends, pixel.contiguous()).clamp_max(ends.shape[1] - 1)
    share = (pixel - (ends - extent).gather(1, line)) / extent.gather(1, line).clamp_min(1)
    pick = line[..., None].expand(-1, -1, 2)
    point = (start.gather(1, pick) + share[..., None] * move.gather(1, pick)).floor().long()
    # What leaves the support goes to one more pixel, which is cut off.
    inside = ((point >= 0) & (point < size)).all(2)
    flat = torch.where(inside, point[..., 0] * size + point[..., 1], size * size)
    pixels = torch.zeros(len(vertex), size * size + 1, dtype=vertex.dtype, device=vertex.device).scatter_(1, flat, 1.0)
    return pixels[:, :-1].unflatten(1, (size, size))


def _smoothed(images: Tensor, std: int) -> Tensor:
    """Gaussian smoothing of [rows,n,n] by `std` pixels, nothing beyond the border; as they are for 0."""
    if std == 0:
        return images
    tap = torch.arange(-4 * std, 4 * std + 1, dtype=images.dtype, device=images.device)
    weight = torch.exp(-0.5 * (tap / std) ** 2)
    weight = (weight / weight.sum())[None, None]
    rows = F.conv2d(images[:, None], weight[..., None], padding=(4 * std, 0))
    return F.conv2d(rows, weight[:, :, None], padding=(0, 4 * std))[:, 0]


def traced_kernels(noise: NoiseSource, draw: int, kernel_size: int, intensity: float) -> Tensor:
    """Camera-shake kernels, one a row of `noise`: float64 [rows, kernel_size, kernel_size], non-negative, sum one.

    A kernel is the trace of a point that moves for 64 steps of random length: a thin line that is brighter where the camera
    was slow. The model follows Borodenko's generator in spirit, with an own parametrisation:

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
