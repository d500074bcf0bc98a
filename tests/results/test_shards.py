"""Stored samples: read by need, in order of the images, whatever the order of the files."""

import json
import subprocess
import sys

import numpy as np
import pytest

from vfmbench.errors import UserError
from vfmbench.results import shards as module
from vfmbench.results.paths import RunPaths
from vfmbench.results.shards import Shard, Shards, common_positions

SAMPLES = 3


def images_of(positions):
    """Sample j of the image at position p is filled with 10 p + j."""
    values = 10 * np.array(positions)[:, None] + np.arange(SAMPLES)
    return np.broadcast_to(values[..., None, None, None], (*values.shape, 1, 2, 2)).astype(np.uint8)


@pytest.fixture
def stored(tmp_path):
    """`stored([0, 1], [4], broken=(1,))`: a directory with a shard for each list of positions."""
    RunPaths(tmp_path).samples.mkdir()

    def store(*batches, broken=(), **fields):
        for positions in batches:
            index = np.array(positions)
            residual = np.ones((len(index), SAMPLES), np.float32)
            residual[np.isin(index, broken), 1] = np.nan
            hashes, cost = [f"hash {position}" for position in positions], {"network_forwards": 2.0, "seconds": 0.5}
            Shards(tmp_path).write(Shard(images_of(positions), index, index % 7, residual, -residual, hashes, cost, **fields))
        return tmp_path

    return store


@pytest.fixture
def read(monkeypatch):
    """Shapes of the parts of images that are read from files."""
    parts, real = [], Shards._part

    def counting(file, name, rows, samples):
        result = real(file, name, rows, samples)
        if name == "images" and len(result):
            parts.append(result.shape[:2])
        return result

    monkeypatch.setattr(Shards, "_part", staticmethod(counting))
    return parts


def test_rows_come_in_the_order_asked_for(stored):
    shards = Shards(stored([8, 9], [0, 1, 2, 3], [5]))
    assert shards.positions == [0, 1, 2, 3, 5, 8, 9]
    np.testing.assert_array_equal(shards.read("images"), images_of(shards.positions))
    for wanted in ([9, 0, 3, 2], [5], []):
        found = shards.read("images", wanted)
        np.testing.assert_array_equal(found, images_of(wanted))
        assert found.dtype == np.uint8
        np.testing.assert_array_equal(shards.read("label", wanted), np.array(wanted, int) % 7)
    np.testing.assert_array_equal(shards.read("images", [3, 8], samples=2), images_of([3, 8])[:, :2])


def test_only_what_is_asked_for_is_read(stored, read):
    shards = Shards(stored(range(20), range(20, 40)))
    shards.records(seed=0)
    shards.measurement_hashes()
    shards.evaluable()
    assert read == []
    shards.read("images", [3, 30, 31, 12], samples=1)
    assert read == [(1, 1), (2, 1), (1, 1)]


def test_pictures_find_the_first_images_in_memory(stored, read):
    shards = Shards(stored(range(20)))
    shards.read("images", range(5, 20))
    assert read == [(15, SAMPLES)]
    np.testing.assert_array_equal(shards.read("images", range(module.PICTURED)), images_of(range(module.PICTURED)))
    np.testing.assert_array_equal(shards.read("images", [6, 2], samples=1), images_of([6, 2])[:, :1])
    assert read == [(15, SAMPLES), (5, SAMPLES)]
    shards.read("images", [module.PICTURED])
    assert read[-1] == (1, SAMPLES)


def test_images_with_a_diverged_sample_are_not_evaluable(stored):
    directory = stored([6, 7], [0, 1, 2], broken=(1, 7))
    assert Shards(directory).evaluable() == [0, 2, 6]
    records = Shards(directory).records(seed=3)
    assert records.loc[records["status"] == "diverged", ["index", "sample"]].to_numpy().tolist() == [[1, 1], [7, 1]]
    assert records["index"].tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 6, 6, 6, 7, 7, 7]
    assert set(records["seed"]) == {3}
    assert set(records["nfe"]) == {2.0}
    assert Shards(directory).measurement_hashes() == {position: f"hash {position}" for position in (0, 1, 2, 6, 7)}


def test_a_torn_file_is_set_aside(stored):
    directory = stored([0, 1], [2, 3])
    paths = RunPaths(directory)
    torn = paths.shard(2, 3)
    torn.write_bytes(torn.read_bytes()[:-5])
    assert Shards(directory).positions == [0, 1]
    assert list(paths.samples.glob("*.unreadable")) == [torn.with_suffix(".unreadable")]


def test_a_tensor_that_some_files_lack_is_not_there(stored):
    directory = stored([0, 1])
    assert not Shards(directory).has("prior")
    stored([2], prior=images_of([2]))
    assert not Shards(directory).has("prior")
    assert Shards(directory).has("residual")


def test_nothing_stored_is_a_sentence(stored):
    shards = Shards(stored())
    assert shards.positions == shards.evaluable() == []
    assert not shards.has("images")
    with pytest.raises(UserError, match="holds no samples"):
        shards.read("images")


def test_images_that_all_runs_have(stored, tmp_path):
    first = Shards(stored([0, 1, 2], [7]))
    assert first.positions == [0, 1, 2, 7]
    stored([9])
    assert common_positions([first, Shards(tmp_path)]) == [0, 1, 2, 7]


def test_reading_needs_no_torch(stored):
    code = (
        "import sys, json; from pathlib import Path; from vfmbench.results.shards import Shards;"
        f"shards = Shards(Path({str(stored([0, 1], broken=(1,)))!r}));"
        "print(json.dumps([shards.positions, shards.evaluable(), int(shards.read('images').sum()), 'torch' in sys.modules]))"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert json.loads(output) == [[0, 1], [0], int(images_of([0, 1]).sum()), False]
