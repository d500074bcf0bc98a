"""Cost of a method on this machine: counts and bytes are exact, times only have to be positive."""

import json

import pytest
import torch

from vfmbench.cli import main
from vfmbench.registry import suites
from vfmbench.reporting.tables import bench_table, published_seconds
from vfmbench.running.bench import FlopCounter, bench, matrix_rate, typical_cost
from vfmbench.running.memory import peak_tensor_memory
from vfmbench.running.plan import plan
from vfmbench.training.untrained import untrained

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
    with FlopCounter() as counter:
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


@pytest.mark.parametrize(("compiles", "slow", "calls"), [(False, False, 4), (False, True, 1), (True, True, 2)])
def test_the_first_call_is_a_warm_up_unless_it_is_long_and_does_not_compile(monkeypatch, config, compiles, slow, calls):
    monkeypatch.setattr("vfmbench.running.bench._ENOUGH_SECONDS", 0.0 if slow else 1e9)
    checked = plan(config(method="pinv"))
    sampler, made = checked.sampler(), []
    typical_cost(lambda: made.append(None), sampler, 1, CPU, compiles)
    assert len(made) == calls


def test_bench_in_half_precision(config):
    options = {"method": {"steps": 1}}
    half, whole = (
        bench(plan(config(method="latent_dps", options=options, precision=precision, device="cpu")), 1e9, 1)
        for precision in ("bfloat16", "float32")
    )
    assert (half.precision, whole.precision) == ("bfloat16", "float32")
    # Whatever attention kernel the processor has for either, the plain one is counted.
    assert half.flops == whole.flops
    assert half.evaluations == whole.evaluations
    assert min(matrix_rate(CPU, precision) for precision in ("bfloat16", "float32")) > 0


def test_forward_passes_cost_the_same_in_half_precision(config):
    half, whole = (
        bench(plan(config(method="vfm", precision=precision, device="cpu")), 1e9, 1) for precision in ("bfloat16", "float32")
    )
    assert half.flops == pytest.approx(whole.flops, rel=1e-3)


def test_untrained_networks_cost_what_the_trained_ones_do(config):
    trained = bench(plan(config(method="vfm")), 1e9, 1)
    with untrained(suites.get("digits")({})) as suite:
        checked = plan(config(method="vfm"), suite)
        cost = bench(checked, 1e9, 1, random_weights=True)
        frozen = bench(plan(config(method="frozen_adapter"), suite), 1e9, 1, random_weights=True)
    assert cost.random_weights
    assert (cost.flops, cost.evaluations, cost.memory) == (trained.flops, trained.evaluations, trained.memory)
    assert frozen.evaluations.adapter_forwards == 1
    # Nobody's results may be mistaken for theirs.
    real = plan(config(method="vfm")).identity
    assert checked.identity.weights_sha256 != real.weights_sha256
    assert checked.identity.dataset_sha256 != real.dataset_sha256


def test_untrained_suites_of_points():
    with untrained(suites.get("checkerboard")({})) as suite:
        assert set(suite.training) <= {*suite.weights.entries()}


def test_the_papers_seconds_stand_beside_the_measured_ones(config):
    cost = bench(plan(config(method="pinv")), 1e9, 1)
    blur, first = published_seconds("imagenet256", "gaussian_deblur"), published_seconds("imagenet256", "denoise")
    assert (blur["vfm"], blur["latent_daps"], blur["flowdps"]) == ("0.027", "46.86", "14.91")
    assert first["vfm"] == "0.015 .. 0.027"
    assert first["frozen_adapter"] == "0.015"
    assert published_seconds("digits", "gaussian_deblur") == {}
    headings = [str(column.header) for column in bench_table("", {"pinv": cost}, 1e9, first).columns]
    assert headings[:3] == ["method", "paper, s", "batch 1"]
    plain = bench_table("digits", {"pinv": cost}, 1e9)
    assert "paper, s" not in [str(column.header) for column in plain.columns]
    assert plain.title == "digits"


def test_the_table_says_whose_weights_are_random(config):
    cost = bench(plan(config(method="pinv")), 1e9, 1, random_weights=True)
    assert bench_table("digits", {"pinv": cost}, 1e9).title == "digits (timing only, random weights: pinv)"


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
