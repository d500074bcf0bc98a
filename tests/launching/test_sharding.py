"""A run that is split over several processes is the run that is not."""

import pytest
import torch
from safetensors.torch import load_file

from vfmbench.config import RunConfig
from vfmbench.errors import Status
from vfmbench.files import BusyError
from vfmbench.results.paths import PartPaths
from vfmbench.results.shards import Shards
from vfmbench.running import sharding
from vfmbench.running.plan import plan
from vfmbench.running.runner import execute
from vfmbench.running.sharding import Part, execute_part, merge, positions


@pytest.fixture
def planned(tmp_path):
    def build(out="split"):
        options = {"num_images": 10, "samples": 2, "batch_size": 6, "metrics": ("psnr", "crps"), "out": tmp_path / out}
        return plan(RunConfig(method="vfm", task="denoise", **options))

    return build


def content(run):
    return {path.name: load_file(path) for path in run.store.paths.shards()}


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_equals_the_unsplit_run(planned, order):
    runs = [execute_part(planned(), Part(number, 2)) for number in order]
    assert [run.status for run in runs] == [Status.INTERRUPTED, Status.DONE]
    whole = execute(planned("whole"))
    split, unsplit = content(runs[1]), content(whole)
    assert split.keys() == unsplit.keys()
    for name, tensors in unsplit.items():
        assert all(torch.equal(split[name][key], tensor) for key, tensor in tensors.items())
    times = ["seconds", "network_seconds", "session", "first_batch", "peak_memory_bytes"]
    records = [run.store.records().drop(columns=times) for run in (runs[1], whole)]
    assert records[0].equals(records[1])
    rows = [[row for row in run.store.metrics() if row.metric != "cost"] for run in (runs[1], whole)]
    assert rows[0] == rows[1]
    sessions = runs[1].store.provenance()["sessions"]
    used = runs[1].store.records().groupby("index")["session"].first()
    assert [sessions[number]["part"] for number in used] == [PartPaths.name(0, 2)] * 6 + [PartPaths.name(1, 2)] * 4


def test_parts_are_whole_batches_and_cover_all_images(planned):
    for count in (1, 2, 3, 4):
        covered = [list(positions(planned(), Part(number, count))) for number in range(count)]
        assert [index for part in covered for index in part] == list(range(10))
        assert all(part and part[0] % 3 == 0 for part in covered)


def test_a_killed_part_goes_on_at_its_first_missing_batch(planned, monkeypatch):
    checked, drawn = planned(), []
    real = Shards.write

    def dies(store, shard):
        if drawn:
            raise RuntimeError("killed")
        drawn.append(shard.index.tolist())
        real(store, shard)

    with monkeypatch.context() as patch:
        patch.setattr(Shards, "write", dies)
        with pytest.raises(RuntimeError):
            execute_part(checked, Part(0, 2))
    assert Shards(checked.store.directory).positions == [0, 1, 2]
    monkeypatch.setattr(Shards, "write", lambda store, shard: (drawn.append(shard.index.tolist()), real(store, shard)))
    assert execute_part(checked, Part(0, 2)).status == Status.INTERRUPTED
    assert execute_part(checked, Part(1, 2)).status == Status.DONE
    assert drawn == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9]]


def test_no_two_writers(planned):
    checked = planned()
    with checked.store.writing(checked.identity, False, Part(0, 2).folder):
        with checked.store.writing(checked.identity, False, Part(1, 2).folder):
            pass
        with pytest.raises(BusyError):
            execute_part(checked, Part(0, 2))
        with pytest.raises(BusyError):
            execute(checked)
    with checked.store.writing(checked.identity, False), pytest.raises(BusyError):
        execute_part(checked, Part(0, 2))


def test_the_merge_that_was_killed_is_made_up_for(planned, monkeypatch):
    checked = planned()
    with monkeypatch.context() as patch:
        patch.setattr(sharding, "execute", lambda plan: (_ for _ in ()).throw(KeyboardInterrupt))
        execute_part(checked, Part(0, 2))
        with pytest.raises(KeyboardInterrupt):
            execute_part(checked, Part(1, 2))
    assert merge(checked, 2).status == Status.DONE
    assert len(checked.store.provenance()["sessions"]) == 3
