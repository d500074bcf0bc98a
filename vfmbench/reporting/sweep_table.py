"""A sweep's table of runs, and the lines that a figure draws through its rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from vfmbench.errors import UserError, unknown_name
from vfmbench.reporting.drawing import COLOURS, DASHES, MARKERS


@dataclass(frozen=True)
class Line:
    """The points of one combination of the grouping columns, in order of x: columns x, value, and low and high where known."""

    label: str
    style: dict[str, Any]
    rows: pd.DataFrame


def read_table(path: Path) -> pd.DataFrame:
    """A CSV file with a row for each run. Raises UserError if it cannot be read or has no rows."""
    try:
        content = pd.read_csv(path)
    except OSError as error:
        raise UserError(f"Cannot read the table {path}: {error.strerror or error}.") from None
    except (UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise UserError(f"Cannot read the table {path}: {error}.") from None
    if content.empty:
        raise UserError(f"The table {path} has no rows.")
    return content


def find_column(content: pd.DataFrame, name: str) -> str:
    """The column of this name, or the one whose name ends in it after a dot. Raises UserError if there is none or several."""
    if name in content:
        return name
    found = [column for column in content if str(column).rpartition(".")[2] == name]
    if len(found) > 1:
        raise UserError(f"Several columns end in {name!r}: {', '.join(found)}; give one in full.")
    if not found:
        raise unknown_name("column of the table", name, [str(column) for column in content])
    return found[0]


def rows_where(content: pd.DataFrame, conditions: Mapping[str, str]) -> pd.DataFrame:
    """The rows whose columns have the given values, as the table writes them; rows without a value stay.

    Raises UserError for an unknown column, or a value that it does not have.
    """
    for name, value in conditions.items():
        column = find_column(content, name)
        texts = content[column].map(number_text)
        if value not in set(texts):
            raise unknown_name(f"value of {column}", value, set(texts[content[column].notna()]))
        content = content[(texts == value) | content[column].isna()]
    return content


def check_numbers(table: Path, content: pd.DataFrame, column: str) -> None:
    """Raises UserError, with an example, if the column has other values than numbers and gaps."""
    if not pd.api.types.is_numeric_dtype(content[column]) or pd.api.types.is_bool_dtype(content[column]):
        words = [value for value in content[column].dropna() if not isinstance(value, int | float)]
        example = f", such as {words[0]!r}" if words else ""
        raise UserError(f"The column {column} of {table} has values that are not numbers{example}.")


def lines_of(content: pd.DataFrame, x: str, metric: str, groups: Sequence[str]) -> list[Line]:
    """The metric's lines, one for each combination of the groups' values that occurs.

    Colour tells the first group's values apart, marker and dashes the second's and third's; a look means the same for every
    metric.

    Raises:
        UserError: more groups, or more values of one, than can be told apart; two rows of a line have the same x.
    """
    if len(groups) > 3:
        raise UserError(f"--by takes at most 3 columns, not {len(groups)}.")
    placed = content[content[x].notna()]
    chosen = placed[placed[metric].notna()]
    if chosen.empty:
        return []
    values = [sorted(placed[group].dropna().unique().tolist()) for group in groups]
    for group, found, most in zip(groups, values, (len(COLOURS), len(MARKERS), len(DASHES)), strict=False):
        if len(found) > most:
            raise UserError(f"--by: {group} has {len(found)} values; at most {most} can be told apart in that place.")
    result = []
    for key, rows in chosen.groupby(list(groups)) if groups else [((), chosen)]:
        _check_single(rows, x, groups)
        places = [found.index(value) for found, value in zip(values, key, strict=True)] + [0, 0, 0]
        style = {"color": COLOURS[places[0]], "marker": MARKERS[places[1]], "linestyle": DASHES[places[2]]}
        label = ", ".join(f"{short_name(group)} = {number_text(value)}" for group, value in zip(groups, key, strict=True))
        columns = {"x": x, "value": metric, "low": f"{metric}_low", "high": f"{metric}_high"}
        points = pd.DataFrame({name: rows[column] for name, column in columns.items() if column in rows})
        result.append(Line(label, style, points.sort_values("x")))
    return result


def _check_single(rows: pd.DataFrame, x: str, groups: Sequence[str]) -> None:
    """Raises UserError, with the columns that may tell them apart, if two rows of a line have the same x."""
    for value, same in rows.groupby(x):
        if len(same) > 1:
            # What a sweep varies stands before its runs' status.
            varied = same.loc[:, :"status"] if "status" in same else same
            differing = [str(name) for name in varied if varied[name].nunique(dropna=False) > 1]
            alike = f" with the same {', '.join(groups)}" if groups else ""
            raise UserError(
                f"{len(same)} rows have {x} = {number_text(value)}{alike}; add a column that tells them apart to --by "
                f"(they differ in {', '.join(differing) or 'none that a sweep varies'})."
            )


def short_name(column: str) -> str:
    """`train.tau` -> `tau`."""
    return column.rpartition(".")[2]


def number_text(value: object) -> str:
    """`1.0` -> `1`; what is not a float as it is."""
    return f"{value:g}" if isinstance(value, float) else str(value)
