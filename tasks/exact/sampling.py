"""Exact draws by inversion of distribution functions, in float64 and stable in the tails."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from vfmbench.measurement import NoiseSource

# Below this log probability the normal quantile is found from its asymptotic series; above, the library's is accurate.
_DEEP_TAIL = -300.0


def fine_uniform(noise: NoiseSource, shape: Sequence[int], draw: int) -> Tensor:
    """Uniform numbers in (0, 1) of 48 bits, float64 [rows, *shape]; uses the draws `draw` and `draw + 1`."""
    # The half bit keeps both ends out.
    fraction = noise.uniform(shape, draw + 1).double() + 2.0**-25
    return noise.uniform(shape, draw).double() + fraction * 2.0**-24


def categorical(weights: Tensor, uniform: Tensor) -> Tensor:
    """Indices drawn with the given probabilities.

    Args:
        weights: at least 0, not all 0, float64 [B,K].
        uniform: in (0, 1), float64 [B,S].

    Returns:
        int64 [B,S]; an index of weight 0 is never drawn.
    """
    cumulative = weights.cumsum(1)
    return torch.searchsorted(cumulative, uniform * cumulative[:, -1:], right=True)


def log_interval_probability(lower: Tensor, upper: Tensor) -> Tensor:
    """log(Phi(upper) - Phi(lower)) of the standard normal for lower < upper, float64; finite however far out they lie."""
    _, lower, upper = _in_lower_tail(lower, upper)
    log_upper = torch.special.log_ndtr(upper)
    return log_upper + torch.log(-torch.expm1(torch.special.log_ndtr(lower) - log_upper))


def truncated_normal_quantile(lower: Tensor, upper: Tensor, probability: Tensor) -> Tensor:
    """Quantile of the standard normal restricted to [lower, upper], lower < upper; float64, for probability in (0, 1)."""
    flipped, tail_lower, tail_upper = _in_lower_tail(lower, upper)
    above = torch.where(flipped, probability, 1 - probability)
    log_upper = torch.special.log_ndtr(tail_upper)
    share = torch.expm1(torch.special.log_ndtr(tail_lower) - log_upper)
    value = normal_quantile_of_log(log_upper + torch.log1p(above * share))
    return torch.where(flipped, -value, value).clamp(lower, upper)


def normal_quantile_of_log(log_probability: Tensor) -> Tensor:
    """v with log Phi(v) = log_probability, float64 below 0; also where the probability itself is too small for a float64."""
    central = torch.special.ndtri(log_probability.clamp_min(_DEEP_TAIL).exp())
    # log Phi(v) = -v^2/2 - log(-v sqrt(2 pi)) + O(v^-2) gives a first guess; Newton's method doubles its digits.
    log_tail = log_probability.clamp_max(_DEEP_TAIL)
    deep = -(-2 * log_tail - math.log(2 * math.pi) - (-2 * log_tail).log()).sqrt()
    for _ in range(3):
        # The slope of log Phi is -v - 1/v, but for a relative error of 2/v^4.
        deep = deep + (torch.special.log_ndtr(deep) - log_tail) / (deep + 1 / deep)
    return torch.where(log_probability < _DEEP_TAIL, deep, central)


def _in_lower_tail(lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Which intervals lie above zero for the most part, and all intervals with those mirrored.

    Differences of the distribution function near 1 would have no digits left.
    """
    flipped = lower + upper > 0
    return flipped, torch.where(flipped, -upper, lower), torch.where(flipped, -lower, upper)
