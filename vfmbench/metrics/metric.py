"""A metric: a function of an evaluation set, and what is declared of the values that it gives."""

from __future__ import annotations

from collections.abc import Callable
from fnmatch import fnmatchcase
from functools import update_wrapper

from vfmbench.domains import Domain
from vfmbench.files import foreign_source_sha256
from vfmbench.metrics.evaluation import EvaluationSet
from vfmbench.metrics.values import Later, MetricValue, later
from vfmbench.results.schema import MetricRow, MetricSpec

Compute = Callable[[EvaluationSet], list[MetricValue] | Later]


class Metric:
    """What the registry holds under a metric's name; made by the decorator `metric`.

    Attributes:
        specs: of the values, in the order in which a name is looked up.
        source_sha256: hash of the function's source file where that is not this package's.
    """

    def __init__(self, compute: Compute, specs: tuple[MetricSpec, ...]):
        update_wrapper(self, compute)
        self._compute = compute
        self.specs = specs
        self.source_sha256 = foreign_source_sha256(compute.__module__)

    def __call__(self, evaluation: EvaluationSet) -> list[MetricValue]:
        """Raises UserError where it cannot be computed, which the harness turns into a missing value with this reason."""
        return self.begin(evaluation)()

    def begin(self, evaluation: EvaluationSet) -> Later:
        """Has the metric ask for what it needs of each image. Raises UserError, as does the function returned."""
        return later(self._compute(evaluation))

    def spec(self, name: str) -> MetricSpec | None:
        """The specification of a value, `crps@pixel` being looked up as `crps`; None if it was not declared."""
        base = name.partition("@")[0]
        return next((spec for spec in self.specs if fnmatchcase(base, spec.name)), None)

    def is_for(self, domain: Domain) -> bool:
        return any(domain.name in spec.domains for spec in self.specs)

    @property
    def needs_run(self) -> bool:
        """Whether two sets of images give none of its values."""
        return all(spec.needs_run for spec in self.specs)

    def would_give(self, row: MetricRow) -> bool:
        """Whether a stored row is of this version of the metric."""
        # What is missing altogether goes by the metric's own name.
        spec = self.spec(row.name) or self.specs[0]
        return row.spec == spec and row.source_sha256 == self.source_sha256


def metric(*specs: MetricSpec) -> Callable[[Compute], Metric]:
    """Declares a function as a metric that gives the values specified, each in any number of feature spaces.

    The function returns its values. It may return a function that does, after asking for what it needs by
    `EvaluationSet.per_image`, so that pixels are read once for all metrics that do so, and never all at once.

    >>> @metric(MetricSpec(name="bias", section=Section.RECONSTRUCTION, direction=towards(0.0)))
    ... def bias(evaluation: EvaluationSet) -> list[MetricValue]:
    ...     difference = evaluation.samples_unit.mean(1) - evaluation.truth_unit
    ...     return [mean_value("bias", difference.flatten(1).mean(1), "range [0,1]")]

    Raises:
        ValueError: no specification.
    """
    if not specs:
        raise ValueError("a metric needs a MetricSpec for each value that it gives")
    return lambda compute: Metric(compute, specs)
