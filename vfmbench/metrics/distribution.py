"""What distances between the set of samples and the set of true images have in common.

All compare the first sample of each image with the same n true images, on raw (not normalised) features, in float64. Their
intervals come from resampling images, true image and sample together.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vfmbench.errors import UserError
from vfmbench.metrics.evaluation import EvaluationSet
from vfmbench.metrics.values import MetricValue
from vfmbench.results.statistics import normal_interval, resampling_counts

SETTINGS = "raw features, first sample of each image against the same n true images"


def feature_sets(evaluation: EvaluationSet, space_name: str) -> tuple[Tensor, Tensor]:
    """Features of the true images and of each one's first sample, float64 [n,d] each.

    Raises:
        UserError: fewer than two images.
    """
    truth, samples = evaluation.features(space_name)
    if len(truth) < 2:
        raise UserError("a distance between sets of images needs at least 2 images")
    return truth.double(), samples[:, 0].double()


def counts_with_original(x: Tensor) -> Tensor:
    """How often each row of x [n,d] is taken in the data itself (row 0) and in its bootstrap resamples, float64 [1+R,n]."""
    return torch.cat([torch.ones(1, len(x)).double(), torch.from_numpy(resampling_counts(len(x)))]).to(x.device)


def linearised_replicates(value: float, influence: Tensor) -> Tensor:
    """Values [R] on bootstrap resamples, to first order in how often each of the n images is taken.

    Their spread is the infinitesimal jackknife (Efron 1982, "The jackknife, the bootstrap and other resampling plans"), which
    needs one evaluation of a statistic instead of R.

    Args:
        influence: derivatives by each image's count, [n], of sum zero.
    """
    return value + torch.from_numpy(resampling_counts(len(influence)) - 1) @ influence.double().cpu()


def set_value(
    evaluation: EvaluationSet, metric: str, space_name: str, value: float, replicates: Tensor, settings: str
) -> MetricValue:
    """`metric@space` with a normal interval from the spread of its replicates, which are kept for paired comparisons."""
    low, high = normal_interval(value, replicates.numpy())
    return MetricValue(
        name=f"{metric}@{space_name}",
        value=value,
        low=low,
        high=high,
        n=len(evaluation),
        feature_space=space_name,
        feature_weights_sha256=evaluation.space(space_name).weights_sha256,
        settings=settings,
        replicates=replicates,
    )
