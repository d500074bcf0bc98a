import numpy as np
import pandas as pd
import pytest

from vfmbench.results.columns import read_columns, write_columns


def test_what_is_written_is_read_again(tmp_path):
    path = tmp_path / "table.parquet"
    columns = {"index": np.array([4, 2, 9]), "a": np.array([1.5, np.nan, -np.inf]), "curve": np.arange(6.0).reshape(3, 2)}
    write_columns(path, columns)
    found = read_columns(path)
    assert list(found) == list(columns)
    for name, column in columns.items():
        np.testing.assert_array_equal(found[name], column)
        assert found[name].dtype == column.dtype


def test_others_read_it_with_pandas_and_files_of_pandas_are_read(tmp_path):
    path = tmp_path / "table.parquet"
    write_columns(path, {"index": np.arange(3), "curve": np.ones((3, 2))})
    table = pd.read_parquet(path)
    assert table["index"].tolist() == [0, 1, 2]
    assert table["curve"][2].tolist() == [1, 1]
    pd.DataFrame({"a": [1.0, None, 3.0], "b": [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]}).to_parquet(path, index=False)
    found = read_columns(path)
    np.testing.assert_array_equal(found["a"], [1, np.nan, 3])
    np.testing.assert_array_equal(found["b"], [[1, 2], [3, 4], [5, 6]])


def test_no_table_and_an_empty_one(tmp_path):
    path = tmp_path / "table.parquet"
    assert read_columns(path) == {}
    write_columns(path, {})
    assert read_columns(path) == {}
    write_columns(path, {"index": np.empty(0, dtype=np.int64), "a": np.empty(0)})
    assert {name: len(column) for name, column in read_columns(path).items()} == {"index": 0, "a": 0}


def test_columns_of_different_lengths_leave_the_old_table(tmp_path):
    path = tmp_path / "table.parquet"
    write_columns(path, {"a": np.arange(2)})
    with pytest.raises(ValueError, match="length"):
        write_columns(path, {"a": np.arange(2), "b": np.arange(3)})
    assert read_columns(path)["a"].tolist() == [0, 1]
