"""What figures of points and of sweeps share: colours that everybody can tell apart, and where a picture may be written."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vfmbench.errors import UserError
from vfmbench.files import file_to_write, replace_file
from vfmbench.results.stored import StoredRun

# Okabe and Ito's colours without yellow, which is too pale for dots on white; black is kept for what is true or exact.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P")
DASHES: tuple[Any, ...] = ("-", "--", ":", "-.")

# Two darker ones make eight, for the cells of the checkerboard. Under simulated protanopia, deuteranopia and tritanopia
# (Machado et al. 2009) any two of them, and OUTSIDE, stay at least 16 apart in CIELAB; no other pair of those tried did better.
CELL_COLOURS = (*COLOURS, "#882255", "#332288")
OUTSIDE = PALE = "#CCCCCC"

NARROWEST = 4.5
"""Inches that a title or caption needs to be read with ease."""

_RESOLUTION = 150
_PADDING = 0.07
_LETTERS_PER_INCH = 15


def picture_path(out: Path | None, default: Path) -> Path:
    """Where to write a picture. Raises UserError if it cannot be written there, or is not called a PNG file."""
    if out is not None and out.suffix != ".png":
        raise UserError(f"--out: the figure is a PNG file, so its name ends in .png, not {out.name!r}.")
    return file_to_write(default if out is None else out)


def common_directory(runs: Sequence[StoredRun]) -> Path:
    """The deepest folder that holds all runs."""
    return Path(os.path.commonpath([run.store.directory for run in runs]))


@contextmanager
def panels(
    path: Path, rows: int, columns: int, size: tuple[float, float], padding: float = _PADDING
) -> Iterator[tuple[Any, Any]]:
    """A figure and its axes [rows,columns], written to `path` as a PNG at the end.

    Args:
        size: width and height in inches.
        padding: around each panel, in inches.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(w_pad=padding, h_pad=padding)
    figure, axes = pyplot.subplots(rows, columns, figsize=size, squeeze=False, layout=layout)
    try:
        yield figure, axes
        replace_file(path, lambda temporary: figure.savefig(temporary, dpi=_RESOLUTION, format="png"))
    finally:
        pyplot.close(figure)


def wrapped(text: str, width: float) -> str:
    """The text in lines that fit a width in inches at the size of titles and captions, 9 points."""
    return "\n".join(textwrap.wrap(text, int(width * _LETTERS_PER_INCH)))
