"""What a run's metrics.json holds: a row for each number, and beside it all that tables and tests must know of its metric.

Written and read here alone. Needs no torch, and no metric: a report reads a plugin's numbers without the plugin.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from vfmbench.domains import DOMAINS, DomainName
from vfmbench.errors import UserError

SCHEMA_VERSION = 2
"""Layout of a run directory and of the samples in it."""

METRICS_VERSION = 3
"""Layout of metrics.json. Metrics in another one are computed again from the samples."""

COST = "cost"
"""What stands for the name of a metric where a row is of what sampling cost."""


class Section(StrEnum):
    """What a metric speaks of: the parts of a table, in their order."""

    RECONSTRUCTION = "reconstruction"
    POSTERIOR = "posterior"
    EXACT = "exact posterior"
    PRIOR = "prior"
    DISTRIBUTION = "distribution"
    CONSISTENCY = "consistency"
    CALIBRATION = "calibration"
    OTHER = "other"
    COST = "cost"


class _Stored(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Direction(_Stored):
    """More is better, less is better, or nearer to a target is better.

    Attributes:
        target: None in a specification whose values bring a target each, as where it depends on the number of samples.
    """

    kind: Literal["higher", "lower", "target"]
    target: float | None = None

    @model_validator(mode="after")
    def _check(self) -> Direction:
        if self.target is not None and self.kind != "target":
            raise ValueError(f"a direction {self.kind!r} has no target")
        return self

    def score(self, value: float) -> float:
        """What methods are ordered by: the value itself, or its distance from the target."""
        return value if self.target is None else abs(value - self.target)

    def is_better(self, difference: float) -> bool:
        """Whether a score that differs by `difference` from another's is the better one."""
        return difference > 0 if self.kind == "higher" else difference < 0

    def __str__(self) -> str:
        if self.kind == "target":
            return "→" if self.target is None else f"→ {self.target:.3g}"
        return "↑" if self.kind == "higher" else "↓"


HIGHER, LOWER = Direction(kind="higher"), Direction(kind="lower")


def towards(target: float | None = None) -> Direction:
    """Nearer to `target` is better."""
    return Direction(kind="target", target=target)


class MetricSpec(_Stored):
    """What is known of a metric before it is computed; declared beside its function, and stored with each value.

    >>> MetricSpec(name="psnr", section=Section.RECONSTRUCTION, direction=HIGHER)

    Attributes:
        name: of the value, without the feature space behind an @. "*" stands for any text, such as a network's name.
        direction: None for what only describes.
        position: place in its section, ascending; the default is the section's end.
        domains: the data it is defined for.
        needs_run: it reads what only a run stores (observations, likelihoods, labels), not just two sets of images.
        compared: has a row in tables of several runs, and is tested there.
        occasional: has a row only where some run's value is not zero.
        version: to be raised whenever the same samples may give another value: stored values of other versions are stale.
    """

    name: str
    section: Section = Section.OTHER
    direction: Direction | None = None
    position: int = 1000
    domains: tuple[DomainName, ...] = tuple(DOMAINS)
    needs_run: bool = False
    compared: bool = True
    occasional: bool = False
    version: int = 1


def _finite(number: float | None) -> float | None:
    return None if number is None or not math.isfinite(number) else number


# JSON has no infinity; a value that is infinite carries its explanation in `reason`.
Number = Annotated[float | None, BeforeValidator(_finite)]


class MetricRow(_Stored):
    """One number of metrics.json.

    Attributes:
        name: with the feature space, as in `crps@pixel`.
        metric: registered name of what computed it, or `COST`.
        value: None if it could not be computed; `reason` then says why.
        low, high: 95 % interval.
        n: number of images (of costs: batches) it was computed from.
        broken: `reason` is an error other than a lack of data or weights, so that the next run tries again.
        target: the number that is best in this run, for a metric whose specification leaves that open.
        source_sha256: hash of the source file of a metric from outside this package, whose code has no version that we know.
    """

    name: str
    metric: str
    value: Number
    low: Number = None
    high: Number = None
    n: int = 0
    feature_space: str | None = None
    feature_weights_sha256: str | None = None
    settings: str = ""
    reason: str | None = None
    broken: bool = False
    target: float | None = None
    source_sha256: str | None = None
    spec: MetricSpec

    @property
    def direction(self) -> Direction | None:
        """Which way the number is better; None too for one whose target is not known."""
        found = self.spec.direction if self.target is None else towards(self.target)
        return None if found is not None and found.kind == "target" and found.target is None else found

    @property
    def has_row(self) -> bool:
        """Whether there is a number to show in a table of one run."""
        return self.value is not None and not (self.spec.occasional and self.value == 0)

    def flat(self) -> dict[str, Any]:
        """A row of a data frame: the row and its specification side by side, the direction as an arrow."""
        spec = self.spec.model_dump(mode="json", exclude={"name", "direction"})
        return {**self.model_dump(mode="json", exclude={"spec"}), "direction": str(self.direction or ""), **spec}

    @property
    def place(self) -> tuple[int, int]:
        """What the rows of a table are sorted by; rows of equal places keep their order."""
        return list(Section).index(self.spec.section), self.spec.position


@dataclass(frozen=True)
class MetricResult:
    """A row, and the tables that are stored beside metrics.json.

    Attributes:
        per_image: what the value is the mean of, float64 [n], for paired comparisons.
        replicates: of a statistic of the whole set, its values on bootstrap resamples, float64 [R], for paired comparisons:
            every run of n images is resampled alike.
        curves: what each image adds to a curve that belongs to the metric, float64 [n,k], for figures.
    """

    row: MetricRow
    per_image: NDArray[np.float64] | None = None
    replicates: NDArray[np.float64] | None = None
    curves: NDArray[np.float64] | None = None


class UnreadableMetrics(UserError):
    """metrics.json is damaged, or of another version of this program."""


class _File(_Stored):
    schema_version: int
    metrics: list[MetricRow] = Field(default_factory=list)


def metrics_json(rows: Sequence[MetricRow]) -> bytes:
    """Content of metrics.json."""
    return _File(schema_version=METRICS_VERSION, metrics=list(rows)).model_dump_json(indent=1).encode()


def read_metrics(path: Path) -> list[MetricRow]:
    """Rows of a metrics.json; none if there is no such file.

    Raises:
        UnreadableMetrics: it was written in another layout, or is damaged.
    """
    if not path.exists():
        return []
    try:
        content = json.loads(path.read_text())
        if content["schema_version"] != METRICS_VERSION:
            raise UnreadableMetrics(
                f"{path} was written by another version of vfmbench (layout {content['schema_version']}, this one reads "
                f"{METRICS_VERSION}); `vfmbench metrics {path.parent}` computes the metrics again from the stored samples."
            )
        return _File.model_validate(content).metrics
    except (ValueError, KeyError, TypeError, ValidationError):
        raise UnreadableMetrics(f"{path} is damaged; `vfmbench metrics {path.parent}` computes the metrics again.") from None
