"""A comparison of runs on a console."""

from __future__ import annotations

from rich.console import Group
from rich.text import Text

from vfmbench.reporting.quoting import cell_text
from vfmbench.reporting.writers.columns import Column, ColumnTable
from vfmbench.results.comparison import Cell, Comparison


def text(comparison: Comparison) -> Group:
    rows = [[_cell(cell, row.marked) for cell in row.cells] for row in comparison.rows]
    hashes = [Text(entry.hash) for entry in comparison.entries]
    columns = [Column(entry.heading, list(cells)) for entry, *cells in zip(comparison.entries, *rows, hashes, strict=True)]
    names = Column("metric", [*(Text(row.name) for row in comparison.rows), Text("run")])
    arrows = Column("", [*(Text(str(row.direction or "")) for row in comparison.rows), Text()])
    table = ColumnTable(comparison.title, [names, arrows], columns)
    return Group(table, *(Text(note) for note in comparison.notes))


def _cell(cell: Cell, marked: bool) -> Text:
    """Args: marked: whether the row has room for marks."""
    star = "*" if cell.best else " "
    marks = f" {star}{cell.sign or ' '}" if marked else ""
    return Text(cell_text(cell) + marks, style="bold" if cell.best else "")
