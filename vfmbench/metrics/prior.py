"""How far the method's own prior is from the true one: MMD of prior draws from true points, and their share in the support."""

from __future__ import annotations

import scipy
import torch
from torch import Tensor

from vfmbench.errors import UserError
from vfmbench.metrics.evaluation import EvaluationSet
from vfmbench.metrics.exact import mean_mode_shares
from vfmbench.metrics.kernels import median_squared_distance_across, squared_mmd_of_each, thinned
from vfmbench.metrics.metric import metric
from vfmbench.metrics.values import MetricValue, mean_value
from vfmbench.results.schema import HIGHER, LOWER, MetricSpec, Section
from vfmbench.results.statistics import mean_interval, share_interval

_TRUNCATION = 1e-13
# In lengths of the kernel; up to there the series has some 110 terms.
_FARTHEST = 7.0


@metric(MetricSpec(name="mmd_prior", section=Section.PRIOR, direction=LOWER, position=10, domains=("points",)))
def mmd_prior(evaluation: EvaluationSet) -> list[MetricValue]:
    """`mmd_prior`: sqrt(max(0, squared MMD)) of the N true points and N draws from the method's prior, mean over S repetitions.

    VFM appendix B.1. Every repetition has draws of its own; the true points and the kernel are the same.
    """
    n, draws = len(evaluation), evaluation.prior_points().transpose(0, 1).double()
    if n < 2:
        raise UserError("the MMD of a prior needs at least 2 points")
    truth = evaluation.truth[:].flatten(1).double()
    # Distances do not change with an offset, and around zero they lose the fewest digits.
    truth, draws = truth - truth.mean(0), draws - truth.mean(0)
    squared_length = median_squared_distance_across(truth[None], draws.flatten(0, 1)[None])
    values = squared_mmds(truth, draws, squared_length).clamp_min(0).sqrt().cpu()
    low, high = mean_interval(values.numpy())
    settings = (
        f"root of the unbiased squared MMD, clipped at 0; kernel exp(-r^2 / (2 l^2)), l^2 = {float(squared_length):.6g} = "
        "median squared distance between true points and draws, at most 2000 of each; "
        f"mean over {len(values)} repetitions of {n} draws against the same {n} true points "
        "(at most 2000 of each if d > 2, or with draws that lie far away); "
        "interval: of the mean over repetitions, for these true points"
    )
    return [MetricValue(name="mmd_prior", value=float(values.mean()), low=low, high=high, n=n, settings=settings)]


@metric(MetricSpec(name="sacc_prior", section=Section.PRIOR, direction=HIGHER, position=20, domains=("points",)))
def sacc_prior(evaluation: EvaluationSet) -> list[MetricValue]:
    """`sacc_prior`: share of the draws from the method's prior that lie inside the true prior's support (VFM B.1)."""
    draws = evaluation.prior_points()
    inside = mean_mode_shares(evaluation.exact_posterior(), draws.unflatten(2, evaluation.truth.shape[1:])).sum(1)
    settings = f"share inside the prior's support; {draws[..., 0].numel()} draws"
    return [mean_value("sacc_prior", inside, settings, interval=share_interval)]


def squared_mmds(x: Tensor, draws: Tensor, squared_length: Tensor) -> Tensor:
    """Unbiased squared MMD (Gretton et al. 2012, eq. 3) of x from each of R sets of draws under one Gaussian kernel.

    On a line or in a plane the sums over all pairs come from the kernel's power series, exact to 1e-12 and linear in n; in more
    dimensions, or where points lie many lengths from the origin, from the kernel matrices of at most 2000 points of each set.

    Args:
        x: [n,d], about the origin, float64.
        draws: [R,n,d].
        squared_length: [1].

    Returns:
        [R].
    """
    n, length = len(x), squared_length.sqrt()
    reach = torch.maximum(x.abs().amax(0), draws.abs().amax((0, 1))) / length
    if len(reach) > 2 or reach.max() > _FARTHEST:
        some = thinned(x)[None]
        return torch.cat([squared_mmd_of_each(some, thinned(y)[None], squared_length) for y in draws])
    terms = [series_terms(bound**2) for bound in reach.tolist()]
    of_x, of_draws = feature_sum(x / length, terms), torch.stack([feature_sum(y / length, terms) for y in draws])
    # The kernel of a point with itself is 1.
    within = of_x.square().sum() + of_draws.square().flatten(1).sum(1) - 2 * n
    return within / (n * (n - 1)) - 2 * (of_x * of_draws).flatten(1).sum(1) / n**2


def series_terms(mean: float) -> int:
    """Terms that exp(-(a-b)^2/2) = exp(-a^2/2) exp(-b^2/2) sum_k (a b)^k / k! needs where a^2 and b^2 are at most `mean`.

    The terms from k = K on are together at most the probability that a Poisson number of this mean is K or more.
    """
    return int(scipy.stats.poisson.isf(_TRUNCATION, mean)) + 1


def feature_sum(points: Tensor, terms: list[int]) -> Tensor:
    """Sum over points [n,1] or [n,2] of the products of their coordinates' features exp(-a^2/2) a^k / sqrt(k!).

    The inner product of two such sums is the sum of exp(-|a-b|^2/2) over all pairs of their points.

    Returns:
        [terms[0]], or [terms[0],terms[1]].
    """
    features = []
    for coordinate, count in zip(points.unbind(1), terms, strict=True):
        ratios = coordinate[:, None] / torch.arange(1, count, device=points.device).to(points).sqrt()
        features.append(torch.cat([torch.exp(-coordinate.square() / 2)[:, None], ratios], dim=1).cumprod(1))
    return features[0].sum(0) if len(features) == 1 else features[0].mT @ features[1]
