"""What a metric gives, and how it is built: means over images with an interval, and missing values with a reason."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from vfmbench.errors import UserError
from vfmbench.interfaces import FeatureSpace, PerceptualDistance
from vfmbench.metrics.evaluation import EvaluationSet
from vfmbench.results.schema import MetricResult, MetricRow, MetricSpec
from vfmbench.results.statistics import Interval, Values, mean_interval


@dataclass(frozen=True)
class MetricValue:
    """One number that a metric gives.

    Attributes:
        name: as its specification has it, with the feature space behind an @.
        value: None if it could not be computed; `reason` then says why.
        low, high: 95 % interval.
        n: number of images it was computed from.
        target: the number that is best, where the specification's direction leaves that to each value.
        per_image: the values that `value` is the mean of, float64 [n], for paired comparisons.
        broken: `reason` is an error other than a lack of data or weights, so that the next run tries again.
        replicates: for a statistic of the whole set, its values on bootstrap resamples, float64 [R], for paired comparisons:
            every run of n images is resampled alike.
        curves: what each image adds to a curve that belongs to the metric, float64 [n,k], for figures.
    """

    name: str
    value: float | None
    low: float | None = None
    high: float | None = None
    n: int = 0
    feature_space: str | None = None
    feature_weights_sha256: str | None = None
    settings: str = ""
    reason: str | None = None
    broken: bool = False
    target: float | None = None
    per_image: Tensor | None = field(default=None, compare=False, repr=False)
    replicates: Tensor | None = field(default=None, compare=False, repr=False)
    curves: Tensor | None = field(default=None, compare=False, repr=False)

    def stored(self, metric: str, spec: MetricSpec, source_sha256: str | None = None) -> MetricResult:
        """What is stored of it.

        Args:
            metric: registered name of what gave it.
            source_sha256: as in `MetricRow`.
        """
        row = MetricRow(
            name=self.name,
            metric=metric,
            value=self.value,
            low=self.low,
            high=self.high,
            n=self.n,
            feature_space=self.feature_space,
            feature_weights_sha256=self.feature_weights_sha256,
            settings=self.settings,
            reason=self.reason,
            broken=self.broken,
            target=self.target,
            source_sha256=source_sha256,
            spec=spec,
        )
        return MetricResult(row, *(_array(table) for table in (self.per_image, self.replicates, self.curves)))


Later = Callable[[], list[MetricValue]]
"""Values that are computed when they are asked for: after everything that was asked of the images has been read."""


def _array(table: Tensor | None) -> NDArray[np.float64] | None:
    return None if table is None else table.double().cpu().numpy()


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


def later(values: list[MetricValue] | Later) -> Later:
    """A function that gives the values."""
    return values if callable(values) else lambda: values


def together(*parts: Later) -> Later:
    """The values of all parts, one after the other."""
    return lambda: [value for part in parts for value in part()]


def attempt(names: Sequence[str], ask: Callable[[], list[MetricValue] | Later], space_name: str | None = None) -> Later:
    """What `ask` returns; if it, or the function that it returns, raises UserError: every one of `names` as missing with that
    reason.
    """

    def failed(error: UserError) -> list[MetricValue]:
        return [missing(name, str(error), space_name) for name in names]

    try:
        values = later(ask())
    except UserError as error:
        return later(failed(error))

    def finish() -> list[MetricValue]:
        try:
            return values()
        except UserError as error:
            return failed(error)

    return finish


def for_each_space(evaluation: EvaluationSet, metrics: Sequence[str], ask: Callable[[str], Later]) -> Later:
    """`ask(space name)()` for every feature space of the set, which must give `metric@space` for each of `metrics`."""
    names = {space: [f"{metric}@{space}" for metric in metrics] for space in evaluation.feature_spaces}
    return together(*(attempt(names[space], partial(ask, space), space) for space in names))


def in_each_space(evaluation: EvaluationSet, metrics: Sequence[str], compute: Callable[[str], list[MetricValue]]) -> Later:
    """`compute(space name)` for every feature space, as `for_each_space`, once the space's features are there."""

    def ask(space: str) -> Later:
        evaluation.ask_features(space)
        return partial(compute, space)

    return for_each_space(evaluation, metrics, ask)
