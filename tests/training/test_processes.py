"""Several processes, several micro-batches: the same weights as one process with whole batches."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from vfmbench.errors import UserError
from vfmbench.registry import suites
from vfmbench.training.processes import Processes, Share
from vfmbench.training.train import train
from vfmbench.training.trainer import Trainer

from .tiny import CPU, QUIET, STAGES, stage_of, weights_after

# The mean total of a batch is known only once all of its rows are computed.
BY_BATCH = {"point_flow", "point_vfm", "point_vfm_weighted"}

# bfloat16 keeps eight bits, and a batch of another size is summed in another order; AdamW makes a step of the learning rate of
# 1e-2 out of the smallest gradient, whichever its sign.
TOLERANCE = {"vfm": 1e-2}


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """The folder that two processes leave behind, and their exit codes."""
    folder = tmp_path_factory.mktemp("two")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {**os.environ, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    command = [sys.executable, str(Path(__file__).with_name("tiny.py")), str(folder)]
    started = [
        subprocess.Popen(
            command,
            env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        errors = [process.communicate(timeout=240)[1] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [75, 75], "\n".join(errors)
    return folder


def assert_close(name, found, expected):
    tolerance = TOLERANCE.get(name, 2e-5)
    # One entry in a thousand may be one whose gradient is zero but for rounding.
    assert ((found - expected).abs() > tolerance).float().mean() < 1e-3
    assert torch.nn.functional.cosine_similarity(found, expected, dim=0) > 1 - tolerance


@pytest.mark.parametrize("name", STAGES)
def test_two_processes_train_what_one_does(two, tmp_path, name):
    found = [torch.load(two / f"rank{rank}" / f"{name}.pt") for rank in range(2)]
    assert torch.equal(*found)
    start = torch.cat([p.detach().flatten() for net in stage_of(name, tmp_path).networks.values() for p in net.parameters()])
    expected = weights_after(stage_of(name, tmp_path), tmp_path / "one")
    assert (expected[: len(start)] - start).abs().mean() > 1e-3
    assert_close(name, found[0], expected)


@pytest.mark.parametrize("name", [name for name in STAGES if name not in BY_BATCH])
def test_micro_batches_train_what_whole_batches_do(tmp_path, name):
    expected = weights_after(stage_of(name, tmp_path), tmp_path / "one")
    assert_close(name, weights_after(stage_of(name, tmp_path, accumulate=2), tmp_path / "two"), expected)


def test_a_signal_to_one_process_stops_all_at_the_same_step_and_one_process_resumes(two, tmp_path):
    state = torch.load(two / "stopped" / "checkpoint.pt", weights_only=True)
    assert state["step"] == 6
    assert (two / "stopped" / "curves.csv").exists() == bool(state["rows"])
    stage = stage_of("features", tmp_path, steps=12)
    trainer = Trainer(stage, two / "stopped", QUIET)
    trainer.resume()
    averaged = trainer.run()
    networks = [*stage.networks.values(), *averaged.values()]
    found = torch.cat([parameter.detach().flatten() for network in networks for parameter in network.parameters()])
    assert_close("features", found, weights_after(stage_of("features", tmp_path, steps=12), tmp_path / "unbroken"))


def test_resuming_may_change_the_number_of_micro_batches(tmp_path):
    Trainer(stage_of("features", tmp_path, accumulate=4), tmp_path / "run", QUIET).run()
    resumed = Trainer(stage_of("features", tmp_path, accumulate=1, loader_threads=2), tmp_path / "run", QUIET)
    assert not resumed.finished
    resumed.resume()
    assert resumed.finished


def test_shares_are_a_partition_and_see_the_same_numbers():
    shares = [share for rank in range(3) for share in Processes(CPU, rank, 3).shares(12, 2)]
    whole = torch.arange(12)
    assert sorted(torch.cat([share.cut(whole) for share in shares]).tolist()) == whole.tolist()
    assert all(share.whole(len(share.cut(whole))) == 12 for share in shares)
    for limit in range(13):
        assert [share.before(limit) for share in shares] == [int((share.cut(whole) < limit).sum()) for share in shares]
    assert Share().cut(whole).tolist() == whole.tolist()


@pytest.mark.parametrize(
    ("suite", "stage", "options", "words"),
    [
        ("digits", "vfm", {"batch_size": 10, "accumulate": 4}, r"vfm\.batch_size must be a multiple of 4, .* not 10"),
        ("checkerboard", "vfm", {"accumulate": 2}, r"vfm\.accumulate must be 1, not 2"),
        ("checkerboard", "flow", {"accumulate": 2}, r"flow\.accumulate must be 1, not 2"),
    ],
)
def test_batches_that_cannot_be_divided_are_refused(tmp_path, suite, stage, options, words):
    with pytest.raises(UserError, match=words):
        train(stage, suites.get(suite)({}), {stage: options}, tmp_path / "out", CPU, False, QUIET)
    assert not (tmp_path / "out").exists()
