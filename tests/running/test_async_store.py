"""Shards are written beside the drawing: in order, at most three behind, never silently lost."""

import logging
import threading

import numpy as np
import pytest
import torch

from vfmbench import RunConfig
from vfmbench.registry import samplers
from vfmbench.results.shards import Shards
from vfmbench.running.plan import plan
from vfmbench.running.runner import run
from vfmbench.running.shards import HostCopy, ShardWriter

WAIT = 10.0


@pytest.fixture
def config(tmp_path):
    """Six digits, each a batch of its own."""
    return RunConfig(
        method="pinv", task="gaussian_deblur", num_images=6, samples=3, batch_size=3, out=tmp_path, metrics=("psnr",)
    )


class Disk:
    """Stands in for a run's shards: `write` waits until it is released, and fails for the shards in `broken`."""

    def __init__(self, broken=()):
        self.released, self.started, self.written, self.broken = threading.Event(), threading.Event(), [], broken

    def write(self, shard):
        self.started.set()
        assert self.released.wait(WAIT)
        if shard in self.broken:
            raise OSError(28, "No space left on device")
        self.written.append(shard)


def test_drawing_goes_on_while_a_slow_disk_has_at_most_three_shards_to_write():
    disk, returned = Disk(), []
    writer = ShardWriter(disk)

    def draw():
        with writer:
            for shard in range(6):
                writer.write(lambda shard=shard: shard)
                returned.append(shard)

    drawing = threading.Thread(target=draw)
    drawing.start()
    assert disk.started.wait(WAIT)
    drawing.join(0.3)
    # The fourth is handed over too, and waits for the first to be on the disk.
    assert drawing.is_alive()
    assert returned == [0, 1, 2]
    assert disk.written == []
    disk.released.set()
    drawing.join(WAIT)
    assert returned == disk.written == [0, 1, 2, 3, 4, 5]


def test_the_shard_is_finished_in_the_writing_thread():
    disk, threads = Disk(), []
    disk.released.set()
    with ShardWriter(disk) as writer:
        writer.write(lambda: threads.append(threading.current_thread()))
    assert threads != [threading.current_thread()]
    assert not threads[0].is_alive()


def test_an_error_of_the_disk_ends_the_drawing():
    disk = Disk(broken=(1,))
    disk.released.set()
    drawn = []

    def draw():
        with ShardWriter(disk) as writer:
            for shard in range(100):
                drawn.append(shard)
                writer.write(lambda shard=shard: shard)

    with pytest.raises(OSError, match="No space left"):
        draw()
    assert len(drawn) < 100
    assert disk.written[0] == 0
    assert 1 not in disk.written


def test_an_error_of_the_last_shard_is_not_lost():
    disk = Disk(broken=(0,))

    def draw():
        with ShardWriter(disk) as writer:
            writer.write(lambda: 0)
            disk.released.set()

    with pytest.raises(OSError, match="No space left"):
        draw()


def test_an_interrupt_waits_for_the_disk_and_stays_an_interrupt(caplog):
    disk = Disk(broken=(1,))

    def draw():
        with ShardWriter(disk) as writer:
            for shard in range(3):
                writer.write(lambda shard=shard: shard)
            threading.Timer(0.1, disk.released.set).start()
            raise KeyboardInterrupt

    with caplog.at_level(logging.ERROR, "vfmbench"), pytest.raises(KeyboardInterrupt):
        draw()
    assert disk.written == [0, 2]
    assert "could not be stored" in caplog.text


def test_copies_arrive_as_they_are():
    tensors = {"a": torch.arange(6).reshape(2, 3), "b": torch.rand(4, requires_grad=True)}
    copied = HostCopy(tensors).wait()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(copied[name], tensor.detach().numpy())


def test_a_run_whose_disk_fills_up_fails_and_resumes(config, monkeypatch):
    real, written = Shards.write, []

    def full(store, shard):
        if len(written) == 2:
            raise OSError(28, "No space left on device")
        written.append(shard.index.tolist())
        real(store, shard)

    with monkeypatch.context() as patch:
        patch.setattr(Shards, "write", full)
        with pytest.raises(OSError, match="No space left"):
            run(config)
    store = plan(config).store
    assert store.provenance()["status"] == "failed"
    assert Shards(store.directory).positions == [0, 1]
    run(config)
    assert Shards(store.directory).positions == list(range(6))


def test_an_interrupted_run_has_stored_all_that_was_drawn(config, monkeypatch):
    sampler_class, drawn = samplers.get("pinv"), []
    real_sample, real_write, slow = sampler_class.sample, Shards.write, threading.Event()

    def sample(self, measurement, num_samples, noise):
        if len(drawn) == 3:
            assert Shards(plan(config).store.directory).positions == []
            threading.Timer(0.1, slow.set).start()
            raise KeyboardInterrupt
        drawn.append(measurement.index.tolist())
        return real_sample(self, measurement, num_samples, noise)

    def write(store, shard):
        assert slow.wait(WAIT)
        real_write(store, shard)

    monkeypatch.setattr(sampler_class, "sample", sample)
    monkeypatch.setattr(Shards, "write", write)
    with pytest.raises(KeyboardInterrupt):
        run(config)
    store = plan(config).store
    assert drawn == [[0], [1], [2]]
    assert Shards(store.directory).positions == [0, 1, 2]
    assert store.provenance()["status"] == "interrupted"
