"""Whether posterior samples spread as the truth does around them: coverage, ranks, TARP, spread against skill.

Everything is exact at any number S of samples: a sampler whose draws are exchangeable with the truth given the measurement
has the target value on average, at S = 2 as at S = 1000. Of features, the projections on fixed random directions are looked at,
so that the number of quantities does not depend on the space.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vfmbench.domains import IMAGES
from vfmbench.errors import UserError
from vfmbench.interfaces import FeatureSpace
from vfmbench.metrics.evaluation import EvaluationSet
from vfmbench.metrics.metric import metric
from vfmbench.metrics.ranks import rank_shares
from vfmbench.metrics.reading import Reordered, Rows
from vfmbench.metrics.values import Later, MetricValue, attempt, in_each_space, mean_value, together
from vfmbench.results.ranks import (
    calibration_error,
    central_coverage,
    central_levels,
    kolmogorov_test,
    largest_deviation,
    p_text,
    uniformity_p_value,
)
from vfmbench.results.schema import LOWER, MetricSpec, Section, towards
from vfmbench.results.statistics import normal_interval, resampling_counts, share_interval

Array = NDArray[np.float64]

_SEED = 0
_PROJECTIONS = 100
_QUOTED_LEVEL = 0.9
_BLOCK_VALUES = 2**22
_RANK_NAMES = ("interval_coverage", "calibration_error")
_INTERVAL = "interval: +- 1.96 bootstrap standard deviations over images"


@metric(
    MetricSpec(name="interval_coverage", section=Section.CALIBRATION, direction=towards(), position=20),
    MetricSpec(name="calibration_error", section=Section.CALIBRATION, direction=LOWER, position=30),
)
def calibration(evaluation: EvaluationSet) -> Later:
    """`interval_coverage`, `calibration_error` of pixels (or the coordinates of points) and of feature projections.

    The coverage is that of the central interval whose exact level is nearest to 90 % (`quoted_level`), the error the mean
    |coverage - level| over all levels that S samples give; its curve is each image's shares of ranks.
    """
    _check_samples(evaluation, "ranks among an image's samples need")
    domain = evaluation.domain

    def of_values() -> Later:
        what = f"{evaluation.truth.shape[1:].numel()} {domain.entries}"
        if domain is not IMAGES:
            shares = _of_values(evaluation, rank_shares)
        else:
            levels, nearest = data_levels(evaluation.truth)
            shares = _of_values(evaluation, lambda x, y: rank_shares(x, y if levels == 256 else nearest[y.long()]))
            what += f", samples rounded to the {levels} grey levels of the true images"
        return lambda: _rank_values(domain.unit, shares(), what)

    def in_space(name: str) -> list[MetricValue]:
        of_truth, of_samples = evaluation.features(name)
        directions = random_directions(of_truth.shape[1]).to(of_truth)
        shares = _in_blocks(lambda x, y: rank_shares(x @ directions, y @ directions), of_truth, of_samples)
        what = f"projections of raw features on {_PROJECTIONS} random directions (seed {_SEED}, the same for every method)"
        return _rank_values(name, shares, what, evaluation.space(name))

    values = attempt([f"{name}@{domain.unit}" for name in _RANK_NAMES], of_values)
    return together(values, in_each_space(evaluation, _RANK_NAMES, in_space))


@metric(MetricSpec(name="tarp", section=Section.CALIBRATION, direction=LOWER, position=50))
def tarp(evaluation: EvaluationSet) -> Later:
    """`tarp`: largest deviation of the expected coverage of balls around random points from its nominal value.

    Lemos et al. 2023, "Sampling-based accuracy testing of posterior estimators for general inference", algorithm 2: f is the
    share of samples that lie closer to a reference point than the truth does, in L2 distance. The reference is the true image
    of another position, the next on a random cycle through all of them: it is drawn from the prior, knows nothing of the
    image's own truth, and is the same for every method.
    """
    _check_samples(evaluation, "TARP needs")
    if len(evaluation) < 3:
        raise UserError(f"TARP takes its reference points from other images and needs at least 3, not {len(evaluation)}")
    references = random_cycle(len(evaluation)).to(evaluation.truth.device)

    def value(where: str, shares: Array, space: FeatureSpace | None = None) -> MetricValue:
        p_value, expected = kolmogorov_test(shares)
        settings = (
            f"max |expected coverage - level|, {expected:.3f} expected when calibrated; {p_text(p_value)} (Kolmogorov-Smirnov, "
            f"discrete ranks); K={evaluation.num_samples} samples, L2 distance to one reference an image, the true image of "
            f"another, next on a random cycle (seed {_SEED}); {_INTERVAL}, clipped at 0"
        )
        return _set_value(f"tarp@{where}", largest_deviation, shares, settings, space)

    def in_space(name: str) -> list[MetricValue]:
        truth, samples = evaluation.features(name)
        return [value(name, _in_blocks(_distance_ranks, truth, samples, truth[references]), evaluation.space(name))]

    shares = _of_values(evaluation, _distance_ranks, [Reordered(evaluation.truth, references)])
    of_values = partial(value, evaluation.domain.unit)
    return together(lambda: [of_values(shares())], in_each_space(evaluation, ["tarp"], in_space))


@metric(MetricSpec(name="spread_skill", section=Section.CALIBRATION, direction=towards(1.0), position=40))
def spread_skill(evaluation: EvaluationSet) -> Later:
    """`spread_skill@pixel` or `@point`: sqrt((S+1)/S variance of the samples / squared error of their mean); 1 when calibrated.

    Both are means over entries and images.
    Fortin et al. 2014, "Why should ensemble spread match the RMSE of the ensemble mean?", eq. 15. Below 1 the samples are too
    close together for the error they make. SNaP's calibration ratio (variance over squared error without the variance's own
    share in it) is S r^2 / (S + 1 - r^2) of this ratio r, and says the same.
    """
    _check_samples(evaluation, "the spread of an image's samples needs")
    count, domain = evaluation.num_samples, evaluation.domain

    def moments(truth: Tensor, samples: Tensor) -> Tensor:
        """Mean variance and mean squared error in stored numbers, whose unit cancels; [n,P], [n,S,P] -> [n,2]."""
        numbers = samples.to(domain.exact_dtype)
        # In this type samples without spread have none here.
        mean = numbers.sum(1) / count
        variance = (numbers - mean[:, None]).square().sum((1, 2), dtype=torch.float64) / (count - 1)
        error = (mean - truth.to(domain.exact_dtype)).square().sum(1, dtype=torch.float64)
        return torch.stack([variance, error], dim=1) / truth.shape[1]

    def ratio(means: Array) -> Array:
        return np.sqrt((count + 1) / count * means[..., 0] / means[..., 1])

    asked = _of_values(evaluation, moments)

    def values() -> list[MetricValue]:
        per_image = asked()
        if per_image[:, 1].sum() == 0:
            raise UserError("the mean of the samples is the truth in every entry, so there is no error to compare with")
        of_what = f"K={count} samples, {domain.entries}"
        settings = f"sqrt of (K+1)/K mean variance over mean squared error of the mean, {of_what}; {_INTERVAL}"
        return [_set_value(f"spread_skill@{domain.unit}", ratio, per_image, settings, with_curves=False)]

    return values


def quoted_level(count: int) -> float:
    """Of the exact central levels of `count` >= 2 samples, the nearest to 0.9: 9/11 of 10 samples, 0.9 of 19."""
    levels = central_levels(count)
    return float(levels[np.abs(levels - _QUOTED_LEVEL).argmin()])


def data_levels(truth: Rows) -> tuple[int, Tensor]:
    """Number of grey levels that occur in the true images, and for each of the 256 the nearest of them, uint8 [256].

    Data of few levels (binary or coarsely scanned images) would otherwise rank below every sample that misses one by 1/255.
    Photographs have all 256 levels, which changes nothing.
    """
    size = max(1, _BLOCK_VALUES // truth.shape[1:].numel())
    found = torch.zeros(256, dtype=torch.bool, device=truth.device)
    for start in range(0, len(truth), size):
        # Counted, not sorted: Tensor.unique takes many times the images' memory.
        found |= truth[start : start + size].flatten().bincount(minlength=256) > 0
        if found.all():
            break
    levels = found.nonzero()[:, 0]
    every = torch.arange(256, device=truth.device)
    return len(levels), levels[(every[:, None] - levels).abs().argmin(1)].to(torch.uint8)


def random_directions(dimension: int) -> Tensor:
    """100 unit vectors, uniform on the sphere, float32 [dimension,100]; the same at every call."""
    generator = torch.Generator().manual_seed(_SEED)
    return torch.nn.functional.normalize(torch.randn(dimension, _PROJECTIONS, generator=generator), dim=0)


def random_cycle(n: int) -> Tensor:
    """A successor for each of n positions such that all lie on one cycle, int64 [n]; the same at every call."""
    order = torch.from_numpy(np.random.default_rng(_SEED).permutation(n))
    successor = torch.empty_like(order)
    successor[order] = order.roll(-1)
    return successor


def _distance_ranks(truth: Tensor, samples: Tensor, reference: Tensor) -> Tensor:
    """Ranks of the truth's distance to the reference among the samples', [b,d], [b,S,d], [b,d] -> [b,S+1]."""
    point = reference.float()
    # Squares of differences of 8-bit levels are exact, and so are their sums.
    of_truth = (truth.float() - point).square().sum(1, keepdim=True, dtype=torch.float64)
    of_samples = (samples.float() - point[:, None]).square().sum(2, keepdim=True, dtype=torch.float64)
    return rank_shares(of_truth, of_samples)


def _check_samples(evaluation: EvaluationSet, what: str) -> None:
    if evaluation.num_samples < 2:
        raise UserError(f"{what} at least 2 samples of an image")


def _of_values(evaluation: EvaluationSet, function: Callable[..., Tensor], others: Sequence[Rows] = ()) -> Callable[[], Array]:
    """Asks for a function of stored numbers, [b,P], [b,S,P] and of others [b,P] -> [b,k], of all images: [N,k]."""

    def flat(truth: Tensor, samples: Tensor, *others: Tensor) -> Tensor:
        return function(truth.flatten(1), samples.flatten(2), *(other.flatten(1) for other in others))

    answer = evaluation.per_image(flat, evaluation.block_size(_BLOCK_VALUES), others)
    return lambda: answer.result().cpu().numpy()


def _in_blocks(function: Callable[..., Tensor], truth: Tensor, samples: Tensor, *others: Tensor) -> Array:
    """Concatenates `function` over blocks of images that are small enough to hold as floats; [n,k]."""
    size = max(1, _BLOCK_VALUES // samples[0].numel())
    blocks: Iterator[tuple[Tensor, ...]] = zip(*(tensor.split(size) for tensor in (truth, samples, *others)), strict=True)
    results = torch.empty(0)
    for number, block in enumerate(blocks):
        result = function(*block)
        if number == 0:
            # Allocated once: small results kept between large blocks would leave the freed blocks' memory in pieces.
            results = result.new_empty(len(truth), result.shape[1], device="cpu")
        results[number * size : (number + 1) * size] = result
    return results.numpy()


def _rank_values(where: str, shares: Array, what: str, space: FeatureSpace | None = None) -> list[MetricValue]:
    count = shares.shape[1] - 1
    levels, level = central_levels(count), quoted_level(count)
    coverage = central_coverage(shares)[:, int(np.abs(levels - level).argmin())]
    ties = "ties count for each rank they could have"
    width = round(level * (count + 1))
    of_coverage = f"{level:.4g} = {width}/{count + 1} when calibrated; {what}; central interval of K={count} samples; {ties}"
    p_value = uniformity_p_value(shares)
    test = "too few images for a test" if p_value is None else f"{p_text(p_value)} (bias and spread, images as units)"
    of_error = (
        f"mean |coverage - level| over the {len(levels)} exact central levels of K={count} samples; ranks uniform: {test}; "
        f"{what}; {ties}; {_INTERVAL}, clipped at 0"
    )
    return [
        replace(
            mean_value(f"interval_coverage@{where}", torch.from_numpy(coverage), of_coverage, space, share_interval),
            target=level,
        ),
        _set_value(f"calibration_error@{where}", calibration_error, shares, of_error, space),
    ]


def _set_value(
    name: str,
    statistic: Callable[[Array], Array],
    per_image: Array,
    settings: str,
    space: FeatureSpace | None = None,
    with_curves: bool = True,
) -> MetricValue:
    """`statistic` of the mean over images of per_image [n,k], where it maps [...,k] -> [...]; not negative."""
    n = len(per_image)
    value = float(statistic(per_image.mean(0)))
    replicates = statistic(resampling_counts(n) @ per_image / n)
    low, high = normal_interval(value, replicates) if n > 1 else (None, None)
    return MetricValue(
        name=name,
        value=value,
        low=None if low is None else max(0.0, low),
        high=high,
        n=n,
        feature_space=space.name if space else None,
        feature_weights_sha256=space.weights_sha256 if space else None,
        settings=settings,
        replicates=torch.from_numpy(replicates),
        curves=torch.from_numpy(per_image) if with_curves else None,
    )
