"""Panels of one observation each: the exact posterior, samples over it, what was observed, and the true point."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from vfmbench.reporting.drawing import COLOURS, PALE, wrapped
from vfmbench.reporting.point_runs import Observations

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

_EXACT_DRAWS = 1000
_MOST_SAMPLES = 500
_BINS = 60
_MARGIN = 0.12
_INCHES_OF_A_LEGEND_ENTRY = 1.5

_SAMPLES, _TRUTH, _OBSERVED = COLOURS[0], COLOURS[1], "black"
_EDGE: dict[str, Any] = {"linestyle": "", "markeredgecolor": "white", "markeredgewidth": 0.7}
_TRUTH_MARKER: dict[str, Any] = {"marker": "*", "color": _TRUTH, "markersize": 11, **_EDGE}
_OBSERVED_LINE: dict[str, Any] = {"color": _OBSERVED, "linewidth": 0.9, "linestyle": "--"}
_OBSERVED_MARKER: dict[str, Any] = {"marker": "X", "color": _OBSERVED, "markersize": 7, **_EDGE}


class PointPanels:
    """Panels in the plane of the first two coordinates; points of a line are shown by their histograms.

    Args:
        shown: the observations, a row for each panel (or for several, of different methods).
        data: points [n,d] that set the limits.
    """

    def __init__(self, shown: Observations, data: Tensor):
        self._shown = shown
        self._exact = shown.exact_samples(_EXACT_DRAWS)
        self._normals, self._y, self._lines = observed_lines(shown)
        low, high = data.amin(0), data.amax(0)
        self._low, self._high = low - _MARGIN * (high - low), high + _MARGIN * (high - low)
        self._plane = data.shape[1] > 1

    def prepare(self, axes: NDArray[Any]) -> None:
        """Limits and labels of the panels [rows,columns]; to be called before anything is drawn."""
        for axis in axes.flat:
            axis.set_xlim(float(self._low[0]), float(self._high[0]))
            axis.tick_params(labelsize=7)
            if self._plane:
                axis.set_ylim(float(self._low[1]), float(self._high[1]))
                axis.set_box_aspect(1)
        if self._plane:
            for axis in axes[:, 1:].flat:
                axis.tick_params(labelleft=False)
        for axis in axes[-1]:
            axis.set_xlabel("$x_1$", fontsize=8)
        for axis in axes[:, 0]:
            axis.set_ylabel("$x_2$" if self._plane else "density", fontsize=8)

    def heading(self, row: int) -> str:
        """Which observation it is, and its y where that is one number."""
        position = f"observation {int(self._shown.index[row])}"
        return f"{position}: y = {float(self._y[row]):.2f}" if self._y.shape[1] == 1 else position

    def draw(self, axis: Axes, row: int, samples: Tensor | None = None) -> None:
        """Args: samples: [S,d]."""
        if self._exact is not None:
            self.cloud(axis, self._exact[row], PALE)
        if samples is not None:
            self.cloud(axis, samples[:_MOST_SAMPLES], _SAMPLES, outlined=True)
        lines = self._lines[row]
        for normal, value in zip(self._normals[row, lines].tolist(), self._y[row, lines].tolist(), strict=True):
            if not self._plane or normal[1] == 0:
                axis.axvline(value / normal[0], **_OBSERVED_LINE)
            else:
                axis.axline((0, value / normal[1]), slope=-normal[0] / normal[1], **_OBSERVED_LINE)
        if not lines.any():
            axis.plot(*_on_plane(self._estimate()[row]), **_OBSERVED_MARKER)
        axis.plot(*_on_plane(self._shown.truth[row]), clip_on=False, **_TRUTH_MARKER)

    def cloud(self, axis: Axes, points: Tensor, colour: str, *, outlined: bool = False) -> None:
        """Points [n,d]; those that are not finite are left out."""
        points = points[points.isfinite().all(1)].double()
        if self._plane:
            axis.scatter(points[:, 0], points[:, 1], s=5, color=colour, alpha=0.6, linewidths=0)
        elif len(points):
            shape: Literal["step", "stepfilled"] = "step" if outlined else "stepfilled"
            axis.hist(points[:, 0].numpy(), bins=_BINS, range=axis.get_xlim(), density=True, histtype=shape, color=colour)

    def finish(self, figure: Figure, title: str, *, sampled: bool) -> None:
        """Title and legend. Args: sampled: whether there are samples in the panels."""
        from matplotlib import pyplot

        width, dimension = figure.get_figwidth(), self._shown.truth.shape[1]
        plane = f"; the first two of {dimension} coordinates" if dimension > 2 else ""
        figure.suptitle(wrapped(title + plane, width), fontsize=9)
        dot: dict[str, Any] = {"marker": "o", "linestyle": "", "markersize": 5}
        entries = [("truth", _TRUTH_MARKER)]
        if self._exact is not None:
            entries.append(("exact posterior", {**dot, "color": PALE}))
        if sampled:
            entries.append(("samples", {**dot, "color": _SAMPLES}))
        if self._lines.any():
            entries.append(("observed", _OBSERVED_LINE))
        if not self._lines.any(1).all():
            entries.append(("pseudo-inverse of y" if self._shown.measurement.operator.linear else "y", _OBSERVED_MARKER))
        handles = [pyplot.Line2D([], [], label=label, **style) for label, style in entries]
        columns = max(1, min(len(handles), int(width / _INCHES_OF_A_LEGEND_ENTRY)))
        figure.legend(handles=handles, loc="outside lower center", ncols=columns, fontsize=8, frameon=False)

    def _estimate(self) -> Tensor:
        """A point that the observation alone suggests, [B,d]: what stands for y where no line in the plane does."""
        measurement = self._shown.measurement
        operator = measurement.operator
        return (operator.pinv if operator.linear else operator.to_image)(measurement.y).flatten(1)


def observed_lines(shown: Observations) -> tuple[Tensor, Tensor, Tensor]:
    """The lines in the plane of the first two coordinates that the observations put the point on, noise aside.

    Entry j of a linear measurement says a_j x = y_j, which is such a line if a_j has no other coordinates.

    Returns:
        Directions a [B,m,d], right-hand sides y [B,m], and whether an entry is a line [B,m].
    """
    measurement, operator = shown.measurement, shown.measurement.operator
    y = measurement.y.flatten(1)
    if not operator.linear:
        return y.new_zeros(*y.shape, shown.truth.shape[1]), y, torch.zeros_like(y, dtype=torch.bool)
    units = torch.eye(y.shape[1]).to(y)
    rows = [operator.adjoint(unit.expand_as(y).reshape(measurement.y.shape)).flatten(1) for unit in units]
    normals = torch.stack(rows, 1)
    return normals, y, (normals[..., 2:] == 0).all(2) & (normals[..., :2] != 0).any(2)


def _on_plane(point: Tensor) -> list[list[float]]:
    """A point [d] as what `plot` takes; one of a line lies on the foot of its histogram."""
    first, *others = point[:2].tolist()
    return [[first], others or [0.0]]
