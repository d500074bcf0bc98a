"""Where text goes: tables to standard output, progress and messages to standard error."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

# What a file or a pipe holds has no width; this is more than a table needs.
_UNBOUNDED = 100_000
OUT = Console(highlight=False, width=None if sys.stdout.isatty() else _UNBOUNDED)
ERR = Console(stderr=True, highlight=False)


@contextmanager
def progress(title: str, unit: str = "images") -> Iterator[Callable[[int, int], None]]:
    """A progress bar over images, or another unit; yields update(done, planned)."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn(unit))
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=ERR) as bars:
        bar = bars.add_task(title, total=None)
        yield lambda done, planned: bars.update(bar, completed=done, total=planned)
