"""How far the samples are from the exact posterior, where it is known: MMD, sliced Wasserstein distance, modes and support.

Each observation's S samples meet S draws from its own exact posterior, the same for every method. What exact draws would score
stands in the settings: no method can be told from the exact posterior below that floor.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from vfmbench.errors import UserError
from vfmbench.interfaces import ExactPosterior
from vfmbench.metrics.calibration import random_directions
from vfmbench.metrics.evaluation import EvaluationSet
from vfmbench.metrics.kernels import median_squared_distance_across, squared_mmd_of_each
from vfmbench.metrics.metric import metric
from vfmbench.metrics.values import MetricValue, mean_value
from vfmbench.results.schema import HIGHER, LOWER, MetricSpec, Section
from vfmbench.results.statistics import share_interval

# As many as in the VFM paper.
_MOST_OBSERVATIONS = 1000
_BLOCK_VALUES = 2**18
_SHARE_VALUES = 2**22


@metric(MetricSpec(name="mmd_posterior", section=Section.EXACT, direction=LOWER, position=10, domains=("points",)))
def mmd_posterior(evaluation: EvaluationSet) -> list[MetricValue]:
    """`mmd_posterior`: mean over observations of sqrt(max(0, squared MMD)) of the samples and as many exact ones (VFM B.1)."""
    settings = (
        "root of the unbiased squared MMD, clipped at 0; "
        "kernel exp(-r^2 / (2 l^2)), l^2 = median squared distance between the two sets of an observation"
    )
    return _distance_to_exact(evaluation, "mmd_posterior", mmd_of_each, settings)


@metric(MetricSpec(name="sliced_wasserstein", section=Section.EXACT, direction=LOWER, position=20, domains=("points",)))
def sliced_wasserstein(evaluation: EvaluationSet) -> list[MetricValue]:
    """`sliced_wasserstein`: mean over observations of the sliced 1-Wasserstein distance of the samples from exact ones.

    Of order 1 because the floor of order 2 falls only as S^(-1/4) for a posterior whose modes lie apart.
    """
    directions = random_directions(evaluation.truth.shape[1:].numel()).to(evaluation.truth.device)

    def distance(x: Tensor, y: Tensor) -> Tensor:
        return sliced_distances(x, y, directions)

    settings = f"1-Wasserstein, mean over {directions.shape[1]} random directions, the same for every method"
    return _distance_to_exact(evaluation, "sliced_wasserstein", distance, settings)


@metric(
    MetricSpec(name="mode_error", section=Section.EXACT, direction=LOWER, position=30, domains=("points",)),
    MetricSpec(name="mode_share_error", section=Section.EXACT, direction=LOWER, position=31, domains=("points",)),
)
def mode_error(evaluation: EvaluationSet) -> list[MetricValue]:
    """`mode_error`: total variation distance of the samples' shares of the modes from the exact probabilities, in [0, 1].

    What lies outside the prior's support counts as one more mode, which should be empty. `mode_share_error` is the largest
    difference of a single mode.
    """
    exact = evaluation.exact_posterior()
    modes = exact.mode_weights().shape[1]
    if modes < 2:
        raise UserError("the prior has a single mode, so that no sample can belong to another")
    variation, largest = mode_differences(exact, evaluation.samples[:])
    variation_floor, largest_floor = mode_differences(exact, evaluation.exact_samples(0))
    count = f"{modes} modes; K={evaluation.num_samples} samples of an observation"
    of_variation = f"total variation over the outside of the support and {count}; {_floor(variation_floor)}"
    of_largest = f"largest |share - probability| of {count}; {_floor(largest_floor)}"
    return [mean_value("mode_error", variation, of_variation), mean_value("mode_share_error", largest, of_largest)]


@metric(MetricSpec(name="sacc_posterior", section=Section.EXACT, direction=HIGHER, position=40, domains=("points",)))
def sacc_posterior(evaluation: EvaluationSet) -> list[MetricValue]:
    """`sacc_posterior`: share of the samples that lie inside the prior's support (VFM B.1)."""
    inside = mean_mode_shares(evaluation.exact_posterior(), evaluation.samples[:]).sum(1)
    settings = f"share inside the prior's support; K={evaluation.num_samples} samples of an observation"
    return [mean_value("sacc_posterior", inside, settings, interval=share_interval)]


def mmd_of_each(x: Tensor, y: Tensor) -> Tensor:
    """sqrt(max(0, squared MMD)) of each of B pairs of sets of points, [B,S,d] and [B,S,d] -> [B]; each pair its own kernel."""
    return squared_mmd_of_each(x, y, median_squared_distance_across(x, y)).clamp_min(0).sqrt()


def sliced_distances(x: Tensor, y: Tensor, directions: Tensor) -> Tensor:
    """Sliced 1-Wasserstein distance of each of B pairs of sets, [B,S,d], [B,S,d], unit directions [d,P] -> [B].

    Bonneel et al. 2015, "Sliced and Radon Wasserstein barycenters of measures". On a line the best plan pairs points by rank.
    """
    # NumPy sorts many short rows several times faster than torch.
    ordered = (np.sort((points @ directions.to(points)).mT.cpu().numpy()) for points in (x, y))
    return torch.from_numpy(np.abs(np.subtract(*ordered)).mean((1, 2)))


def mean_mode_shares(exact: ExactPosterior, points: Tensor) -> Tensor:
    """Share of each row's points [N,S,C,H,W] that belongs to each mode, float64 [N,K] on the CPU; rows sum to 1 at most."""
    modes = exact.mode_weights().shape[1]
    size = max(1, _SHARE_VALUES // (len(points) * modes))
    totals = [exact.mode_shares(some).sum(1) for some in points.split(size, 1)]
    return torch.stack(totals).sum(0).cpu() / points.shape[1]


def mode_differences(exact: ExactPosterior, points: Tensor) -> tuple[Tensor, Tensor]:
    """Of the modes' shares of points [N,S,C,H,W] from their probabilities: total variation and largest, float64 [N] each."""
    differences = mean_mode_shares(exact, points) - exact.mode_weights().cpu()
    # The probabilities sum to 1, so that what the shares lack is outside.
    outside = differences.sum(1).abs()
    return (differences.abs().sum(1) + outside) / 2, differences.abs().amax(1)


def _distance_to_exact(
    evaluation: EvaluationSet, name: str, distance: Callable[[Tensor, Tensor], Tensor], settings: str
) -> list[MetricValue]:
    """Mean over the first observations of a distance between two sets of points, [b,S,d] and [b,S,d] -> [b], float64."""
    n = min(len(evaluation), _MOST_OBSERVATIONS)
    count = evaluation.num_samples
    exact, others = (evaluation.exact_samples(copy)[:n].flatten(2).double() for copy in (0, 1))
    # Distances do not change with an offset, and around zero they lose the fewest digits.
    centre = exact.mean(1, keepdim=True)
    # So many pairs, or projections on random directions.
    size = max(1, _BLOCK_VALUES // (count * max(count, 100)))

    def to_exact(points: Tensor) -> Tensor:
        pairs = zip((points - centre).split(size), (exact - centre).split(size), strict=True)
        return torch.cat([distance(x, y).cpu() for x, y in pairs])

    per_image = to_exact(evaluation.samples[:n].flatten(2).double())
    first = f"first {n} of {len(evaluation)} observations; " if n < len(evaluation) else ""
    against = f"{first}K={count} samples of an observation against {count} exact ones"
    return [mean_value(name, per_image, f"{settings}; {against}; {_floor(to_exact(others))}")]


def _floor(per_image: Tensor) -> str:
    return f"exact samples themselves: {float(per_image.mean()):.4f}"
