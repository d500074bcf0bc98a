"""The calibration figure of one or several runs of a task, from the ranks that their metrics stored; runs no model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vfmbench.errors import UserError
from vfmbench.reporting.drawing import COLOURS, MARKERS, common_directory, panels, picture_path
from vfmbench.results.ranks import (
    central_coverage,
    central_levels,
    expected_coverage,
    kolmogorov_test,
    p_text,
    rank_levels,
    uniformity_p_value,
)
from vfmbench.results.stored import StoredRun, by_image_set, find_runs, labels

Array = NDArray[np.float64]
Curves = Mapping[str, Array]
Style = dict[str, Any]

# Markers tell the runs apart in grey.
_STYLES = (*zip(COLOURS, MARKERS, strict=True), ("black", "X"))
_NORMAL_95 = 1.96
_TESTS_IN_A_LINE = 2
_HISTOGRAM_TOP = 3.0
_BAND: Style = {"color": "grey", "alpha": 0.25, "linewidth": 0}


def calibration_figure(folders: Sequence[Path], out: Path | None = None) -> Path:
    """Draws rank histogram, coverage and TARP curve of the runs in and below the folders, a row for each space, as a PNG.

    Args:
        out: by default `calibration.png` in the folder that the runs have in common.

    Raises:
        UserError: as `find_runs`; the runs are of several image sets, too many, or without ranks; `out` cannot be written.
    """
    groups = by_image_set(find_runs(folders))
    if len(groups) > 1:
        raise UserError(f"A calibration figure shows one set of images; these runs have {len(groups)}: {'; '.join(groups)}.")
    ((title, runs),) = groups.items()
    if len(runs) > len(_STYLES):
        raise UserError(f"A calibration figure shows at most {len(_STYLES)} runs, not {len(runs)}; name some of them.")
    spaces = _spaces(runs)
    if not spaces:
        raise UserError(
            f"{runs[0].store.directory} has no ranks stored; `vfmbench metrics DIR --metrics calibration,tarp` computes them."
        )
    path = picture_path(out, common_directory(runs) / "calibration.png")
    _draw(title, dict(zip(labels(runs), runs, strict=True)), spaces, path)
    return path


def _spaces(runs: Sequence[StoredRun]) -> list[str]:
    """Names of the spaces in which a run has ranks stored, pixels first."""
    names = {name.partition("@")[2] for run in runs for name in run.curves}
    return sorted(names, key=lambda name: (name != "pixel", name))


def _draw(title: str, runs: Mapping[str, StoredRun], spaces: Sequence[str], path: Path) -> None:
    from matplotlib import pyplot

    styles: dict[str, Style] = {
        heading: {"color": colour, "marker": marker, "markersize": 4, "linewidth": 1.2}
        for heading, (colour, marker) in zip(runs, _STYLES, strict=False)
    }
    kinds: list[tuple[str, Callable[[Any, Curves, Mapping[str, Style]], None]]] = [
        ("calibration_error", _rank_histogram),
        ("calibration_error", _coverage),
        ("tarp", _tarp),
    ]
    size = (4.2 * len(kinds), 3.4 * len(spaces) + 0.9)
    with panels(path, len(spaces), len(kinds), size) as (figure, axes):
        for space, row in zip(spaces, axes, strict=True):
            for (metric, panel), axis in zip(kinds, row, strict=True):
                name = f"{metric}@{space}"
                panel(axis, {heading: run.curves[name] for heading, run in runs.items() if name in run.curves}, styles)
                where = "pixels" if space == "pixel" else f"features of {space}"
                axis.set_title(f"{axis.get_title()}, {where}", fontsize=10)
                axis.tick_params(labelsize=8)
                axis.grid(alpha=0.25, linewidth=0.6)
        handles: list[Any] = [pyplot.Line2D([], [], label=heading, **style) for heading, style in styles.items()]
        handles.append(pyplot.Rectangle((0, 0), 1, 1, label="95 % band of a calibrated sampler, each point by itself", **_BAND))
        figure.legend(handles=handles, loc="outside lower center", ncols=min(5, len(handles)), fontsize=9, frameon=False)
        figure.suptitle(title, fontsize=11)


def _rank_histogram(axis: Any, curves: Curves, styles: Mapping[str, Style]) -> None:
    """Mean share of each rank, in units of the uniform share, and a band around the uniform law.

    The band is as wide as the 95 % intervals over images are on average over the ranks; of several runs, the widest.
    """
    margins = [0.0]
    for heading, shares in curves.items():
        mean, margin = _mean_and_margin(shares * shares.shape[1])
        axis.plot(np.arange(shares.shape[1]), mean, **styles[heading])
        margins.append(float(np.sqrt((margin**2).mean())))
    axis.axhline(1, color="grey", linewidth=1, linestyle="--", zorder=0)
    axis.axhspan(1 - max(margins), 1 + max(margins), zorder=0, **_BAND)
    top = axis.get_ylim()[1]
    axis.set_ylim(0, min(top, _HISTOGRAM_TOP))
    axis.set_title("rank histogram")
    axis.set_ylabel("frequency / uniform frequency" + (f" (cut at {_HISTOGRAM_TOP:g})" if top > _HISTOGRAM_TOP else ""))
    tests = {heading: uniformity_p_value(shares) for heading, shares in curves.items()}
    _label(axis, "rank of the truth among the samples", tests)


def _coverage(axis: Any, curves: Curves, styles: Mapping[str, Style]) -> None:
    """Coverage of the central intervals at their exact levels, with 95 % intervals over images."""
    for heading, shares in curves.items():
        levels = central_levels(shares.shape[1] - 1)
        axis.errorbar(levels, *_mean_and_margin(central_coverage(shares)), capsize=2, **styles[heading])
    _diagonal(axis)
    axis.set_title("interval coverage")
    axis.set_xlabel("level of the central interval")
    axis.set_ylabel("observed coverage")


def _tarp(axis: Any, curves: Curves, styles: Mapping[str, Style]) -> None:
    """Expected coverage at every credibility level, and where that of a calibrated sampler lies in 95 % of cases."""
    for heading, shares in curves.items():
        axis.plot(rank_levels(shares.shape[1] - 1), expected_coverage(shares.mean(0)), **styles[heading])
    # The runs differ in n only where images failed; the smallest n has the widest band.
    n, ranks = min(shares.shape for shares in curves.values()) if curves else (1, 1)
    levels = rank_levels(ranks - 1)
    margin = _NORMAL_95 * np.sqrt(levels * (1 - levels) / n)
    axis.fill_between(levels, levels - margin, levels + margin, zorder=0, **_BAND)
    _diagonal(axis)
    axis.set_title("TARP expected coverage")
    axis.set_ylabel("expected coverage")
    _label(axis, "credibility level", {heading: kolmogorov_test(shares)[0] for heading, shares in curves.items()})


def _diagonal(axis: Any) -> None:
    axis.plot([0, 1], [0, 1], color="grey", linewidth=1, linestyle="--", zorder=0)
    axis.set_xlim(-0.02, 1.02)
    axis.set_ylim(-0.02, 1.02)


def _mean_and_margin(per_image: Array) -> tuple[Array, Array]:
    """Mean over images and half the width of its normal 95 % interval, [n,k] -> [k], [k]; no width for a single image."""
    deviation = per_image.std(0, ddof=min(1, len(per_image) - 1))
    return per_image.mean(0), _NORMAL_95 * deviation / len(per_image) ** 0.5


def _label(axis: Any, label: str, tests: Mapping[str, float | None]) -> None:
    """The x axis's label, and below it, where no curve is, the p-values of each run's test of calibration."""
    known = [f"{heading} {p_text(value)}" for heading, value in tests.items() if value is not None]
    lines = ["   ".join(known[start : start + _TESTS_IN_A_LINE]) for start in range(0, len(known), _TESTS_IN_A_LINE)]
    axis.set_xlabel("\n".join([label, *lines]), fontsize=8)
