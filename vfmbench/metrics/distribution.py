"""Distances between the set of samples and the set of true images in feature space: FID, KID, MMD.

All compare the first sample of each image with the same n true images, on raw (not normalised) features, in float64.
Their intervals come from resampling images, true image and sample together.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from vfmbench.interfaces import MetricValue, UserError
from vfmbench.metrics.evaluation import EvaluationSet
from vfmbench.metrics.statistics import normal_interval, resampling_counts
from vfmbench.metrics.values import in_each_space

_BLOCK_VALUES = 2**22
_MEDIAN_POINTS = 2000
_SETTINGS = "raw features, first sample of each image against the same n true images"
_INTERVAL = "interval: +- 1.96 bootstrap standard deviations over images"

Kernel = Callable[[Tensor, Tensor], Tensor]


def fid(evaluation: EvaluationSet) -> list[MetricValue]:
    """`fid@space`: Fréchet distance between Gaussians fitted to both sets of features."""

    def in_space(name: str) -> list[MetricValue]:
        truth, samples = _feature_sets(evaluation, name)
        n, d = truth.shape
        settings = f"{_SETTINGS}; biased upwards at small n; {_INTERVAL}, clipped at 0"
        if n <= d:
            settings += f"; WARNING: n = {n} images for d = {d} features, so both covariances are singular"
        value, replicates = _value_and_replicates(frechet_distances(truth, samples, _with_original(truth)))
        low, high = normal_interval(value, replicates)
        return [_value(evaluation, "fid", name, value, max(0, low), max(0, high), settings, replicates)]

    return in_each_space(evaluation, ["fid"], in_space)


def kid(evaluation: EvaluationSet) -> list[MetricValue]:
    """`kid@space`, `kid_paired@space`: squared MMD under the kernel (x.y/d + 1)^3 (Binkowski et al. 2018); may be negative."""

    def in_space(name: str) -> list[MetricValue]:
        truth, samples = _feature_sets(evaluation, name)
        values = []
        for metric, estimator, results in _estimates("kid", truth, samples, cubic_kernel):
            value, replicates = _value_and_replicates(results)
            settings = f"{_SETTINGS}, all n at once (no subsets); {estimator}, can be negative; {_INTERVAL}"
            values.append(_value(evaluation, metric, name, value, *normal_interval(value, replicates), settings, replicates))
        return values

    return in_each_space(evaluation, ["kid", "kid_paired"], in_space)


def mmd(evaluation: EvaluationSet) -> list[MetricValue]:
    """`mmd@space`, `mmd_paired@space`: sqrt(max(0, squared MMD)), Gaussian kernel with the median heuristic."""

    def in_space(name: str) -> list[MetricValue]:
        truth, samples = _feature_sets(evaluation, name)
        scale = median_squared_distance(truth)
        kernel_settings = (
            f"kernel exp(-r^2 / (2 l^2)), l^2 = {scale:.6g} = median squared distance "
            f"of at most {_MEDIAN_POINTS} true images, the same for every method"
        )
        values = []
        for metric, estimator, results in _estimates("mmd", truth, samples, gaussian_kernel(scale)):
            square, replicates = _value_and_replicates(results)
            value, low, high = (max(0.0, bound) ** 0.5 for bound in (square, *normal_interval(square, replicates)))
            settings = f"{_SETTINGS}; square root of the {estimator}; {kernel_settings}; {_INTERVAL} on MMD^2, clipped at 0"
            values.append(_value(evaluation, metric, name, value, low, high, settings))
        return values

    return in_each_space(evaluation, ["mmd", "mmd_paired"], in_space)


def frechet_distance(mean_x: Tensor, covariance_x: Tensor, mean_y: Tensor, covariance_y: Tensor) -> Tensor:
    """Squared Wasserstein-2 distance of Gaussians, means [...,d], covariances [...,d,d] -> [...] (Dowson and Landau 1982).

    tr (S_x S_y)^(1/2) is the sum of the square roots of the eigenvalues of L^T S_y L, where S_x = L L^T: symmetric
    problems throughout, which stay real and cost a fraction of a general matrix square root. Singular covariances are fine.
    """
    eigenvalues, vectors = torch.linalg.eigh(covariance_x)
    factor = vectors * eigenvalues.clamp_min(0).sqrt()[..., None, :]
    product = torch.linalg.eigvalsh(factor.mT @ covariance_y @ factor)
    traces = covariance_x.diagonal(dim1=-2, dim2=-1).sum(-1) + covariance_y.diagonal(dim1=-2, dim2=-1).sum(-1)
    distance = (mean_x - mean_y).square().sum(-1) + traces - 2 * product.clamp_min(0).sqrt().sum(-1)
    return distance.clamp_min(0)


def frechet_distances(x: Tensor, y: Tensor, counts: Tensor) -> Tensor:
    """Fréchet distance of x [n,d] and y [n,d] with row i of both taken counts[r, i] times, counts [R,n] -> [R].

    Covariances are unbiased (divided by n - 1).
    """
    x, y = x - x.mean(0), y - x.mean(0)
    size = max(1, _BLOCK_VALUES // max(x.numel(), x.shape[1] ** 2))
    return torch.cat([frechet_distance(*_moments(x, block), *_moments(y, block)) for block in counts.split(size)])


def _moments(x: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted means [R,d] and unbiased covariances [R,d,d] of x [n,d], counts [R,n]."""
    n = len(x)
    mean = counts @ x / n
    second = (counts[:, :, None] * x).mT @ x
    return mean, (second - n * mean[:, :, None] * mean[:, None, :]) / (n - 1)


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


def gaussian_kernel(squared_length: float) -> Kernel:
    """exp(-r^2 / (2 squared_length)), [a,d] and [b,d] -> [a,b]."""
    return lambda x, y: torch.exp(_squared_distances(x, y) / (-2 * squared_length))


def cubic_kernel(x: Tensor, y: Tensor) -> Tensor:
    """(x.y/d + 1)^3, [a,d] and [b,d] -> [a,b]."""
    return (x @ y.mT / x.shape[1] + 1) ** 3


def median_squared_distance(x: Tensor) -> float:
    """Median over pairs of different points of x [n,d], at most 2000 of them, evenly spaced.

    Raises:
        UserError: it is zero, so that it gives no length scale.
    """
    points = _thinned(x)
    rows, columns = torch.triu_indices(len(points), len(points), offset=1, device=x.device)
    median = float(np.median(_squared_distances(points, points)[rows, columns].cpu().numpy()))
    if median <= 0:
        raise UserError("more than half of all feature vectors are equal, so the median distance gives no kernel length")
    return median


def _thinned(x: Tensor) -> Tensor:
    count = min(len(x), _MEDIAN_POINTS)
    # Even spacing rather than the first points, because data sets are often sorted by class.
    return x[torch.arange(count, device=x.device) * len(x) // count]


def _squared_distances(x: Tensor, y: Tensor) -> Tensor:
    squares = x.square().sum(1)[:, None] + y.square().sum(1)[None, :]
    return (squares - 2 * x @ y.mT).clamp_min(0)


def _feature_sets(evaluation: EvaluationSet, name: str) -> tuple[Tensor, Tensor]:
    """Features of the true images and of each one's first sample, float64 [n,d] each."""
    truth, samples = evaluation.features(name)
    if len(truth) < 2:
        raise UserError("a distance between sets of images needs at least 2 images")
    return truth.double(), samples[:, 0].double()


def _with_original(x: Tensor) -> Tensor:
    """Counts of the data itself (row 0) and of its bootstrap resamples, [1+R,n]."""
    return torch.cat([torch.ones(1, len(x)).double(), resampling_counts(len(x))]).to(x.device)


def _value_and_replicates(results: Tensor) -> tuple[float, Tensor]:
    return float(results[0]), results[1:].cpu()


def _estimates(name: str, truth: Tensor, samples: Tensor, kernel: Kernel) -> list[tuple[str, str, Tensor]]:
    """Name, description and results (data, then resamples) of both estimators of the squared MMD."""
    usual, paired = squared_mmd(truth, samples, kernel, _with_original(truth))
    return [
        (name, "usual unbiased estimate, which is too small by O(1/n) because each image meets its own sample", usual),
        (f"{name}_paired", "unbiased estimate without the pairs of an image and its own sample", paired),
    ]


def _value(
    evaluation: EvaluationSet,
    metric: str,
    name: str,
    value: float,
    low: float,
    high: float,
    settings: str,
    replicates: Tensor | None = None,
) -> MetricValue:
    return MetricValue(
        name=f"{metric}@{name}",
        value=value,
        low=low,
        high=high,
        n=len(evaluation),
        feature_space=name,
        feature_weights_sha256=evaluation.space(name).weights_sha256,
        settings=settings,
        replicates=replicates,
    )
