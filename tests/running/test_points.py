"""Runs on points: stored as they are, judged against the exact posterior, the same in any batches."""

import numpy as np
import pytest
import torch

from vfmbench import RunConfig, run
from vfmbench.errors import MissingError, UserError
from vfmbench.registry import suites
from vfmbench.results.paths import RunPaths
from vfmbench.results.shards import Shards
from vfmbench.running.scoring import score_run

SMALL = {"num_images": 12, "samples": 8}


def stored(out, method="exact", suite="mixture", task="linear_observation", **changes):
    return run(RunConfig(suite=suite, method=method, task=task, out=str(out), **{**SMALL, **changes})).results()


def values(store):
    return {row.name: row.value for row in store.metrics()}


def test_points_are_stored_without_rounding(tmp_path):
    store = stored(tmp_path)
    shards = Shards(store.directory)
    images = shards.read("images")
    assert images.dtype == np.float32
    assert images.shape == (12, 8, 2, 1, 1)
    # Draws of a continuous law differ in all digits; 8-bit levels would repeat.
    assert len(np.unique(images)) == images.size
    assert not shards.has("prior")
    assert not shards.has("source")


def test_every_default_metric_of_the_suite_has_a_value(tmp_path):
    found = values(stored(tmp_path))
    for name in ("crps@point", "mmd_posterior", "sliced_wasserstein", "mode_error", "nlpd", "residual", "tarp@point"):
        assert found[name] is not None
    assert not any(name.startswith(("psnr", "ssim", "fid")) for name in found)


def test_measurements_are_the_same_for_every_method_and_batch(tmp_path):
    hashes = [
        stored(tmp_path, method, batch_size=size).measurements()
        for method, size in (("exact", 96), ("pinv", 8), ("adjoint", 40))
    ]
    assert hashes[0] == hashes[1] == hashes[2]


def test_samples_do_not_depend_on_the_batch(tmp_path):
    whole, parts = (stored(tmp_path / str(size), batch_size=size).directory for size in (96, 24))
    assert [len(RunPaths(directory).shards()) for directory in (whole, parts)] == [1, 4]
    np.testing.assert_array_equal(Shards(whole).read("images"), Shards(parts).read("images"))


def test_draws_of_the_prior_lie_beside_the_samples_and_cost_nothing(tmp_path):
    changes = {"options": {"method": {"pool": 4096, "ode_steps": 4}}}
    store = stored(tmp_path, "source_reweighting", **changes)
    shards, records = Shards(store.directory), store.records()
    assert shards.read("prior").shape == shards.read("source").shape == shards.read("images").shape
    # The pool is the only use of the network; 12 x 8 draws of the prior would add another 8 evaluations each.
    assert records["nfe"].sum() == pytest.approx(8 * 4096)
    assert records["effective_samples"].between(1, 8).all()
    assert values(store)["effective_samples"] == pytest.approx(records["effective_samples"].mean())


def test_worth_of_samples_does_not_depend_on_the_batch(tmp_path):
    changes = {"options": {"method": {"pool": 4096, "ode_steps": 4}}, "num_images": 1, "samples": 400}
    whole, split = (stored(tmp_path / str(size), "source_reweighting", batch_size=size, **changes) for size in (400, 100))
    values_of = [float(store.records()["effective_samples"].iloc[0]) for store in (whole, split)]
    assert values_of[0] == pytest.approx(values_of[1], rel=1e-3)


def test_prior_draws_that_are_not_numbers_are_refused(tmp_path, monkeypatch):
    from vfmbench.baselines.source_reweighting import SourceReweighting

    monkeypatch.setattr(SourceReweighting, "sample_prior", lambda self, noise: noise.normal((2, 1, 1), 0) * torch.nan)
    store = stored(tmp_path, "source_reweighting", options={"method": {"pool": 4096, "ode_steps": 4}}, metrics=["mmd_prior"])
    row = next(row for row in store.metrics() if row.name == "mmd_prior")
    assert row.value is None
    assert "not finite" in row.reason


def test_without_a_known_posterior_the_other_metrics_remain(tmp_path):
    found = values(stored(tmp_path, "pinv", suite="checkerboard", task="linear_observation"))
    assert found["crps@point"] is not None
    assert found["mmd_posterior"] is None


def test_image_tasks_do_not_apply_to_points(tmp_path):
    with pytest.raises(UserError, match="denoise is for images; the suite mixture has points"):
        stored(tmp_path, task="denoise")


def test_one_step_needs_a_flow_map(tmp_path):
    with pytest.raises(UserError, match=r"method\.map: the suite mixture has no flow map for one_step"):
        stored(tmp_path, "source_reweighting", options={"method": {"map": "one_step"}})


def test_values_tuned_in_the_plane_are_refused_elsewhere(tmp_path):
    with pytest.raises(MissingError, match="tuned for other data"):
        stored(tmp_path, "latent_dps", preset="tuned", options={"data": {"dimension": 8}})


def test_scores_of_stored_points_are_those_of_the_run(tmp_path):
    store = stored(tmp_path, metrics=["crps"])
    score_run(store.directory, ["mmd_posterior", "mode_error"], {}, torch.device("cpu"))
    rescored = values(store)
    assert {"crps@point", "mmd_posterior", "mode_error"} <= set(rescored)
    assert rescored["mmd_posterior"] == values(stored(tmp_path / "again"))["mmd_posterior"]


def test_exact_posterior_has_no_meaning_for_images(tmp_path):
    result = run(RunConfig(suite="digits", method="exact", task="denoise", num_images=2, samples=2, out=str(tmp_path)))
    assert result.status == "skipped"
    assert "posterior is not known in the suite digits" in result.note


@pytest.mark.parametrize(
    ("suite", "data", "words"),
    [
        ("mixture", {"dimension": 0}, "data.dimension"),
        ("gaussian", {"dimension": -1}, "data.dimension"),
        ("gaussian", {"condition": 0.5}, "data.condition"),
        ("checkerboard", {"dimension": 3}, "dimension"),
    ],
)
def test_bad_data_options_are_named(suite, data, words):
    with pytest.raises(UserError, match=words):
        suites.get(suite)({"data": data})


def test_the_points_of_a_split_never_change():
    # The Gaussian's basis comes from a decomposition, whose last digits may differ between machines.
    hashes = {name: suites.get(name)({}).dataset("validation").sha256[:12] for name in ("checkerboard", "mixture")}
    assert hashes == {"checkerboard": "df78515f00cb", "mixture": "97a794b0b593"}
