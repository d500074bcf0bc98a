"""Kernel distances between two sets of features or points: KID and MMD."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from vfmbench.errors import UserError
from vfmbench.metrics.distribution import SETTINGS, counts_with_original, feature_sets, set_value
from vfmbench.metrics.evaluation import EvaluationSet
from vfmbench.metrics.metric import metric
from vfmbench.metrics.values import Later, MetricValue, in_each_space
from vfmbench.results.schema import LOWER, MetricSpec, Section

_BLOCK_VALUES = 2**22
_MEDIAN_POINTS = 2000
_INTERVAL = "interval: +- 1.96 bootstrap standard deviations over images"
_ESTIMATORS = {
    "": "usual unbiased estimate, which is too small by O(1/n) because each image meets its own sample",
    "_paired": "unbiased estimate without the pairs of an image and its own sample",
}

Kernel = Callable[[Tensor, Tensor], Tensor]


@metric(
    MetricSpec(name="kid", section=Section.DISTRIBUTION, direction=LOWER, position=30, domains=("images",), compared=False),
    MetricSpec(name="kid_paired", section=Section.DISTRIBUTION, direction=LOWER, position=31, domains=("images",)),
)
def kid(evaluation: EvaluationSet) -> Later:
    """`kid@space`, `kid_paired@space`: squared MMD under the kernel (x.y/d + 1)^3 (Binkowski et al. 2018); may be negative.

    `kid` is the number that the usual mean over random subsets estimates.
    """

    def in_space(name: str) -> list[MetricValue]:
        truth, samples = feature_sets(evaluation, name)
        estimates = squared_mmd(truth, samples, cubic_kernel, counts_with_original(truth))
        values = []
        for (suffix, estimator), results in zip(_ESTIMATORS.items(), estimates, strict=True):
            settings = (
                f"{SETTINGS}, all n at once, which is the expectation of the mean over random subsets; "
                f"{estimator}, can be negative; {_INTERVAL}"
            )
            values.append(set_value(evaluation, f"kid{suffix}", name, float(results[0]), results[1:].cpu(), settings))
        return values

    return in_each_space(evaluation, ["kid", "kid_paired"], in_space)


@metric(
    MetricSpec(name="mmd", section=Section.DISTRIBUTION, direction=LOWER, position=20, domains=("images",), compared=False),
    MetricSpec(name="mmd_paired", section=Section.DISTRIBUTION, direction=LOWER, position=21, domains=("images",)),
)
def mmd(evaluation: EvaluationSet) -> Later:
    """`mmd@space`, `mmd_paired@space`: sqrt(max(0, squared MMD)), Gaussian kernel with the median heuristic."""

    def in_space(name: str) -> list[MetricValue]:
        truth, samples = feature_sets(evaluation, name)
        scale = median_squared_distance(truth)
        kernel_settings = (
            f"kernel exp(-r^2 / (2 l^2)), l^2 = {scale:.6g} = median squared distance "
            f"of at most {_MEDIAN_POINTS} true images, the same for every method"
        )
        estimates = squared_mmd(truth, samples, gaussian_kernel(scale), counts_with_original(truth))
        values = []
        for (suffix, estimator), results in zip(_ESTIMATORS.items(), estimates, strict=True):
            settings = f"{SETTINGS}; square root of the {estimator}; {kernel_settings}; {_INTERVAL} on MMD^2, clipped at 0"
            square = set_value(evaluation, f"mmd{suffix}", name, float(results[0]), results[1:].cpu(), settings)
            value, low, high = (max(0.0, bound or 0.0) ** 0.5 for bound in (square.value, square.low, square.high))
            # The root of a clipped difference has no replicates that a normal interval could come from.
            values.append(replace(square, value=value, low=low, high=high, replicates=None))
        return values

    return in_each_space(evaluation, ["mmd", "mmd_paired"], in_space)


def squared_mmd(x: Tensor, y: Tensor, kernel: Kernel, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Two estimates of the squared MMD of x [n,d] and y [n,d], with row i of both taken counts[r, i] times, counts [R,n].

    Gretton et al. 2012, "A kernel two-sample test": eq. 3, over all pairs across the sets, is what the literature computes.
    It is unbiased for independent sets; where y_i is a reconstruction of x_i, their likeness makes it too small by O(1/n).
    Eq. 4 leaves the pairs (x_i, y_i) out and is unbiased for both.

    Within a set, a row is never paired with itself or its own copies: a resample would otherwise look more clustered than the
    data. The kernel matrices are built in blocks of rows.

    Returns:
        eq. 3 and eq. 4, float64 [R] each; not finite where a resample holds a single row.
    """
    n = len(x)
    within, across, own_pairs = torch.zeros(3, len(counts), dtype=x.dtype, device=x.device)
    for rows in torch.arange(n, device=x.device).split(max(1, _BLOCK_VALUES // n)):
        block = counts[:, rows]
        own = torch.arange(len(rows), device=x.device)
        for points in (x, y):
            matrix = kernel(points[rows], points)
            matrix[own, rows] = 0
            within += ((block @ matrix) * counts).sum(1)
        matrix = kernel(x[rows], y)
        across += ((block @ matrix) * counts).sum(1)
        own_pairs += block.square() @ matrix[own, rows]
    distinct = n**2 - counts.square().sum(1)
    return within / distinct - 2 * across / n**2, (within - 2 * (across - own_pairs)) / distinct


def squared_mmd_of_each(x: Tensor, y: Tensor, squared_length: Tensor) -> Tensor:
    """Squared MMD of each of B pairs of sets, by Gretton's eq. 3 under a Gaussian kernel: unbiased, and may be negative.

    Args:
        x: [B,n,d].
        y: [B,n,d], independent of x.
        squared_length: of each pair's kernel, [B].

    Returns:
        [B].

    Raises:
        UserError: a single point in each set.
    """
    n, scale = x.shape[1], -2 * squared_length[:, None, None]
    if n < 2:
        raise UserError("the MMD of two sets needs at least 2 points of each")
    sums = [_squared_distances(a, b).div_(scale).exp_().sum((1, 2)) for a, b in ((x, x), (y, y), (x, y))]
    # A point is not paired with itself, where the kernel is 1.
    return (sums[0] + sums[1] - 2 * n) / (n * (n - 1)) - 2 * sums[2] / n**2


def gaussian_kernel(squared_length: float) -> Kernel:
    """exp(-r^2 / (2 squared_length)), [a,d] and [b,d] -> [a,b]."""
    return lambda x, y: _squared_distances(x, y).div_(-2 * squared_length).exp_()


def cubic_kernel(x: Tensor, y: Tensor) -> Tensor:
    """(x.y/d + 1)^3, [a,d] and [b,d] -> [a,b]."""
    return (x @ y.mT / x.shape[1] + 1) ** 3


def median_squared_distance(x: Tensor) -> float:
    """Median over pairs of different points of x [n,d], at most 2000 of them, evenly spaced.

    Raises:
        UserError: it is zero, so that it gives no length scale.
    """
    points = thinned(x)
    rows, columns = torch.triu_indices(len(points), len(points), offset=1, device=x.device)
    median = float(np.median(_squared_distances(points, points)[rows, columns].cpu().numpy()))
    if median <= 0:
        raise UserError("more than half of all feature vectors are equal, so the median distance gives no kernel length")
    return median


def median_squared_distance_across(x: Tensor, y: Tensor) -> Tensor:
    """Median over all pairs of a point of x [B,n,d] and one of y [B,m,d], at most 2000 of each, evenly spaced; float64 [B].

    Never zero, so that it is a length scale even for sets that coincide.
    """
    distances = _squared_distances(thinned(x), thinned(y)).flatten(1).cpu().numpy()
    medians = torch.from_numpy(np.median(distances, axis=1, overwrite_input=True))
    return medians.clamp_min(torch.finfo(torch.float64).tiny).to(x.device)


def thinned(x: Tensor) -> Tensor:
    """At most 2000 of the points of x [...,n,d]."""
    n = x.shape[-2]
    count = min(n, _MEDIAN_POINTS)
    # Even spacing rather than the first points, because data sets are often sorted by class.
    return x[..., torch.arange(count, device=x.device) * n // count, :]


def _squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """Between all points of x [...,a,d] and y [...,b,d] -> [...,a,b]."""
    distances = (-2 * x) @ y.mT
    # In place, because fresh memory for so large a result costs more than the arithmetic.
    distances += x.square().sum(-1)[..., :, None]
    distances += y.square().sum(-1)[..., None, :]
    return distances.clamp_min_(0)
