"""Noise space and data space of runs on the checkerboard: prior draws coloured by the cell that they land in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.stats import gaussian_kde
from torch import Tensor

from vfmbench.errors import UserError
from vfmbench.reporting.drawing import CELL_COLOURS, OUTSIDE
from vfmbench.reporting.point_runs import PointRun
from vfmbench.results.stored import StoredRun, by_image_set, find_runs

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SUITE = "checkerboard"
CELLS = [(column, row) for column in range(4) for row in range(4) if (column + row) % 2 == 0]
"""Filled cells of the 4x4 grid on [-2, 2]^2, as columns and rows from its lower left corner."""

REGIONS = (0.5, 0.9)
"""Shares of the samples that the outlined regions hold."""

_NOISE_LIMIT, _DATA_LIMIT = 3.4, 2.7
_GRID_STEPS = 80
# Scott's rule is for one hill; cells have gaps that it would fill.
_BANDWIDTH = 0.5


@dataclass(frozen=True)
class Draws:
    """Prior draws of a run: noise z and point x [n,2], and the colour of the cell that x lies in."""

    z: Tensor
    x: Tensor
    colours: list[str]


def runs_of_one_set(folders: Sequence[Path], figure: str, most: int) -> tuple[str, list[StoredRun]]:
    """The checkerboard's runs in and below the folders, and the title of the observations that they have in common.

    Raises:
        UserError: as `find_runs`; runs of another suite, of several sets of observations, or more than `most`.
    """
    runs = find_runs(folders)
    for run in runs:
        if run.identity.suite != SUITE:
            raise UserError(
                f"`figure {figure}` is for runs on the suite {SUITE}; {run.store.directory} is on {run.identity.suite}."
            )
    groups = by_image_set(runs)
    if len(groups) > 1:
        raise UserError(f"This figure shows one set of observations; these runs have {len(groups)}: {'; '.join(groups)}.")
    if len(runs) > most:
        raise UserError(f"This figure shows at most {most} runs, not {len(runs)}; name some of them.")
    return next(iter(groups)), runs


def coloured_draws(run: PointRun, count: int) -> Draws | None:
    """At most `count` prior draws; None if the run has no prior."""
    draws = run.prior_draws(count)
    if draws is None:
        return None
    z, x = draws
    posterior = run.observations(run.index[:1].tolist()).posterior
    if posterior is None:
        raise UserError(f"The suite {run.suite.name} does not know its cells.")
    # The modes are the prior's own, so that any observation's posterior knows them.
    shares = posterior.mode_shares(x[None, :, :, None, None])[0]
    cells = shares.argmax(1).where(shares.sum(1) > 0, -1).tolist()
    return Draws(z, x, [OUTSIDE if cell < 0 else CELL_COLOURS[cell] for cell in cells])


def noise_panel(axis: Axes, draws: Draws) -> None:
    """The draws' noise."""
    _panel(axis, _NOISE_LIMIT, ("$z_1$", "$z_2$"))
    _dots(axis, draws.z, draws.colours)


def data_panel(axis: Axes, draws: Draws | None) -> None:
    """The draws themselves, and the borders of the filled cells."""
    from matplotlib.patches import Rectangle

    _panel(axis, _DATA_LIMIT, ("$x_1$", "$x_2$"))
    if draws is not None:
        _dots(axis, draws.x, draws.colours)
    for column, row in CELLS:
        axis.add_patch(Rectangle((column - 2, row - 2), 1, 1, fill=False, edgecolor="black", linewidth=0.5))


def paths_panel(axis: Axes, draws: Draws, count: int) -> None:
    """The first draws as lines from noise to data in one plane, with a dot at the data's end."""
    from matplotlib.collections import LineCollection

    _panel(axis, _NOISE_LIMIT, ("$z_1$, $x_1$", "$z_2$, $x_2$"))
    ends = torch.stack([draws.z, draws.x], 1)[:count].double()
    axis.add_collection(LineCollection(list(ends.numpy()), colors=draws.colours[:count], linewidths=0.7))
    axis.scatter(ends[:, 1, 0], ends[:, 1, 1], s=7, c=draws.colours[:count], linewidths=0, zorder=3)


def outline(axis: Axes, points: Tensor) -> None:
    """Outlines the regions of highest density that hold the shares REGIONS of the points [n,2], by a kernel density estimate.

    Hyndman 1996, "Computing and graphing highest density regions". Points on a line have no density and are drawn themselves.
    """
    points = points[points.isfinite().all(1)].double()
    values = points.numpy().T
    if len(points) < 3 or np.linalg.matrix_rank(np.cov(values)) < 2:
        axis.scatter(values[0], values[1], s=3, color="black", linewidths=0)
        return
    density = gaussian_kde(values, lambda estimate: _BANDWIDTH * estimate.scotts_factor())
    low, high = axis.get_xlim()
    steps = np.linspace(low, high, _GRID_STEPS)
    heights = density(np.stack(np.meshgrid(steps, steps)).reshape(2, -1)).reshape(_GRID_STEPS, _GRID_STEPS)
    levels = np.quantile(density(values), [1 - share for share in sorted(REGIONS, reverse=True)])
    axis.contour(steps, steps, heights, levels=levels, colors="white", linewidths=2.2)
    axis.contour(steps, steps, heights, levels=levels, colors="black", linewidths=[0.8, 1.3])


def _panel(axis: Axes, limit: float, labels: tuple[str, str]) -> None:
    axis.set_xlim(-limit, limit)
    axis.set_ylim(-limit, limit)
    axis.set_aspect("equal")
    axis.set_xticks((-2, 0, 2))
    axis.set_yticks((-2, 0, 2))
    axis.tick_params(labelsize=7, pad=2)
    axis.set_xlabel(labels[0], fontsize=8, labelpad=1)
    axis.set_ylabel(labels[1], fontsize=8, labelpad=0)


def _dots(axis: Axes, points: Tensor, colours: Sequence[str]) -> None:
    axis.scatter(points[:, 0].double(), points[:, 1].double(), s=3, c=colours, linewidths=0)
