"""Computes a run's metrics: one that fails becomes a missing value with its reason, and the others go on."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import replace

from vfmbench.interfaces import MetricValue, UserError
from vfmbench.metrics.evaluation import EvaluationSet
from vfmbench.metrics.values import missing

Metric = Callable[[EvaluationSet], list[MetricValue]]

_LOG = logging.getLogger(__name__)


def compute_metrics(evaluation: EvaluationSet, metrics: Mapping[str, Metric]) -> list[MetricValue]:
    """Values of all metrics in the order given.

    No number is silently infinite or not a number: such a value becomes missing unless its metric explains it in `reason`.
    A value from fewer images than planned says so in its settings. A metric's error other than UserError is logged with its
    traceback.
    """
    values: list[MetricValue] = []
    for name, metric in metrics.items():
        values += [_checked(value, evaluation) for value in _outcome(name, metric, evaluation)]
    return values


def _outcome(name: str, metric: Metric, evaluation: EvaluationSet) -> list[MetricValue]:
    try:
        return list(metric(evaluation)) or [missing(name, "there is no feature space to compute it in")]
    except UserError as error:
        return [missing(name, str(error))]
    except Exception as error:  # a plugin's bug must not cost the run its other numbers
        _LOG.exception("metric %s failed", name)
        return [missing(name, f"{type(error).__name__}: {error}")]


def _checked(value: MetricValue, evaluation: EvaluationSet) -> MetricValue:
    if value.value is None:
        return value
    if not math.isfinite(value.value) and value.reason is None:
        return replace(
            value, value=None, low=None, high=None, n=0, per_image=None, replicates=None, reason=f"the result is {value.value}"
        )
    if any(bound is not None and not math.isfinite(bound) for bound in (value.low, value.high)):
        value = replace(value, low=None, high=None)
    if len(evaluation) < evaluation.planned:
        note = f"only {len(evaluation)} of {evaluation.planned} planned images"
        value = replace(value, settings="; ".join(filter(None, [value.settings, note])))
    return value
