"""Stopped between sampling and metrics: nothing stale stays, nothing is left half done."""

import numpy as np
import pytest
import torch

from vfmbench import RunConfig
from vfmbench.cli import main
from vfmbench.errors import Status, UserError
from vfmbench.metrics.metric import metric
from vfmbench.registry import metrics, samplers
from vfmbench.results.schema import MetricSpec, read_metrics
from vfmbench.results.stored import StoredRun
from vfmbench.running import runner
from vfmbench.running.cost import COST_SPECS
from vfmbench.running.plan import plan
from vfmbench.running.runner import run
from vfmbench.running.scoring import score_run


def config(folder, **changes):
    values = {"method": "pinv", "task": "gaussian_deblur", "num_images": 20, "samples": 2, "batch_size": 20, "out": folder}
    return RunConfig(**{**values, **changes})


def stop(*arguments, **options):
    raise KeyboardInterrupt


def test_metrics_of_a_part_of_the_images_do_not_survive_the_rest(tmp_path, monkeypatch):
    def stop_at_ten(done, planned):
        if done >= 10:
            stop()

    with pytest.raises(KeyboardInterrupt):
        run(config(tmp_path), stop_at_ten)
    score_run(plan(config(tmp_path)).store.directory, ["psnr", "ssim"], {}, torch.device("cpu"))
    with monkeypatch.context() as patch:
        patch.setattr(runner, "stored_evaluation", stop)
        with pytest.raises(KeyboardInterrupt):
            run(config(tmp_path))
    result = run(config(tmp_path))
    rows = {row.name: row.n for row in result.results().metrics() if row.metric != "cost" and row.value is not None}
    assert set(rows.values()) == {20}
    stored = StoredRun.read(result.results())
    assert stored.index.tolist() == list(range(20))
    assert np.isfinite(stored.per_image["psnr"]).all()


def test_interrupted_metrics_leave_a_run_that_the_next_one_finishes(tmp_path, monkeypatch):
    small = {"num_images": 4, "task": "denoise"}
    first = run(config(tmp_path, metrics=("psnr",), **small))
    cost = first.cost()
    with monkeypatch.context() as patch:
        patch.setattr(runner, "compute_metrics", stop)
        with pytest.raises(KeyboardInterrupt):
            run(config(tmp_path, metrics=("ssim",), **small))
    assert first.cost() == cost
    assert first.results().provenance()["status"] == Status.INTERRUPTED
    again = run(config(tmp_path, metrics=("psnr",), **small))
    assert again.results().provenance()["status"] == Status.DONE
    assert again.cost() == cost


def test_a_metric_that_broke_is_tried_again(tmp_path, monkeypatch):
    calls = []

    @metric(MetricSpec(name="flaky"))
    def flaky(evaluation):
        calls.append(len(evaluation))
        raise RuntimeError("out of memory")

    monkeypatch.setitem(metrics._registered, "flaky", flaky)
    for _ in range(2):
        result = run(config(tmp_path, metrics=("flaky", "psnr"), num_images=4))
    assert calls == [4, 4]
    assert [row.reason for row in result.results().metrics() if row.metric == "flaky"] == ["RuntimeError: out of memory"]


def test_runs_of_another_layout_are_refused(tmp_path):
    path = run(config(tmp_path, metrics=("psnr",), num_images=4)).results().paths.config
    path.write_text(path.read_text().replace("schema_version: 2", "schema_version: 1"))
    with pytest.raises(UserError, match="another version of vfmbench"):
        run(config(tmp_path, metrics=("psnr",), num_images=4))


def test_bench_goes_on_after_a_method_that_breaks(monkeypatch, capsys):
    from vfmbench.commands import bench as command

    measure = command.bench

    def breaking(plan, *arguments):
        if plan.identity.method == "adjoint":
            raise RuntimeError("boom")
        return measure(plan, *arguments)

    monkeypatch.setattr(command, "bench", breaking)
    assert main(["bench", "--methods", "adjoint,pinv", "--task", "denoise", "--largest-batch", "1", "--json"]) == 0
    output = capsys.readouterr().out
    assert "RuntimeError: boom" in output
    assert '"pinv": {"latency"' in output


def test_metrics_of_another_layout_are_computed_again_from_the_samples(tmp_path, monkeypatch):
    result = run(config(tmp_path, metrics=("psnr",), num_images=4))
    path = result.results().paths.metrics
    before = read_metrics(path)
    path.write_text('{"schema_version": 2, "metrics": [{"metric": "psnr", "name": "psnr", "value": 1.0}]}')
    with pytest.raises(UserError, match=r"another version of vfmbench .*`vfmbench metrics .*` computes the metrics again"):
        result.metrics()
    monkeypatch.setattr(samplers.get("pinv"), "sample", None)
    run(config(tmp_path, metrics=("psnr",), num_images=4))
    assert read_metrics(path) == before


def test_costs_of_another_version_are_computed_again(tmp_path, monkeypatch):
    result = run(config(tmp_path, metrics=("psnr",), num_images=4))
    changed = {**COST_SPECS, "nfe": COST_SPECS["nfe"].model_copy(update={"version": 2})}
    monkeypatch.setattr("vfmbench.running.cost.COST_SPECS", changed)
    monkeypatch.setattr(samplers.get("pinv"), "sample", None)
    run(config(tmp_path, metrics=("psnr",), num_images=4))
    assert {row.name: row.spec.version for row in result.results().metrics()}["nfe"] == 2
    assert [session["metrics"] for session in result.results().provenance()["sessions"]] == [["psnr"], []]
