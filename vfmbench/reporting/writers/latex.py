"""A comparison of runs as a LaTeX `tabular` with the rules of the package booktabs; numbers are set as mathematics."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from vfmbench.reporting.quoting import counted_text, quoted
from vfmbench.results.comparison import Cell, Comparison
from vfmbench.results.schema import Direction

_SPECIAL = str.maketrans(
    {character: f"\\{character}" for character in "_%&#${}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    | {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", "\n": " "}
)
_ARROWS = {"higher": r"\uparrow", "lower": r"\downarrow", "target": r"\rightarrow"}


def latex(comparison: Comparison) -> str:
    """Notes, and which run a column is, stand in comments."""
    lines = comments([comparison.title])
    lines += [rf"\begin{{tabular}}{{ll{'r' * len(comparison.entries)}}}", r"\toprule"]
    lines += [_line(["metric", "", *(escaped(entry.heading) for entry in comparison.entries)]), r"\midrule"]
    lines += [_line([escaped(row.name), _arrow(row.direction), *map(_cell, row.cells)]) for row in comparison.rows]
    lines += [r"\bottomrule", r"\end{tabular}"]
    lines += comments(f"{entry.heading}: run {entry.hash}" for entry in comparison.entries if entry.hash)
    return "\n".join([*lines, *comments(comparison.notes)])


def escaped(text: str) -> str:
    """The text with what LaTeX would take for a command written as a character."""
    return text.translate(_SPECIAL)


def comments(texts: Iterable[str]) -> list[str]:
    return [f"% {line}" for text in texts for line in text.splitlines()]


def _cell(cell: Cell) -> str:
    found = None if cell.row is None else quoted(cell.row)
    if found is None:
        return escaped(str(cell.status))
    number = _numeral(found.value, found.digits)
    if cell.best:
        number = rf"\mathbf{{{number}}}"
    if found.ends is not None:
        low, high = (_numeral(end, found.digits) for end in found.ends)
        number += rf"\;[{low}, {high}]"
    elif found.margin is not None:
        number += rf" \pm {_numeral(found.margin, found.margin_digits)}"
    sign = f"{{}}^{{{cell.sign}}}" if cell.sign else ""
    return f"${number}{sign}${counted_text(cell)}"


def _numeral(number: float, digits: str) -> str:
    """For mathematics: 5.45e-04 as a product with a power of ten."""
    mantissa, scientific, exponent = format(number, digits).partition("e")
    return rf"{mantissa} \times 10^{{{int(exponent)}}}" if scientific else mantissa


def _arrow(direction: Direction | None) -> str:
    if direction is None:
        return ""
    target = "" if direction.target is None else f" {_numeral(direction.target, '.3g')}"
    return f"${_ARROWS[direction.kind]}{target}$"


def _line(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"
