"""The VFM paper's figure 7: metrics of a sweep's runs over one of its options, a panel each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from vfmbench.errors import UserError
from vfmbench.reporting.drawing import DASHES, panels, picture_path, wrapped
from vfmbench.reporting.sweep_table import (
    Line,
    check_numbers,
    find_column,
    lines_of,
    number_text,
    read_table,
    rows_where,
    short_name,
)
from vfmbench.reporting.training_labels import training_labels
from vfmbench.results.stored import find_runs

_LOG_FROM_RATIO = 20
_MOST_REFERENCES = 4
_PANEL = (3.4, 2.7)
_COLUMNS = 3
_TITLE_COLUMNS = ("suite", "task", "method", "seed")


def sweep_figure(
    table: Path,
    x: str,
    metrics: Sequence[str],
    by: Sequence[str] = (),
    references: Sequence[Path] = (),
    out: Path | None = None,
    where: Mapping[str, str] | None = None,
) -> Path:
    """Draws metrics over an option from a sweep's table as a PNG; runs no model.

    Colour tells the first grouping column's values apart, marker and dashes the second's and third's. Rows without a number
    for x or for the metric (failed runs, methods without the option) are left out.

    Args:
        table: a CSV file with a row for each run; an interval of a metric stands in `<metric>_low` and `<metric>_high`, and
            which way it is better in `<metric>_direction`.
        x, metrics, by: columns, by their names or by what follows the last dot of those, `tau` for `train.tau`.
        references: run directories whose metrics become horizontal lines, such as an exact posterior's.
        out: by default `<table>-<x>.png` beside the table.
        where: the value that a column must have, for rows that are to be drawn; rows without a value are drawn too.

    Raises:
        UserError: the table cannot be read or lacks a column; nothing is left to draw; two rows belong to one point; a
            reference is not a run or lacks all metrics; there are too many lines; `out` cannot be written.
    """
    content = rows_where(read_table(table), where or {})
    x_column = find_column(content, x)
    columns = [find_column(content, name) for name in metrics]
    groups = [find_column(content, name) for name in by]
    path = picture_path(out, table.with_name(f"{table.stem}-{x_column.rpartition('.')[2]}.png"))
    for column in (x_column, *columns):
        check_numbers(table, content, column)
    lines = {column: lines_of(content, x_column, column, groups) for column in columns}
    if not any(lines.values()):
        raise UserError(f"No row of {table} has numbers for both {x_column} and {', '.join(columns)}.")
    known = {column: f"{column}_direction" for column in columns if f"{column}_direction" in content}
    arrows = {column: content[name].dropna().unique().tolist() for column, name in known.items()}
    _draw(_title(table, content, x_column), x_column, lines, arrows, _reference_values(references, columns), path)
    return path


def _reference_values(references: Sequence[Path], metrics: Sequence[str]) -> dict[str, dict[str, float]]:
    """Value of each metric that a reference run has, by the run's heading."""
    runs = [run for folder in references for run in find_runs([folder])]
    if len(runs) > _MOST_REFERENCES:
        raise UserError(f"--reference: at most {_MOST_REFERENCES} runs, not {len(runs)}.")
    values = {}
    for heading, run in zip(training_labels(runs), runs, strict=True):
        rows = [run.metrics[name] for name in metrics if name in run.metrics]
        own = {row.name: row.value for row in rows if row.value is not None}
        if not own:
            raise UserError(f"--reference: {run.store.directory} has none of the metrics {', '.join(metrics)}.")
        values[heading] = own
    return values


def _title(table: Path, content: pd.DataFrame, x: str) -> str:
    """What all rows that are drawn have in common, else the file's name."""
    drawn = content[content[x].notna()]
    parts = []
    for name in _TITLE_COLUMNS:
        values = [] if name not in drawn else drawn[name].dropna().unique().tolist()
        if values:
            parts.append(f"{name} {', '.join(number_text(value) for value in values)}")
    return ", ".join(parts) or table.stem


def _draw(
    title: str,
    x: str,
    lines: Mapping[str, Sequence[Line]],
    arrows: Mapping[str, Sequence[str]],
    references: Mapping[str, Mapping[str, float]],
    path: Path,
) -> None:
    from matplotlib import pyplot

    columns = len(lines) if len(lines) <= _COLUMNS else min((_COLUMNS, _COLUMNS - 1), key=lambda count: -len(lines) % count)
    rows = -(-len(lines) // columns)
    handles: dict[str, Any] = {}
    width = _PANEL[0] * columns
    entries = {line.label for several in lines.values() for line in several if line.label} | set(references)
    legend_columns = max(1, int(width / (0.085 * max((len(entry) for entry in entries), default=1) + 0.7)))
    height = _PANEL[1] * rows + 0.5 + 0.22 * -(-len(entries) // legend_columns)
    with panels(path, rows, columns, (width, height)) as (figure, axes):
        for axis in axes.flat[len(lines) :]:
            axis.set_axis_off()
        for (metric, several), axis in zip(lines.items(), axes.flat, strict=False):
            for line in several:
                _draw_line(axis, line)
                handles[line.label] = pyplot.Line2D([], [], label=line.label, linewidth=1.2, markersize=4, **line.style)
            for (heading, values), dashes in zip(references.items(), DASHES, strict=False):
                style: dict[str, Any] = {"color": "black", "linestyle": dashes, "linewidth": 0.9}
                handles[heading] = pyplot.Line2D([], [], label=heading, **style)
                if metric in values:
                    axis.axhline(values[metric], zorder=0, **style)
            found = pd.concat([line.rows["x"] for line in several]) if several else pd.Series([1.0])
            if found.min() > 0 and found.max() / found.min() >= _LOG_FROM_RATIO:
                axis.set_xscale("log")
            axis.set_title(" ".join([metric, *arrows.get(metric, ())]), fontsize=9)
            axis.set_xlabel(short_name(x), fontsize=9)
            axis.tick_params(labelsize=8)
            axis.grid(alpha=0.25, linewidth=0.6)
        handles.pop("", None)
        if handles:
            figure.legend(
                handles=list(handles.values()), loc="outside lower center", ncols=legend_columns, fontsize=8, frameon=False
            )
        figure.suptitle(wrapped(title, width), fontsize=10)


def _draw_line(axis: Any, line: Line) -> None:
    rows = line.rows
    axis.plot(rows["x"], rows["value"], linewidth=1.2, markersize=4, **line.style)
    if {"low", "high"} <= set(rows):
        axis.fill_between(rows["x"], rows["low"], rows["high"], color=line.style["color"], alpha=0.15, linewidth=0)
