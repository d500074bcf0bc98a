"""Tables of numbers as parquet files, read without pandas, whose import takes longer than a table of results does."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vfmbench.files import replace_file

Columns = Mapping[str, NDArray[Any]]


def read_columns(path: Path) -> dict[str, NDArray[Any]]:
    """Columns [n] of numbers, a missing one as NaN, or [n,k] where a cell is a list of k numbers.

    Empty if there is no such file.
    """
    if not path.exists():
        return {}
    from pyarrow import parquet, types

    with parquet.ParquetFile(path) as file:
        table = file.read()
    found: dict[str, NDArray[Any]] = {}
    for name in table.column_names:
        column = table[name].combine_chunks()
        if types.is_list(column.type):
            found[name] = np.from_dlpack(column.flatten()).reshape(len(column), -1)
        elif column.null_count:
            found[name] = np.array(column.to_pylist(), dtype=np.float64)
        else:
            # pyarrow's own `to_numpy` imports pandas.
            found[name] = np.from_dlpack(column)
    return found


def write_columns(path: Path, columns: Columns) -> None:
    """Replaces the file in one step. Columns are [n] or [n,k], all with the same n."""
    import pyarrow
    from pyarrow import parquet

    table = pyarrow.table({name: list(column) if column.ndim > 1 else column for name, column in columns.items()})
    replace_file(path, lambda temporary: parquet.write_table(table, temporary))
