"""A comparison of runs as a Markdown table."""

from __future__ import annotations

from collections.abc import Sequence

from vfmbench.reporting.quoting import cell_text
from vfmbench.results.comparison import Cell, Comparison


def markdown(comparison: Comparison) -> str:
    lines = [f"**{comparison.title}**", ""]
    lines.append(_line(["metric", "", *(entry.heading for entry in comparison.entries)]))
    lines.append(_line(["---", "---", *("---:" for _ in comparison.entries)]))
    lines += [_line([row.name, str(row.direction or ""), *map(_cell, row.cells)]) for row in comparison.rows]
    lines.append(_line(["run", "", *(entry.hash for entry in comparison.entries)]))
    return "\n".join([*lines, *(f"\n{note}" for note in comparison.notes)])


def _cell(cell: Cell) -> str:
    value = f"**{cell_text(cell)}**" if cell.best else cell_text(cell)
    return f"{value} ({cell.sign})" if cell.sign else value


def _line(cells: Sequence[str]) -> str:
    # A bar would begin another cell.
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
