"""The VFM paper's figure 2: where a noise adapter puts its mass, in noise space and in data space of the checkerboard."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from vfmbench.errors import UserError
from vfmbench.methods.figures.checkerboard import (
    REGIONS,
    Draws,
    coloured_draws,
    data_panel,
    noise_panel,
    outline,
    runs_of_one_set,
)
from vfmbench.reporting.drawing import common_directory, panels, picture_path, wrapped
from vfmbench.reporting.point_runs import PointRun
from vfmbench.reporting.training_labels import training_labels

VALUES = (-1.5, -0.5, 0.5, 1.5)
"""The observations that the figure shows: the middles of the board's columns."""

_NEAREST = 20
_FARTHEST = 0.5
_MOST_RUNS = 7
_PRIOR_DRAWS = 3000
_PANEL = 1.6


@dataclass(frozen=True)
class Posteriors:
    """Samples of the observations nearest to each of VALUES.

    Attributes:
        samples: [n,2] for each value.
        source: the noise that they were made from, [n,2] for each value; None where the method has none.
        distance: largest distance of such an observation from its value.
        count: largest number of observations that a value has.
    """

    samples: list[Tensor]
    source: list[Tensor] | None
    distance: float
    count: int


def densities_figure(folders: Sequence[Path], out: Path | None = None) -> Path:
    """Draws prior draws and posterior densities of the runs in and below the folders as a PNG.

    A run has two rows, its noise space and its data space, or only the second if it stores neither prior nor source.

    Args:
        out: by default `densities.png` in the folder that the runs have in common.

    Raises:
        UserError: as `runs_of_one_set` and `PointRun.of_stored`; a run has no observation near one of VALUES; `out` cannot be
            written.
    """
    title, stored = runs_of_one_set(folders, "densities", _MOST_RUNS)
    path = picture_path(out, common_directory(stored) / "densities.png")
    runs = [PointRun.of_stored(run) for run in stored]
    posteriors = [nearest_posteriors(run) for run in runs]
    _draw(title, dict(zip(training_labels(stored), zip(runs, posteriors, strict=True), strict=True)), path)
    return path


def nearest_posteriors(run: PointRun) -> Posteriors:
    """The samples that densities are estimated from: of at most 20 observations for each value, all within 0.5 of it."""
    y = run.observations(run.index.tolist()).measurement.y.flatten()
    distances = (y - torch.tensor(VALUES)[:, None]).abs()
    nearest = [row.argsort()[:_NEAREST] for row in distances]
    rows = [order[row[order] <= _FARTHEST] for row, order in zip(distances, nearest, strict=True)]
    for value, found in zip(VALUES, rows, strict=True):
        if not len(found):
            raise UserError(f"A run of {len(y)} observations has none within {_FARTHEST:g} of y = {value:g}; make it longer.")
    return Posteriors(
        samples=[run.samples[found].flatten(0, 1) for found in rows],
        source=None if run.source is None else [run.source[found].flatten(0, 1) for found in rows],
        distance=max(float(row[found].max()) for row, found in zip(distances, rows, strict=True)),
        count=max(len(found) for found in rows),
    )


def _draw(title: str, runs: Mapping[str, tuple[PointRun, Posteriors]], path: Path) -> None:
    draws = {heading: coloured_draws(run, _PRIOR_DRAWS) for heading, (run, _) in runs.items()}
    rows: list[tuple[str, Posteriors, Draws | None, bool]] = []
    for heading, (_, posteriors) in runs.items():
        spaces = (True, False) if draws[heading] is not None and posteriors.source is not None else (False,)
        rows += [(heading, posteriors, draws[heading], noise) for noise in spaces]
    width = _PANEL * len(VALUES) + 0.5
    with panels(path, len(rows), len(VALUES), (width, _PANEL * len(rows) + 1.3)) as (figure, axes):
        for (heading, posteriors, own, noise), row in zip(rows, axes, strict=True):
            for number, axis in enumerate(row):
                if noise and own is not None and posteriors.source is not None:
                    noise_panel(axis, own)
                    outline(axis, posteriors.source[number])
                else:
                    data_panel(axis, own)
                    axis.axvline(VALUES[number], color="black", linewidth=0.9, linestyle="--")
                    outline(axis, posteriors.samples[number])
                if number:
                    axis.set_ylabel("")
                    axis.tick_params(labelleft=False)
            space = "noise space" if noise else "data space"
            row[0].set_ylabel(f"{wrapped(heading, _PANEL)}\n{space}, {row[0].get_ylabel()}", fontsize=8)
        for value, axis in zip(VALUES, axes[0], strict=True):
            axis.set_title(f"y = {value:g}", fontsize=9)
        figure.suptitle(wrapped(title, width), fontsize=9)
        figure.supxlabel(wrapped(_caption([posteriors for _, posteriors in runs.values()], draws), width), fontsize=8)


def _caption(posteriors: Sequence[Posteriors], draws: Mapping[str, Draws | None]) -> str:
    inner, outer = (f"{share:.0%}".replace("%", " %") for share in REGIONS)
    text = (
        f"Outlines: regions that hold {inner} (thick) and {outer} of the posterior samples of the {posteriors[0].count} "
        f"observations nearest to y (at most {max(entry.distance for entry in posteriors):.2f} away), by a kernel density "
        "estimate."
    )
    known = [entry for entry in draws.values() if entry is not None]
    if known:
        text = (
            f"Dots: {max(len(entry.x) for entry in known)} draws from each method's prior, coloured by the cell that they land "
            f"in, grey outside of all. {text}"
        )
    return f"{text} Dashed: y. Squares: the cells of the true prior."
