"""How metrics build their `MetricValue`s: means over images with an interval, and missing values with a reason."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from torch import Tensor

from vfmbench.errors import UserError
from vfmbench.interfaces import FeatureSpace, MetricValue, PerceptualDistance
from vfmbench.metrics.evaluation import EvaluationSet
from vfmbench.results.statistics import Interval, Values, mean_interval


def mean_value(
    name: str,
    per_image: Tensor,
    settings: str,
    space: FeatureSpace | PerceptualDistance | None = None,
    interval: Callable[[Values], Interval] = mean_interval,
) -> MetricValue:
    """The mean over images of per_image [n] with its 95 % interval.

    Args:
        interval: `share_interval` for values in [0, 1] that may all be 0 or 1.

    Raises:
        UserError: a value is not finite; the message names the first such image's position.
    """
    per_image = per_image.double().cpu()
    broken = ~per_image.isfinite()
    if broken.any():
        raise UserError(f"{name} is not finite for {int(broken.sum())} images, first for image {int(broken.nonzero()[0])}")
    low, high = interval(per_image.numpy())
    return MetricValue(
        name=name,
        value=float(per_image.mean()),
        low=low,
        high=high,
        n=len(per_image),
        feature_space=space.name if space else None,
        feature_weights_sha256=space.weights_sha256 if space else None,
        settings=settings,
        per_image=per_image,
    )


def missing(name: str, reason: str, space_name: str | None = None) -> MetricValue:
    """A metric that could not be computed."""
    return MetricValue(name=name, value=None, feature_space=space_name, reason=reason)


def attempt(names: Sequence[str], compute: Callable[[], list[MetricValue]], space_name: str | None = None) -> list[MetricValue]:
    """What `compute` returns; if it raises UserError, every one of `names` as missing with that reason."""
    try:
        return compute()
    except UserError as error:
        return [missing(name, str(error), space_name) for name in names]


def in_each_space(
    evaluation: EvaluationSet, metrics: Sequence[str], compute: Callable[[str], list[MetricValue]]
) -> list[MetricValue]:
    """`compute(space name)` for every feature space of the set, where it must return `metric@space` for each of `metrics`."""
    values: list[MetricValue] = []
    for space in evaluation.feature_spaces:
        values += attempt([f"{metric}@{space}" for metric in metrics], partial(compute, space), space)
    return values
