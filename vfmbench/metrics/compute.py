"""Computes a run's metrics: one that fails becomes a missing value with its reason, and the others go on."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from vfmbench.errors import UserError
from vfmbench.interfaces import MetricValue
from vfmbench.metrics.evaluation import EvaluationSet
from vfmbench.metrics.values import missing

Metric = Callable[[EvaluationSet], list[MetricValue]]

# Of no meaning for images: their posterior is not known.
_OF_POINTS = ("mmd_posterior", "sliced_wasserstein", "mode_error", "sacc_posterior", "mmd_prior", "sacc_prior")

_LOG = logging.getLogger(__name__)


def metrics_of_images(registered: Iterable[str]) -> list[str]:
    """Those of the registered metrics that a suite of images takes by default."""
    return [name for name in registered if name not in _OF_POINTS]


def compute_metrics(evaluation: EvaluationSet, metrics: Mapping[str, Metric]) -> list[MetricValue]:
    """Values of all metrics in the order given.

    No number is silently infinite or not a number: such a value becomes missing unless its metric explains it in `reason`.
    A value's settings begin with those of its feature space, and end with the count where images are left out. A metric's error
    other than UserError is logged with its traceback.
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
        return [replace(missing(name, f"{type(error).__name__}: {error}"), broken=True)]


def _checked(value: MetricValue, evaluation: EvaluationSet) -> MetricValue:
    network = {**evaluation.feature_spaces, **evaluation.perceptual}.get(value.feature_space or "")
    if value.value is None:
        # With its hash it is known later that the value is missing for another reason than the network.
        sha256 = None if network is None or isinstance(network, str) else network.weights_sha256
        return replace(value, feature_weights_sha256=sha256)
    if not math.isfinite(value.value) and value.reason is None:
        emptied = replace(value, value=None, low=None, high=None, n=0, per_image=None, replicates=None, curves=None)
        return replace(emptied, reason=f"the result is {value.value}")
    if any(bound is not None and not math.isfinite(bound) for bound in (value.low, value.high)):
        value = replace(value, low=None, high=None)
    space = evaluation.feature_spaces.get(value.feature_space or "")
    about_space = "" if space is None or isinstance(space, str) else space.settings
    few = len(evaluation) < evaluation.planned
    about_count = f"only {len(evaluation)} of {evaluation.planned} planned images" if few else ""
    return replace(value, settings="; ".join(filter(None, [about_space, value.settings, about_count])))
