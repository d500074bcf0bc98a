"""A table whose cells stay in one piece: where a console is too narrow for its columns, it becomes several tables."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

# What a column takes beside its text: a blank on either side and a line.
_FRAME = 3


@dataclass(frozen=True)
class Column:
    """A heading and a cell for each row."""

    heading: str
    cells: Sequence[Text]

    @property
    def lines(self) -> list[str]:
        """The heading, folded after its underscores and blanks where it is wider than the cells."""
        parts = re.split(r"(?<=[_ ])", self.heading)
        width = max(map(cell_len, [*parts, *(cell.plain for cell in self.cells)]))
        lines = [""]
        for part in parts:
            if cell_len(lines[-1] + part.rstrip()) > width:
                lines.append("")
            lines[-1] += part
        return lines

    @property
    def width(self) -> int:
        """In characters, with its frame."""
        return _FRAME + max(map(cell_len, [*self.lines, *(cell.plain for cell in self.cells)]))


@dataclass(frozen=True)
class ColumnTable:
    """A title, and one table or several below each other, each with the `leading` columns, as the console's width has it."""

    title: str
    leading: Sequence[Column]
    columns: Sequence[Column]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Text(self.title, style="table.title")
        for columns in self._groups(options.max_width):
            yield self._table(columns)

    def _groups(self, width: int) -> Iterable[list[Column]]:
        """As many columns at a time as the width holds, at least one."""
        start = used = 1 + sum(column.width for column in self.leading)
        group: list[Column] = []
        for column in self.columns:
            if group and used + column.width > width:
                yield group
                group, used = [], start
            group.append(column)
            used += column.width
        yield group

    def _table(self, columns: Sequence[Column]) -> Table:
        table = Table()
        for column in self.leading:
            table.add_column(Text("\n".join(column.lines)), no_wrap=True)
        for column in columns:
            table.add_column(Text("\n".join(column.lines)), justify="right", no_wrap=True)
        for cells in zip(*(column.cells for column in [*self.leading, *columns]), strict=True):
            table.add_row(*cells)
        return table
