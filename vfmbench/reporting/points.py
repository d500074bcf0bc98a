"""Pictures of samples on suites of points: scatter plots over the exact posterior, where images have a grid of images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from vfmbench.reporting.drawing import COLOURS, NARROWEST, panels
from vfmbench.reporting.point_panels import PointPanels
from vfmbench.reporting.point_runs import PointRun, observations
from vfmbench.results.shards import PICTURED, Shards, common_positions
from vfmbench.running.plan import Plan

_OBSERVATIONS_COMPARED, _OBSERVATIONS_PREVIEWED = 4, 3
_COLUMNS = 4
_DATA_POINTS = 2000
_PANEL = 2.0
_ROOM = (0.5, 1.2)


def posterior_picture(plan: Plan, shards: Shards) -> Path:
    """Writes `grid.png` into the run's directory: samples of the first observations over draws from their exact posteriors."""
    run = PointRun.of_plan(plan, shards)
    positions = shards.positions[:PICTURED]
    shown, samples = run.observations(positions), run.samples_of(positions)
    observed, count = PointPanels(shown, _data(plan)), len(shown.index)
    columns = min(_COLUMNS, count)
    rows = -(-count // columns)
    identity = plan.identity
    title = f"{identity.method} on {identity.task} ({identity.suite}, {identity.split}, seed {identity.seed})"
    path = plan.store.paths.picture
    with panels(path, rows, columns, _size(rows, columns)) as (figure, axes):
        observed.prepare(axes)
        for axis in axes.flat[count:]:
            axis.set_axis_off()
        for row, axis in enumerate(axes.flat[:count]):
            observed.draw(axis, row, samples[row])
            axis.set_title(observed.heading(row), fontsize=8)
        observed.finish(figure, title, sampled=True)
    return path


def comparison_picture(finished: Sequence[tuple[Plan, Shards]]) -> Path:
    """Writes `<out>/<suite>/compare-<task>.png`: the samples of each method, a column each, for observations that all have.

    Args:
        finished: runs of one task on the same points, and their samples.
    """
    first, _ = finished[0]
    runs = {plan.identity.method: PointRun.of_plan(plan, shards) for plan, shards in finished}
    common = common_positions([shards for _, shards in finished])[:_OBSERVATIONS_COMPARED]
    observed = PointPanels(runs[first.identity.method].observations(common), _data(first))
    identity = first.identity
    title = f"{identity.task}, samples of each method ({identity.suite}, {identity.split}, seed {identity.seed})"
    path = first.store.paths.comparison_picture(identity.task)
    with panels(path, len(common), len(runs), _size(len(common), len(runs))) as (figure, axes):
        observed.prepare(axes)
        for row, axis in enumerate(axes[:, 0]):
            axis.set_ylabel(f"{observed.heading(row)}\n{axis.get_ylabel()}", fontsize=8)
        for column, (method, run) in enumerate(runs.items()):
            axes[0, column].set_title(method, fontsize=9)
            for row, samples in enumerate(run.samples_of(common)):
                observed.draw(axes[row, column], row, samples)
        observed.finish(figure, title, sampled=True)
    return path


def task_picture(plan: Plan, positions: Sequence[int], path: Path) -> Path:
    """Writes what a task observes: points of the data, and beside them some observations with their exact posteriors.

    Args:
        positions: what may be observed; the first few are.
    """
    shown = observations(plan.identity, plan.suite, plan.task, plan.dataset, positions[:_OBSERVATIONS_PREVIEWED])
    data = _data(plan)
    observed, columns = PointPanels(shown, data), 1 + len(shown.index)
    title = f"{plan.task.name} ({plan.identity.suite}, {plan.identity.split}, seed {plan.identity.seed})"
    with panels(path, 1, columns, _size(1, columns)) as (figure, axes):
        observed.prepare(axes)
        observed.cloud(axes[0, 0], data, COLOURS[2])
        axes[0, 0].set_title(f"{len(data)} points of the data", fontsize=8)
        for row, axis in enumerate(axes[0, 1:]):
            observed.draw(axis, row)
            axis.set_title(observed.heading(row), fontsize=8)
        observed.finish(figure, title, sampled=False)
    return path


def _data(plan: Plan) -> Tensor:
    """The first points of the run's split, [n,d]."""
    return plan.dataset.load(range(min(_DATA_POINTS, len(plan.dataset))))[0].flatten(1)


def _size(rows: int, columns: int) -> tuple[float, float]:
    """Inches of a figure of so many panels."""
    return max(NARROWEST, _PANEL * columns + _ROOM[0]), _PANEL * rows + _ROOM[1]
