"""The run directory: resumable, one writer, one configuration, the same numbers however it was computed."""

import json
import threading

import pandas as pd
import pytest
import torch
import yaml

from vfmbench import RunConfig
from vfmbench.errors import MissingError, Status, UserError
from vfmbench.measurement import Samples
from vfmbench.registry import samplers
from vfmbench.results.shards import Shards
from vfmbench.results.stored import StoredRun
from vfmbench.running.plan import plan
from vfmbench.running.runner import execute, run

SMALL = {"method": "vfm", "task": "gaussian_deblur", "num_images": 6, "samples": 3}


def config(tmp_path, **changes):
    return RunConfig(**{**SMALL, "out": tmp_path, **changes})


def images_of(result):
    return torch.from_numpy(Shards(result.store.directory).read("images"))


def test_directory_holds_the_contract(tmp_path):
    result = run(config(tmp_path))
    assert result.status == Status.DONE
    directory = result.store.directory
    assert directory.relative_to(tmp_path).parts[:3] == ("digits", "gaussian_deblur", "vfm")
    for name in ("config.yaml", "provenance.json", "measurements.json", "records.parquet", "metrics.json", "log.txt"):
        assert (directory / name).is_file()
    records = pd.read_parquet(directory / "records.parquet")
    assert len(records) == 18
    assert {"index", "sample", "label", "seed", "nfe", "seconds", "peak_memory_bytes", "residual", "status"} <= set(records)
    assert (records["status"] == "done").all()
    metrics = {row["name"]: row for row in json.loads((directory / "metrics.json").read_text())["metrics"]}
    assert metrics["psnr"]["n"] == 6
    assert metrics["psnr"]["low"] < metrics["psnr"]["value"] < metrics["psnr"]["high"]
    assert metrics["fid@digitnet"]["feature_space"] == "digitnet"
    assert len(pd.read_parquet(directory / "metrics_per_image.parquet")) == 6
    provenance = json.loads((directory / "provenance.json").read_text())
    assert provenance["status"] == "done"
    assert provenance["weights_sha256"].keys() == {"vfm"}
    assert [session["images"] for session in provenance["sessions"]] == [6]
    assert "6 of 6 images to sample" in (directory / "log.txt").read_text()
    assert "done" in (directory / "log.txt").read_text()
    assert yaml.safe_load((directory / "config.yaml").read_text())["identity"]["task_options"]["noise_std"] == 0.1


@pytest.mark.parametrize("method", ["vfm", "frozen_adapter", "pinv"])
def test_result_does_not_depend_on_batch_size(tmp_path, method):
    whole = images_of(run(config(tmp_path / "a", method=method)))
    single = images_of(run(config(tmp_path / "b", method=method, batch_size=3)))
    # Rounding in the network may move a value across the border between two of 256 levels.
    assert (whole.int() - single.int()).abs().max() <= 1


def test_fewer_images_are_a_prefix_of_more(tmp_path):
    six = images_of(run(config(tmp_path)))
    two = images_of(run(config(tmp_path, num_images=2)))
    assert (six[:2].int() - two.int()).abs().max() <= 1


def test_killed_run_resumes_without_repeating_anything(tmp_path, monkeypatch):
    unbroken = run(config(tmp_path / "unbroken", batch_size=3))
    sampled = []
    sampler_class = samplers.get("vfm")
    real = sampler_class.sample

    def dies_in_the_third_batch(self, measurement, num_samples, noise):
        if len(sampled) == 2:
            raise KeyboardInterrupt
        sampled.append(measurement.index.tolist())
        return real(self, measurement, num_samples, noise)

    monkeypatch.setattr(sampler_class, "sample", dies_in_the_third_batch)
    with pytest.raises(KeyboardInterrupt):
        run(config(tmp_path / "killed", batch_size=3))
    store = plan(config(tmp_path / "killed")).store
    assert store.provenance()["status"] == "interrupted"
    assert Shards(store.directory).positions == [0, 1]

    def counting(self, measurement, num_samples, noise):
        sampled.append(measurement.index.tolist())
        return real(self, measurement, num_samples, noise)

    monkeypatch.setattr(sampler_class, "sample", counting)
    resumed = run(config(tmp_path / "killed", batch_size=3))
    assert sampled == [[0], [1], [2], [3], [4], [5]]
    assert torch.equal(images_of(resumed), images_of(unbroken))
    names = ["psnr", "crps@digitnet", "fid@digitnet"]
    before, after = (result.metrics().set_index("name")["value"] for result in (unbroken, resumed))
    assert before[names].tolist() == after[names].tolist()
    assert resumed.store.records()["session"].unique().tolist() == [0, 1]
    assert [session["images"] for session in resumed.store.provenance()["sessions"]] == [6, 4]
    before = {path: path.stat().st_mtime_ns for path in resumed.store.paths.written()}
    run(config(tmp_path / "killed"))
    assert len(sampled) == 6
    assert before == {path: path.stat().st_mtime_ns for path in resumed.store.paths.written()}


def test_more_metrics_later_keep_the_earlier_ones(tmp_path):
    first = run(config(tmp_path, metrics=("psnr",)))
    assert "crps@pixel" not in set(first.metrics()["name"])
    psnr = first.metrics().set_index("name").loc["psnr", "value"]
    both = run(config(tmp_path, metrics=("crps", "fid")))
    names = both.metrics().set_index("name")
    assert names.loc["psnr", "value"] == psnr
    assert {"crps@pixel", "fid@digitnet", "seconds_per_sample"} <= set(names.index)
    assert {"psnr", "crps@pixel"} <= set(StoredRun.read(both.store).per_image)
    run(config(tmp_path, metrics=("psnr",)))
    assert "crps@pixel" in set(both.metrics()["name"])


def test_torn_shard_is_computed_again(tmp_path):
    first = run(config(tmp_path, batch_size=3))
    expected = images_of(first)
    shard = first.store.paths.shards()[1]
    shard.write_bytes(shard.read_bytes()[:50])
    assert torch.equal(images_of(run(config(tmp_path, batch_size=3))), expected)


def test_fresh_starts_over(tmp_path):
    first = run(config(tmp_path))
    shard = first.store.paths.shards()[0]
    before = shard.stat().st_mtime_ns
    run(config(tmp_path))
    assert shard.stat().st_mtime_ns == before
    run(config(tmp_path, fresh=True))
    assert shard.stat().st_mtime_ns > before
    assert len(first.store.provenance()["sessions"]) == 1


def test_second_process_is_refused(tmp_path, monkeypatch):
    entered, leave = threading.Event(), threading.Event()
    sampler_class = samplers.get("vfm")
    real = sampler_class.sample

    def slow(self, *arguments):
        entered.set()
        leave.wait(20)
        return real(self, *arguments)

    monkeypatch.setattr(sampler_class, "sample", slow)
    first = threading.Thread(target=run, args=(config(tmp_path),))
    first.start()
    try:
        assert entered.wait(20)
        with pytest.raises(UserError, match="Another process"):
            run(config(tmp_path))
    finally:
        leave.set()
        first.join()


def test_directory_of_another_configuration_is_refused(tmp_path):
    result = run(config(tmp_path))
    path = result.store.paths.config
    content = yaml.safe_load(path.read_text())
    content["identity"]["seed"] = 5
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(UserError, match="seed"):
        run(config(tmp_path))


def test_run_directory_given_as_out_is_refused(tmp_path):
    directory = run(config(tmp_path)).store.directory
    with pytest.raises(UserError, match="itself a run directory"):
        run(config(directory))


def test_seed_and_options_change_the_directory_but_execution_does_not(tmp_path):
    base = plan(config(tmp_path)).store.directory
    assert plan(config(tmp_path, batch_size=3, device="cpu", metrics=("psnr",))).store.directory == base
    assert plan(config(tmp_path, seed=1)).store.directory != base
    assert plan(config(tmp_path, options={"task": {"std": 1.5}})).store.directory != base
    assert plan(config(tmp_path, options={"method": {"steps": 4}})).store.directory != base


def test_every_method_sees_the_same_measurements(tmp_path):
    hashes = [run(config(tmp_path, method=method)).store.measurements() for method in ("vfm", "pinv")]
    assert hashes[0] == hashes[1]
    assert len(hashes[0]) == 6


def test_a_renamed_task_draws_the_same_random_numbers(tmp_path):
    suite = tmp_path / "mine.yaml"
    options = "{kernel_size: 3, std: 0.8, noise_std: 0.1}"
    renamed = options.replace("{", "{kind: gaussian_deblur, ")
    tasks = f"tasks: {{gaussian_deblur: {options}, soft: {renamed}}}\n"
    suite.write_text("name: mine\ndata: {source: digits}\nimage_shape: [1, 8, 8]\n" + tasks)
    names = ("gaussian_deblur", "soft")
    stores = [run(config(tmp_path, suite=str(suite), method="pinv", task=name)).store for name in names]
    assert stores[0].measurements() == stores[1].measurements()
    records = [pd.read_parquet(store.directory / "records.parquet") for store in stores]
    for name in ("residual", "log_likelihood"):
        assert records[0][name].equals(records[1][name])


def test_diverged_samples_are_marked_and_left_out(tmp_path, monkeypatch):
    sampler_class = samplers.get("pinv")
    real = sampler_class.sample

    def one_bad_image(self, *arguments):
        images = real(self, *arguments).images.clone()
        images[2, 1] = float("nan")
        return Samples(images)

    monkeypatch.setattr(sampler_class, "sample", one_bad_image)
    result = run(config(tmp_path, method="pinv"))
    records = result.store.records()
    assert records.loc[records["status"] == "diverged", ["index", "sample"]].to_numpy().tolist() == [[2, 1]]
    metrics = result.metrics().set_index("name")
    assert metrics.loc["psnr", "n"] == 5
    assert "5 of 6" in metrics.loc["psnr", "settings"]


def test_unsupported_cell_is_a_status(tmp_path, monkeypatch):
    monkeypatch.setattr(samplers.get("vfm"), "supports", classmethod(lambda *_: (False, "no reason")))
    result = execute(plan(config(tmp_path)))
    assert result.status == Status.SKIPPED
    assert "no reason" in result.note
    assert not result.store.directory.exists()


def test_missing_weights_name_the_directory(tmp_path):
    with pytest.raises(MissingError, match="no weights in"):
        plan(config(tmp_path, options={"weights": {"path": str(tmp_path / "nowhere")}}))
