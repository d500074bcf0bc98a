"""How long a sweep will take, from what stored runs and trainings cost."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

from vfmbench.launching.jobs import Job
from vfmbench.results.paths import RunPaths
from vfmbench.weights.manifest import MANIFEST


def estimate(jobs: Sequence[Job], out: Path) -> tuple[float, int]:
    """Seconds that the open parts of the jobs take one after the other, and the number of parts of which nothing is known.

    A run takes what the same method took for a sample on the same task before (the median over stored runs), a training what
    the same stage took for a step; neither knows of other options, so this is an order of magnitude.
    """
    total, unknown = 0.0, 0
    for job in jobs:
        if job.training is not None and not job.training.finished:
            rate = _seconds_per_step(out / "training" / job.training.suite, job.training.stage)
            total, unknown = (total, unknown + 1) if rate is None else (total + rate * job.training.steps, unknown)
        for run in job.runs:
            if run.open:
                rate = _seconds_per_sample(out / "runs" / run.config.suite / run.config.task / run.config.method)
                size = run.images * run.samples / (1 if job.part is None else job.part.count)
                known = rate is not None and size > 0
                total, unknown = (total + (rate or 0.0) * size, unknown) if known else (total, unknown + 1)
    return total, unknown


@cache
def _seconds_per_sample(folder: Path) -> float | None:
    costs = [_read(run.provenance).get("cost", {}).get("seconds") for run in RunPaths.below(folder)]
    found = [cost for cost in costs if cost is not None]
    return median(found) if found else None


@cache
def _seconds_per_step(folder: Path, stage: str) -> float | None:
    rates = []
    for path in [*folder.glob(f"{stage}-*/{MANIFEST}"), folder / MANIFEST]:
        training = _read(path).get(stage, {}).get("training", {})
        if "seconds" in training:
            rates.append(training["seconds"] / training["options"]["steps"])
    return median(rates) if rates else None


def _read(path: Path) -> dict[str, Any]:
    """The JSON document; empty if it is not there or broken: an estimate is no reason to stop."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
