"""Which metrics a run takes, which of its stored ones are stale, and their computation, in which one may fail alone."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial

from vfmbench.domains import Domain
from vfmbench.errors import UserError
from vfmbench.interfaces import FeatureSpace, PerceptualDistance
from vfmbench.metrics.evaluation import EvaluationSet
from vfmbench.metrics.metric import Metric
from vfmbench.metrics.values import Later, MetricValue, later, missing
from vfmbench.registry import metrics as registry
from vfmbench.results.schema import MetricResult, MetricRow

_LOG = logging.getLogger(__name__)

Networks = Mapping[str, FeatureSpace | PerceptualDistance | str]
"""Feature spaces and perceptual distances by name, or the reason why one is missing."""


def default_metrics(domain: Domain, *, without_run: bool = False) -> list[str]:
    """Names of the registered metrics of images or of points.

    Args:
        without_run: leave out those that read what only a run stores.
    """
    return [
        name for name, metric in registry.load_all().items() if metric.is_for(domain) and not (without_run and metric.needs_run)
    ]


def chosen_metrics(names: Iterable[str]) -> dict[str, Metric]:
    """The registered metrics of these names. Raises UserError for an unknown name."""
    return {name: registry.get(name) for name in names}


def stale_metrics(metrics: Mapping[str, Metric], rows: Sequence[MetricRow], networks: Networks | None = None) -> list[str]:
    """Names of those metrics that are not stored, or were given by another version of the metric.

    Args:
        rows: what is stored.
        networks: today's; if given, metrics that broke, and those whose network is another one now, are stale too.
    """

    def fresh(row: MetricRow) -> bool:
        if not metrics[row.metric].would_give(row):
            return False
        return networks is None or not (row.broken or row.feature_weights_sha256 != _sha256(networks, row.feature_space))

    stored = {row.metric for row in rows}
    stale = {row.metric for row in rows if row.metric in metrics and not fresh(row)}
    return [name for name in metrics if name not in stored or name in stale]


def compute_metrics(evaluation: EvaluationSet, metrics: Mapping[str, Metric]) -> list[MetricResult]:
    """Results of all metrics in the order given.

    A metric that fails becomes a missing value with its reason, and the others go on. No number is silently infinite or not a
    number: such a value becomes missing unless its metric explains it in `reason`. A value's settings begin with those of its
    feature space, and end with the count where images are left out. A metric's error other than UserError is logged with its
    traceback.
    """
    begun = {name: _begun(name, metric, evaluation) for name, metric in metrics.items()}
    # Outside of any metric: images that cannot be read are no metric's failure.
    evaluation.read()
    return [
        _declared(name, metrics[name], _checked(value, evaluation))
        for name, values in begun.items()
        for value in _outcome(name, values)
    ]


def _begun(name: str, metric: Metric, evaluation: EvaluationSet) -> Later:
    """The metric with all asked that it needs of each image. Where it fails, it does so when its values are taken."""

    def failing(error: Exception) -> list[MetricValue]:
        raise error

    if not metric.is_for(evaluation.domain):
        needed = " or ".join(dict.fromkeys(domain for spec in metric.specs for domain in spec.domains))
        return later([missing(name, f"{name} needs {needed}, and the data are {evaluation.domain}")])
    try:
        return metric.begin(evaluation)
    except Exception as error:
        return partial(failing, error)


def _outcome(name: str, values: Later) -> list[MetricValue]:
    try:
        return list(values()) or [missing(name, "there is no feature space to compute it in")]
    except UserError as error:
        return [missing(name, str(error))]
    except Exception as error:  # a plugin's bug must not cost the run its other numbers
        _LOG.exception("metric %s failed", name)
        return [replace(missing(name, f"{type(error).__name__}: {error}"), broken=True)]


def _checked(value: MetricValue, evaluation: EvaluationSet) -> MetricValue:
    networks: Networks = {**evaluation.feature_spaces, **evaluation.perceptual}
    if value.value is None:
        # With its hash it is known later that the value is missing for another reason than the network.
        return replace(value, feature_weights_sha256=_sha256(networks, value.feature_space))
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


def _declared(name: str, metric: Metric, value: MetricValue) -> MetricResult:
    spec = metric.spec(value.name)
    if spec is None and value.value is not None:
        value = replace(missing(value.name, f"the specification of {name} has no value named {value.name}"), broken=True)
    # What is missing altogether goes by the metric's own name.
    return value.stored(name, spec or metric.specs[0], metric.source_sha256)


def _sha256(networks: Networks, name: str | None) -> str | None:
    network = networks.get(name or "")
    return None if network is None or isinstance(network, str) else network.weights_sha256
