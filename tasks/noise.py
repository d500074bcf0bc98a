"""Measurement noise, drawn from counter-based random numbers so that it depends on the seed and the image index only."""

from __future__ import annotations

import torch
from torch import Tensor

from vfmbench.measurement import NoiseSource

# What a noise-free measurement declares as its standard deviation: the rounding error of an operator in float32. A zero would
# make every likelihood and every normalised residual infinite.
NOISE_FLOOR = 1e-6

# Draws of the noise; those of a task's own parameters begin at FIRST_FREE_DRAW.
_VALUE, _FRACTION = 0, 1
FIRST_FREE_DRAW = 2


def add_gaussian(clean: Tensor, std: float, noise: NoiseSource) -> tuple[Tensor, Tensor]:
    """y = clean + std n for clean [B, *shape] float64. Returns y and the standard deviation [B,1,...], at least NOISE_FLOOR."""
    y = clean + std * noise.normal(clean.shape[1:], _VALUE)
    return y, clean.new_full((len(clean), *(1,) * (clean.ndim - 1)), max(std, NOISE_FLOOR))


def add_poisson(clean: Tensor, peak: float, noise: NoiseSource) -> tuple[Tensor, Tensor]:
    """Photon noise: y = 2 N / peak - 1, N ~ Poisson(peak (clean + 1) / 2), with clean [B, *shape] float64 in about [-1, 1].

    Bicubic weights can push `clean` slightly below -1, where the rate is taken as zero.

    Returns:
        y, and the standard deviation 2 sqrt(max(N, 1)) / peak of each entry, estimated from y alone because a sampler may know
        nothing else.
    """
    # One float32 uniform has 24 bits, too few for the tail of a large image; two give 48. The half keeps zero out.
    fraction = noise.uniform(clean.shape[1:], _FRACTION).double() + 2.0**-25
    count = poisson_quantile(noise.uniform(clean.shape[1:], _VALUE).double() + fraction * 2.0**-24, peak * (clean + 1) / 2)
    return 2 * count / peak - 1, 2 * count.clamp_min(1).sqrt() / peak


def poisson_quantile(probability: Tensor, rate: Tensor) -> Tensor:
    """Smallest count k with P(N <= k) >= probability for N ~ Poisson(rate), rates below zero count as zero.

    Starts from the Cornish-Fisher approximation and walks to the quantile, for all entries at once. Equal to SciPy's to the
    last count for rates up to 1e5; at 1e7 the incomplete gamma function puts counts beyond five standard deviations off by up
    to 3e-6 of themselves.

    Args:
        probability: float64 in (0, 1).
        rate: float64, the same shape.
    """
    flat_probability, flat_rate = probability.flatten(), rate.clamp_min(0).flatten()
    z = torch.special.ndtri(flat_probability)
    count = (flat_rate + flat_rate.sqrt() * z + (z.square() - 1) / 6).floor().clamp_min(0)

    def walk(step: int) -> None:
        """Moves counts up while P(N <= k) is too small, or down while P(N <= k - 1) is already enough."""
        rows = torch.arange(len(count), device=count.device)
        while len(rows):
            # P(N <= k) = Q(k + 1, rate), the regularised upper incomplete gamma function.
            at = count[rows] + (1 if step > 0 else 0)
            below = torch.special.gammaincc(at.clamp_min(1), flat_rate[rows]) < flat_probability[rows]
            rows = rows[below] if step > 0 else rows[~below & (at > 0)]
            count[rows] += step

    walk(1)
    walk(-1)
    return count.reshape(rate.shape)
