"""How a number is quoted: to the digits that its interval allows. Writers turn what is said here into text or LaTeX."""

from __future__ import annotations

import math
from dataclasses import dataclass

from vfmbench.results.comparison import Cell
from vfmbench.results.schema import MetricRow
from vfmbench.results.statistics import FEWEST_IMAGES


@dataclass(frozen=True)
class Quote:
    """A number with half the width of its 95 % interval, or with the interval's ends, or alone.

    Attributes:
        digits, margin_digits: format specifications of the value (and the ends) and of the margin.
    """

    value: float
    digits: str
    margin: float | None = None
    margin_digits: str = ""
    ends: tuple[float, float] | None = None

    def __str__(self) -> str:
        value = format(self.value, self.digits)
        if self.ends is not None:
            low, high = (format(end, self.digits) for end in self.ends)
            return f"{value} [{low}, {high}]"
        return value if self.margin is None else f"{value} ±{format(self.margin, self.margin_digits)}"


def quote(value: float, low: float | None, high: float | None) -> Quote:
    """The value and half the width of its interval, to two digits of the latter: 17.21 ±0.16.

    An interval that reaches more than twice as far to one side, as at the end of a scale, is given by its ends: 1.000 [0.989,
    1.000].
    """
    margin = 0.0 if low is None or high is None else (high - low) / 2
    # Resamples of equal numbers differ by rounding.
    if low is None or high is None or margin <= 1e-9 * abs(value) or not math.isfinite(margin):
        return Quote(value, ".4g")
    scientific = value != 0 and not 1e-3 <= abs(value) < 1e5
    decimals = max(0, 1 - math.floor(math.log10(margin)))
    digits, margin_digits = (".2e", ".1e") if scientific else (f".{decimals}f", f".{decimals}f")
    if min(high - value, value - low) < max(high - value, value - low) / 2:
        return Quote(value, digits, ends=(low, high))
    return Quote(value, digits, margin, margin_digits)


def quoted(row: MetricRow) -> Quote | None:
    """None for a row without a value."""
    return None if row.value is None else quote(row.value, row.low, row.high)


def cell_text(cell: Cell) -> str:
    """A cell without its marks: `17.21 ±0.16 (40/50)`, or the state of what has no number."""
    found = None if cell.row is None else quoted(cell.row)
    return str(cell.status) if found is None else f"{found}{counted_text(cell)}"


def counted_text(cell: Cell) -> str:
    """` (40/50)` where a number is of fewer images than were planned."""
    return "" if cell.counted is None else f" ({cell.counted[0]}/{cell.counted[1]})"


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
