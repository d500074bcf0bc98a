"""Fréchet distance between Gaussians fitted to two sets of features (FID in Inception's), and its limit for many images."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from vfmbench.errors import UserError
from vfmbench.metrics.distribution import SETTINGS, feature_sets, linearised_replicates, set_value
from vfmbench.metrics.evaluation import EvaluationSet
from vfmbench.metrics.metric import metric
from vfmbench.metrics.values import Later, MetricValue, in_each_space
from vfmbench.results.schema import LOWER, MetricSpec, Section

_SEED = 0
_IMAGES_PER_FEATURE = 5
_INTERVAL = "interval: +- 1.96 standard deviations over images by the infinitesimal jackknife"


@metric(MetricSpec(name="fid", section=Section.DISTRIBUTION, direction=LOWER, position=10, domains=("images",)))
def fid(evaluation: EvaluationSet) -> Later:
    """`fid@space`: Fréchet distance between Gaussians fitted to both sets of features."""

    def in_space(name: str) -> list[MetricValue]:
        truth, samples = feature_sets(evaluation, name)
        n, d = truth.shape
        value, influence = frechet_distance(truth, samples)
        settings = f"{SETTINGS}; biased upwards at small n; {_INTERVAL}, clipped at 0"
        if n <= d:
            settings += f"; WARNING: n = {n} images for d = {d} features, so both covariances are singular"
        result = set_value(evaluation, "fid", name, value, linearised_replicates(value, influence), settings)
        return [replace(result, low=max(0.0, result.low or 0.0))]

    return in_each_space(evaluation, ["fid"], in_space)


@metric(MetricSpec(name="fid_infinity", section=Section.DISTRIBUTION, direction=LOWER, position=11, domains=("images",)))
def fid_infinity(evaluation: EvaluationSet) -> Later:
    """`fid_infinity@space`: the Fréchet distance extrapolated to infinitely many images; may be negative.

    Missing for fewer than 5 images per feature: below, the bias is not yet proportional to 1/n.
    """

    def in_space(name: str) -> list[MetricValue]:
        truth, samples = feature_sets(evaluation, name)
        n, d = truth.shape
        if n < _IMAGES_PER_FEATURE * d:
            raise UserError(
                f"extrapolating to infinitely many images needs {_IMAGES_PER_FEATURE * d} of them for d = {d} features, not {n}"
            )
        value, influence = extrapolated_frechet_distance(truth, samples)
        settings = f"{SETTINGS}; extrapolated in 1/n from n = {n} and both halves, seed {_SEED}, can be negative; {_INTERVAL}"
        return [set_value(evaluation, "fid_infinity", name, value, linearised_replicates(value, influence), settings)]

    return in_each_space(evaluation, ["fid_infinity"], in_space)


def frechet_distance(x: Tensor, y: Tensor) -> tuple[float, Tensor]:
    """Squared Wasserstein-2 distance of Gaussians fitted to x [n,d] and y [n,d], covariances divided by n - 1.

    |m_x - m_y|^2 + tr(S_x + S_y - 2 (S_x S_y)^(1/2)) (Dowson and Landau 1982, "The Fréchet distance between multivariate
    normal distributions"). With S_x = F F^T, the last trace is that of P^(1/2), P = F^T S_y F: symmetric eigenproblems of size
    min(n, d), which stay real and are a fraction of a general matrix square root. Singular covariances need no
    regularisation, and get none, as in torch-fidelity since 0.4.

    The derivative of that trace by S_x is half the optimal transport map T from one Gaussian to the other, and by S_y half its
    inverse, so that the same eigenvectors tell how much each image weighs.

    Returns:
        the distance, and its derivative by the number of times that row i of both sets is taken, [n] of sum zero.

    Raises:
        UserError: shapes differ, or fewer than two rows.
    """
    if x.shape != y.shape or x.ndim != 2 or len(x) < 2:
        raise UserError(
            f"a Fréchet distance needs two equal sets of at least 2 feature vectors, not {list(x.shape)} and {list(y.shape)}"
        )
    n = len(x)
    shift = x.mean(0) - y.mean(0)
    x, y = x - x.mean(0), y - y.mean(0)
    whitened, factor = _factor(x)
    projected = y @ factor
    eigenvalues, vectors = torch.linalg.eigh(projected.mT @ projected / (n - 1))
    roots = eigenvalues.clamp_min(0).sqrt()
    squares = x.square().sum(1) + y.square().sum(1)
    distance = shift.square().sum() + squares.sum() / (n - 1) - 2 * roots.sum()
    # x_i^T T x_i and y_i^T T^-1 y_i.
    transported = (whitened @ vectors).square() @ roots + (projected @ vectors).square() @ _inverse(roots)
    by_covariance = (squares - transported) / (n - 1)
    influence = 2 / n * (x - y) @ shift + by_covariance - by_covariance.mean()
    return max(0.0, float(distance)), influence


def extrapolated_frechet_distance(x: Tensor, y: Tensor) -> tuple[float, Tensor]:
    """`frechet_distance` of x [n,d] and y [n,d] extrapolated to 1/n = 0, and its derivative by each image's count.

    Chong and Forsyth 2020, "Effectively unbiased FID and Inception score and where to find them": the bias is proportional to
    1/n. They fit a line to 15 random subsets; a line through all images and the mean over the two halves of a seeded random
    split has the same limit, and about the variance of the distance itself. Both sets grow together, where the
    paper keeps one of them fixed.
    """
    n = len(x)
    size = n // 2
    order = torch.from_numpy(np.random.default_rng(_SEED).permutation(n)).to(x.device)
    whole, half = n / (n - size), size / (n - size)
    value, influence = frechet_distance(x, y)
    value, influence = whole * value, whole * influence
    for rows in (order[:size], order[size : 2 * size]):
        part, part_influence = frechet_distance(x[rows], y[rows])
        value -= half * part / 2
        influence[rows] -= half * part_influence / 2
    return value, influence


def _factor(x: Tensor) -> tuple[Tensor, Tensor]:
    """Z [n,r] and F [d,r] with x = Z F^T and Z^T Z = n - 1, for centred x [n,d] and r = min(n, d)."""
    n, d = x.shape
    if n <= d:
        scale = (n - 1) ** 0.5
        return scale * torch.eye(n, dtype=x.dtype, device=x.device), x.mT / scale
    covariance = x.mT @ x / (n - 1)
    lower, failed = torch.linalg.cholesky_ex(covariance)
    if not failed:
        return torch.linalg.solve_triangular(lower, x.mT, upper=False).mT, lower
    # Features that are constant or copies of each other: slower, but without a division by zero.
    eigenvalues, vectors = torch.linalg.eigh(covariance)
    roots = eigenvalues.clamp_min(0).sqrt()
    return x @ (vectors * _inverse(roots)), vectors * roots


def _inverse(roots: Tensor) -> Tensor:
    """1 / roots, or 0 for those that are not above the rounding error of the eigenvalues that they are roots of."""
    noise = (len(roots) * torch.finfo(roots.dtype).eps) ** 0.5 * roots.max()
    return torch.where(roots > noise, 1 / roots, 0)
