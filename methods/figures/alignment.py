"""The VFM paper's figures 8 to 10: how the flow maps of runs on the checkerboard carry noise to data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vfmbench.errors import UserError
from vfmbench.methods.figures.checkerboard import Draws, coloured_draws, data_panel, noise_panel, paths_panel, runs_of_one_set
from vfmbench.reporting.drawing import NARROWEST, common_directory, panels, picture_path, wrapped
from vfmbench.reporting.point_runs import PointRun
from vfmbench.reporting.training_labels import training_labels, training_options
from vfmbench.results.stored import StoredRun

_MOST_RUNS = 8
_DRAWS = 8000
_PATHS = 80
_PANEL = 1.9


def alignment_figure(folders: Sequence[Path], out: Path | None = None) -> Path:
    """Draws the noise and the prior draws of the runs in and below the folders, a column each, as a PNG.

    The columns are in order of method and training options. Runs without draws from a prior are left out.

    Args:
        out: by default `alignment.png` in the folder that the runs have in common.

    Raises:
        UserError: as `runs_of_one_set` and `PointRun.of_stored`; no run has prior draws; `out` cannot be written.
    """
    title, stored = runs_of_one_set(folders, "alignment", _MOST_RUNS)
    path = picture_path(out, common_directory(stored) / "alignment.png")
    stored = sorted(stored, key=_order)
    draws = [coloured_draws(PointRun.of_stored(run), _DRAWS) for run in stored]
    columns = {label: own for label, own in zip(training_labels(stored), draws, strict=True) if own is not None}
    if not columns:
        raise UserError(
            "None of these runs has draws from a prior of its own, as those of vfm, frozen_adapter or unconstrained have."
        )
    _draw(title, columns, path)
    return path


def _order(run: StoredRun) -> tuple[str, list[float]]:
    """By method, then by the numbers among the training options."""
    return run.identity.method, [float(value) for value in training_options(run).values() if isinstance(value, int | float)]


def _draw(title: str, columns: Mapping[str, Draws], path: Path) -> None:
    width = max(NARROWEST, _PANEL * len(columns) + 0.6)
    with panels(path, 3, len(columns), (width, _PANEL * 3 + 1.6)) as (figure, axes):
        for number, (heading, draws) in enumerate(columns.items()):
            noise, data, paths = axes[:, number]
            noise_panel(noise, draws)
            data_panel(data, draws)
            paths_panel(paths, draws, _PATHS)
            noise.set_title(wrapped(heading, _PANEL), fontsize=8)
            if number:
                _without_labels(axes[:, number])
        for axis, space in zip(axes[:, 0], ("noise space", "data space", "both"), strict=True):
            axis.set_ylabel(f"{space}, {axis.get_ylabel()}", fontsize=8)
        caption = (
            f"Dots: {max(len(draws.x) for draws in columns.values())} draws of noise (top) and where the method's map takes "
            "them (middle), coloured by the cell of the true prior that they land in, grey outside of all. "
            f"Lines (bottom): {_PATHS} of them, from the noise to the dot at the end."
        )
        figure.suptitle(wrapped(f"Noise to data: {title}", width), fontsize=9)
        figure.supxlabel(wrapped(caption, width), fontsize=8)


def _without_labels(axes: Any) -> None:
    for axis in axes:
        axis.set_ylabel("")
        axis.tick_params(labelleft=False)
