"""Metrics of each image's posterior samples: energy score, spread, data fidelity and agreement with the class."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vfmbench.errors import MissingError, UserError
from vfmbench.interfaces import FeatureSpace
from vfmbench.metrics.evaluation import EvaluationSet
from vfmbench.metrics.metric import metric
from vfmbench.metrics.values import Later, MetricValue, attempt, for_each_space, in_each_space, mean_value, together
from vfmbench.results.schema import HIGHER, LOWER, MetricSpec, Section, towards
from vfmbench.results.statistics import share_interval

_BLOCK_VALUES = 2**18
_CRPS_NAMES = ("crps", "crps_fair")


@metric(
    MetricSpec(name="crps", section=Section.POSTERIOR, direction=LOWER, position=10),
    MetricSpec(name="crps_fair", section=Section.POSTERIOR, direction=LOWER, position=11),
)
def crps(evaluation: EvaluationSet) -> Later:
    """Energy score of the images (in [-1, 1]) or points, and on L2-normalised features of each space, by both estimators."""
    count, domain = evaluation.num_samples, evaluation.domain

    def terms_of(truth: Tensor, samples: Tensor) -> Tensor:
        return torch.stack(energy_terms(truth.flatten(1), samples.flatten(2)), 1)

    terms = evaluation.per_image(terms_of, energy_block(count, evaluation.samples.shape[2:].numel())[0])

    def of_values() -> list[MetricValue]:
        distance, spread = terms.result().mT.contiguous()
        # The score scales with the numbers.
        return _crps_values(domain.unit, distance * domain.scale, spread * domain.scale, count, domain.settings)

    def in_space(name: str) -> list[MetricValue]:
        terms = energy_terms(*evaluation.features(name, normalised=True))
        return _crps_values(name, *terms, count, "L2-normalised features", evaluation.space(name))

    values = attempt([f"{name}@{domain.unit}" for name in _CRPS_NAMES], lambda: of_values)
    return together(values, in_each_space(evaluation, _CRPS_NAMES, in_space))


def energy_terms(truth: Tensor, samples: Tensor) -> tuple[Tensor, Tensor]:
    """The two sums of the energy score, in memory bounded by blocks of images and of their dimensions.

    Args:
        truth: [N,d], any type.
        samples: [N,S,d].

    Returns:
        mean over samples of ||x_j - x||, and sum over all pairs of ||x_j - x_k||; float64 [N] each.

    Raises:
        UserError: fewer than two samples of an image.
    """
    count, dimension = samples.shape[1:]
    if count < 2:
        raise UserError("the energy score needs at least 2 samples of an image")
    size, width = energy_block(count, dimension)
    distances, spreads = [], []
    for x, draws in zip(truth.split(size), samples.split(size), strict=True):
        inner = torch.zeros(len(x), count, count, dtype=torch.float64, device=x.device)
        for origin, part in zip(x.split(width, 1), draws.split(width, 2), strict=True):
            # Measured from the truth, the inner products are of the size of the distances, and lose no digits.
            error = part.double() - origin.double()[:, None]
            inner += error @ error.mT
        square = inner.diagonal(dim1=1, dim2=2)
        pairs = (square[:, :, None] + square[:, None, :] - 2 * inner).clamp_min(0)
        distances.append(square.sqrt().mean(1))
        spreads.append(pairs.sqrt().sum((1, 2)))
    return torch.cat(distances), torch.cat(spreads)


def energy_block(count: int, dimension: int) -> tuple[int, int]:
    """Images of `count` samples, and dimensions, in a block that stays in a processor's cache: larger ones are slower."""
    width = max(1, min(dimension, _BLOCK_VALUES // count))
    return max(1, _BLOCK_VALUES // (count * max(count, width))), width


def energy_score(truth: Tensor, samples: Tensor, *, fair: bool = False) -> Tensor:
    """CRPS in d dimensions: mean_j ||x_j - x|| - 1/2 mean_{j,k} ||x_j - x_k||, truth [N,d], samples [N,S,d] -> float64 [N].

    Gneiting and Raftery 2007, "Strictly proper scoring rules, prediction, and estimation", eq. 22.

    Args:
        fair: mean over the S (S - 1) pairs of different samples, which is unbiased for any S; otherwise over all S**2 pairs,
            as in the Variational Flow Maps paper, which punishes a small S.
    """
    return _combine(*energy_terms(truth, samples), samples.shape[1], fair)


@metric(MetricSpec(name="feature_distance", section=Section.RECONSTRUCTION, direction=LOWER, position=40, domains=("images",)))
def feature_distance(evaluation: EvaluationSet) -> Later:
    """`feature_distance@space`: distance of a sample's L2-normalised features to the true image's, in [0, 2].

    What LPIPS is to photographs, in the feature space of a suite whose images are too small for it.
    """

    def in_space(name: str) -> list[MetricValue]:
        truth, samples = evaluation.features(name, normalised=True)
        per_image = (samples - truth[:, None]).norm(dim=-1).mean(1)
        settings = f"L2-normalised features; one sample, averaged over K={evaluation.num_samples} samples of an image"
        return [mean_value(f"feature_distance@{name}", per_image, settings, evaluation.space(name))]

    return in_each_space(evaluation, ["feature_distance"], in_space)


@metric(MetricSpec(name="diversity", section=Section.CALIBRATION, position=10))
def diversity(evaluation: EvaluationSet) -> Later:
    """`diversity@pixel`, `diversity@point`: standard deviation of each entry over an image's samples (unbiased variance)."""
    count = evaluation.num_samples
    if count < 2:
        raise UserError("the spread of an image's samples needs at least 2 of them")
    domain = evaluation.domain
    spread = evaluation.per_image(lambda _, samples: domain.scale * samples.double().std(1).flatten(1).mean(1))
    settings = f"{domain.settings}; K={count} samples; mean over {domain.entries}"
    return lambda: [mean_value(f"diversity@{domain.unit}", spread.result(), settings)]


@metric(MetricSpec(name="residual", section=Section.CONSISTENCY, direction=towards(1.0), position=20, needs_run=True))
def residual(evaluation: EvaluationSet) -> list[MetricValue]:
    """`residual`: root mean square of (A x - y) / noise_std of the stored samples; about 1 for the true image."""
    if evaluation.residual is None:
        raise MissingError("the data-fidelity residuals of the samples were not stored")
    settings = f"in units of the noise, about 1 for the true image; averaged over K={evaluation.num_samples} samples"
    return [mean_value("residual", evaluation.residual.double().mean(1), settings)]


@metric(MetricSpec(name="nlpd", section=Section.POSTERIOR, direction=LOWER, position=20, needs_run=True))
def nlpd(evaluation: EvaluationSet) -> list[MetricValue]:
    """`nlpd`: negative log predictive density of a fresh observation, -log mean_j p(y' | x_j), in nats (VFM appendix B.1)."""
    if evaluation.log_likelihood is None:
        raise MissingError("the likelihoods of fresh observations were not stored")
    count = evaluation.num_samples
    per_image = math.log(count) - evaluation.log_likelihood.double().logsumexp(1)
    settings = f"nats, summed over the observed entries of y', whose noise is new; K={count} samples, the best ones decide"
    return [mean_value("nlpd", per_image, settings)]


@metric(
    MetricSpec(
        name="classifier_agreement",
        section=Section.CONSISTENCY,
        direction=HIGHER,
        position=10,
        domains=("images",),
        needs_run=True,
    ),
)
def classifier_agreement(evaluation: EvaluationSet) -> Later:
    """`classifier_agreement@space`: share of samples that the space's classifier gives the true image's label."""

    count = evaluation.num_samples

    def in_space(name: str) -> Later:
        if evaluation.label is None:
            raise MissingError("the data has no class labels")
        label, space = evaluation.label.to(evaluation.truth.device)[:, None], evaluation.space(name)
        predictions, settings = evaluation.ask_predictions(name), f"K={count} samples of an image"

        def values() -> list[MetricValue]:
            per_image = (predictions.result().unflatten(0, (-1, count)) == label).double().mean(1)
            return [mean_value(f"classifier_agreement@{name}", per_image, settings, space, share_interval)]

        return values

    return for_each_space(evaluation, ["classifier_agreement"], in_space)


def _combine(distance: Tensor, spread: Tensor, count: int, fair: bool) -> Tensor:
    return distance - spread / (2 * count * (count - 1 if fair else count))


def _crps_values(
    where: str, distance: Tensor, spread: Tensor, count: int, scale: str, space: FeatureSpace | None = None
) -> list[MetricValue]:
    settings = f"energy score, {scale}; K={count} samples"
    biased, fair = (_combine(distance, spread, count, fair) for fair in (False, True))
    return [
        mean_value(f"crps@{where}", biased, f"{settings}, mean over all K^2 pairs", space),
        mean_value(f"crps_fair@{where}", fair, f"{settings}, unbiased mean over K(K-1) pairs", space),
    ]
