"""The pictures of `run`, `compare` and `preview`, drawn as the suite's domain has it: grids of images, or scatter plots."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from vfmbench.errors import UserError
from vfmbench.reporting import grid, points
from vfmbench.results.shards import PICTURED, Shards
from vfmbench.running.plan import Plan


@dataclass(frozen=True)
class _Pictures:
    posterior: Callable[[Plan, Shards], Path]
    comparison: Callable[[Sequence[tuple[Plan, Shards]]], Path]
    task: Callable[[Plan, Sequence[int], Path], Path]


_DRAWN_AS = {
    "grid": _Pictures(grid.posterior_grid, grid.comparison_grid, grid.task_grid),
    "scatter": _Pictures(points.posterior_picture, points.comparison_picture, points.task_picture),
}


def posterior_picture(plan: Plan, shards: Shards) -> Path:
    """Writes `grid.png` into the run's directory: stored samples of the first images. Runs no model."""
    return _pictures(plan).posterior(plan, shards)


def comparison_picture(finished: Sequence[tuple[Plan, Shards]]) -> Path:
    """Writes `<out>/<suite>/compare-<task>.png`: samples of each method.

    Args:
        finished: runs of one task on the same images, and their samples.
    """
    return _pictures(finished[0][0]).comparison(finished)


def task_picture(plan: Plan) -> Path:
    """Writes `<out>/<suite>/preview-<task>.png`: what a task makes of the first images. Runs no model."""
    count = min(PICTURED, plan.identity.num_images)
    positions = plan.dataset.readable(range(count))
    if not positions:
        raise UserError(f"None of the first {count} images can be decoded; the first is {plan.dataset.errors[0]}.")
    path = plan.store.paths.preview(plan.task.name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out: cannot write to {path.parent}: {error.strerror}.") from error
    return _pictures(plan).task(plan, positions, path)


def _pictures(plan: Plan) -> _Pictures:
    return _DRAWN_AS[plan.suite.domain.picture]
