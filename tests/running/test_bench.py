"""Cost of a method on this machine: counts and bytes are exact, times only have to be positive."""

import json

import pytest
import torch

from vfmbench.cli import main
from vfmbench.running.bench import _FlopCounter, bench
from vfmbench.running.memory import peak_tensor_memory
from vfmbench.running.runner import plan

CPU = torch.device("cpu")
FLOAT = 4


def test_memory_counts_what_is_held_at_the_worst_moment():
    def call():
        first = torch.ones(1000)
        second = first + 1
        del first
        return second * 2

    assert peak_tensor_memory(call, CPU) == 2 * 1000 * FLOAT


def test_memory_leaves_out_what_was_there_before():
    weight = torch.ones(500, 500)
    assert peak_tensor_memory(lambda: weight.T @ torch.ones(500, 1), CPU) == 2 * 500 * FLOAT


def test_memory_sees_what_a_graph_keeps():
    x = torch.ones(1000, requires_grad=True)

    def call(depth):
        y = x
        for _ in range(depth):
            y = y.sin()
        return y

    # The sine keeps its input for the backward pass.
    assert peak_tensor_memory(lambda: call(7), CPU) - peak_tensor_memory(lambda: call(3), CPU) == 4 * 1000 * FLOAT


def test_flops_of_a_gradient_with_respect_to_a_networks_input():
    network = torch.nn.Sequential(torch.nn.Linear(30, 20), torch.nn.Conv1d(1, 4, 3)).requires_grad_(False)
    x = torch.ones(5, 1, 30, requires_grad=True)
    with _FlopCounter() as counter:
        torch.autograd.grad(network(x).sum(), x)
    linear, convolution = 2 * 5 * 30 * 20, 2 * 5 * 4 * 3 * 18
    assert counter.total == pytest.approx(2 * linear + 2 * convolution, rel=0.1)


def test_bench_counts_evaluations_and_flops(config):
    few, many = (bench(plan(config(method="latent_dps", options={"method": {"steps": steps}})), 1e9, 4) for steps in (1, 2))
    assert (few.evaluations.network_forwards, few.evaluations.network_vjps) == (2, 2)
    assert (many.evaluations.network_forwards, many.evaluations.network_vjps) == (4, 4)
    assert many.flops == pytest.approx(2 * few.flops, rel=1e-3)
    assert few.batch in (1, 4)
    assert min(few.latency, few.seconds, few.memory, few.memory_per_sample) > 0
    assert 0 < few.network_share <= 1
    assert few.peak_share == pytest.approx(few.flops / few.seconds / 1e9)


@pytest.fixture
def config(tmp_path):
    from vfmbench.config import RunConfig

    return lambda **values: RunConfig(task="gaussian_deblur", out=tmp_path, **values)


def test_the_command_leaves_out_what_cannot_run_and_says_why(capsys):
    arguments = ["bench", "--methods", "pinv,unguided", "--task", "phase_retrieval", "--largest-batch", "1", "--json"]
    assert main([*arguments, "--set", "unguided.steps=2"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["costs"]["unguided"]["evaluations"]["network_forwards"] == 4
    assert "not linear" in document["left_out"]["pinv"]
