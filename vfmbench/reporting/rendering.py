"""A comparison of runs as text, Markdown, LaTeX or a JSON document. Nothing is computed here but numbers of digits."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Group
from rich.text import Text

from vfmbench.errors import Status
from vfmbench.reporting.columns import Column, ColumnTable
from vfmbench.results.comparison import Cell, Comparison, ComparisonRow, Entry
from vfmbench.results.schema import COST
from vfmbench.results.statistics import FEWEST_IMAGES

_LATEX_SPECIAL = str.maketrans({character: f"\\{character}" for character in "_%&#$"})
_LATEX_ARROWS = {"↑": r"$\uparrow$", "↓": r"$\downarrow$", "→": r"$\rightarrow$"}


def legend(reference: str | None) -> str:
    """What the marks of a table mean."""
    signs = f"+ / -: significantly better / worse than {reference}. " if reference else ""
    return (
        "Value and half the width of its 95 % interval, or its ends where they are lopsided. "
        "↑ more is better, ↓ less, → nearer to that number. *: the best of its row, or not significantly worse than the best. "
        f"{signs}Paired tests on the same images, 5 % level, Holm's correction over the methods of a row; cells that cannot be "
        "tested bear no mark: statistics of the whole set, such as FID, and distances from a number (→) are tested from "
        f"{FEWEST_IMAGES} images on."
    )


def to_text(comparison: Comparison) -> Group:
    rows = [
        [_text(entry, cell, row) for entry, cell in zip(comparison.entries, row.cells, strict=True)] for row in comparison.rows
    ]
    hashes = [Text(_hash(entry)) for entry in comparison.entries]
    columns = [Column(entry.heading, list(cells)) for entry, *cells in zip(comparison.entries, *rows, hashes, strict=True)]
    names = Column("metric", [*(Text(row.name) for row in comparison.rows), Text("run")])
    arrows = Column("", [*(Text(_arrow(row)) for row in comparison.rows), Text()])
    table = ColumnTable(comparison.title, [names, arrows], columns)
    return Group(table, *(Text(note) for note in comparison.notes))


def to_markdown(comparison: Comparison) -> str:
    lines = [f"**{comparison.title}**", ""]
    lines.append(_joined(["metric", "", *(entry.heading for entry in comparison.entries)]))
    lines.append(_joined(["---", "---", *("---:" for _ in comparison.entries)]))
    for row in comparison.rows:
        cells = [
            (f"**{text}**" if cell.best else text) + (f" ({cell.sign})" if cell.sign else "")
            for cell, text in _texts(comparison, row)
        ]
        lines.append(_joined([row.name, _arrow(row), *cells]))
    lines.append(_joined(["run", "", *(_hash(entry) for entry in comparison.entries)]))
    return "\n".join([*lines, *(f"\n{note}" for note in comparison.notes)])


def to_latex(comparison: Comparison) -> str:
    """A `tabular` with the rules of the package booktabs."""
    columns = len(comparison.entries)
    lines = [f"% {comparison.title}", rf"\begin{{tabular}}{{ll{'r' * columns}}}", r"\toprule"]
    lines.append(_latex_row(["metric", "", *(entry.heading for entry in comparison.entries)]))
    lines.append(r"\midrule")
    for row in comparison.rows:
        cells = []
        for cell, text in _texts(comparison, row):
            escaped = text.translate(_LATEX_SPECIAL).replace("±", r"$\pm$")
            sign = f"$^{{{cell.sign}}}$" if cell.sign else ""
            cells.append((rf"\textbf{{{escaped}}}" if cell.best else escaped) + sign)
        arrow = _arrow(row)
        for character, command in _LATEX_ARROWS.items():
            arrow = arrow.replace(character, command)
        lines.append(" & ".join([row.name.translate(_LATEX_SPECIAL), arrow, *cells]) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}", *(f"% {note}" for note in comparison.notes)]
    return "\n".join(lines)


def document(comparison: Comparison) -> dict[str, Any]:
    """The JSON document of a table: every number whole, with the difference to the reference, its interval and p-values."""
    return {
        "title": comparison.title,
        "reference": comparison.reference,
        "notes": comparison.notes,
        "runs": [_entry_document(entry) for entry in comparison.entries],
        "metrics": [
            {
                "name": row.name,
                "direction": _arrow(row),
                "cells": {
                    entry.heading: _cell_document(cell) for entry, cell in zip(comparison.entries, row.cells, strict=True)
                },
            }
            for row in comparison.rows
        ],
    }


def value_text(value: float, low: float | None, high: float | None) -> str:
    """The value and half the width of its interval, to two digits of the latter: 17.21 ±0.16.

    An interval that reaches more than twice as far to one side, as at the end of a scale, is given by its ends: 1.000 [0.989,
    1.000].
    """
    margin = 0.0 if low is None or high is None else (high - low) / 2
    # Resamples of equal numbers differ by rounding.
    if low is None or high is None or margin <= 1e-9 * abs(value) or not math.isfinite(margin):
        return f"{value:.4g}"
    scientific = value != 0 and not 1e-3 <= abs(value) < 1e5
    decimals = max(0, 1 - math.floor(math.log10(margin)))
    number, width = (".2e", ".1e") if scientific else (f".{decimals}f", f".{decimals}f")
    if min(high - value, value - low) < max(high - value, value - low) / 2:
        return f"{value:{number}} [{low:{number}}, {high:{number}}]"
    return f"{value:{number}} ±{margin:{width}}"


def _entry_document(entry: Entry) -> dict[str, Any]:
    run = entry.run
    return {
        "heading": entry.heading,
        "status": entry.status,
        "note": entry.note,
        "hash": run.hash if run else None,
        "directory": str(run.store.directory) if run else None,
        "identity": run.identity.model_dump(mode="json") if run else None,
    }


def _cell_document(cell: Cell) -> dict[str, Any]:
    facts = ("value", "low", "high", "n", "settings", "reason")
    content: dict[str, Any] = dict.fromkeys(facts) if cell.row is None else cell.row.model_dump(include=set(facts))
    content["best"] = cell.best
    if cell.difference is not None:
        low, high = cell.difference.interval()
        content["to_reference"] = {
            "difference": cell.difference.value,
            "low": low,
            "high": high,
            "p_value": cell.difference.p_value,
            "p_value_corrected": cell.difference.corrected,
        }
    return content


def _text(entry: Entry, cell: Cell, row: ComparisonRow) -> Text:
    star = "*" if cell.best else " "
    text = f"{_cell(entry, cell)} {star}{cell.sign or ' '}" if _marked(row) else _cell(entry, cell)
    return Text(text, style="bold" if cell.best else "")


def _cell(entry: Entry, cell: Cell) -> str:
    if entry.run is None:
        return entry.status.value
    row = cell.row
    if row is None or row.value is None:
        return Status.MISSING.value
    text = value_text(row.value, row.low, row.high)
    planned = entry.run.identity.num_images
    # Costs are means over batches.
    return f"{text} ({row.n}/{planned})" if row.metric != COST and row.n < planned else text


def _texts(comparison: Comparison, row: ComparisonRow) -> list[tuple[Cell, str]]:
    return [(cell, _cell(entry, cell)) for entry, cell in zip(comparison.entries, row.cells, strict=True)]


def _marked(row: ComparisonRow) -> bool:
    return any(cell.best or cell.sign for cell in row.cells)


def _arrow(row: ComparisonRow) -> str:
    return str(row.direction or "")


def _hash(entry: Entry) -> str:
    return entry.run.hash if entry.run else ""


def _joined(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _latex_row(cells: Sequence[str]) -> str:
    return " & ".join(cell.translate(_LATEX_SPECIAL) for cell in cells) + r" \\"


FORMATS: dict[str, Callable[[Comparison], Group | str]] = {"text": to_text, "markdown": to_markdown, "latex": to_latex}
