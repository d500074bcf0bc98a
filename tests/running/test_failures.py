"""Samplers that explode or need too much memory: what a run makes of them."""

import pytest
import torch

from vfmbench import RunConfig
from vfmbench.errors import Status
from vfmbench.interfaces import Sampler
from vfmbench.measurement import Samples
from vfmbench.registry import samplers
from vfmbench.results.shards import Shards
from vfmbench.results.stored import StoredRun
from vfmbench.running.runner import run


class Plugin(Sampler):
    """A third party's sampler: noise as images. A subclass decides when it fails."""

    largest = 10_000
    rows_seen: list[int]

    def sample(self, measurement, num_samples, noise):
        rows = len(measurement) * num_samples
        self.rows_seen.append(rows)
        if rows > self.largest:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        images = noise.normal((1, 8, 8), 0).clamp(-1, 1).unflatten(0, (len(measurement), num_samples))
        return Samples(self.spoil(images, measurement.index))

    def spoil(self, images, index):
        return images


@pytest.fixture
def run_plugin(tmp_path, monkeypatch):
    """Runs a subclass of `Plugin` with the given attributes on six digits, three samples each."""

    def start(name, samples=3, batch_size=12, num_images=6, **attributes):
        plugin = type("Wild", (Plugin,), {"rows_seen": [], **attributes})
        monkeypatch.setitem(samplers._registered, "wild", plugin)
        config = RunConfig(
            method="wild",
            task="denoise",
            num_images=num_images,
            samples=samples,
            batch_size=batch_size,
            out=tmp_path / name,
            metrics=("psnr",),
        )
        return run(config), plugin.rows_seen

    return start


def images_of(result):
    return torch.from_numpy(Shards(result.store.directory).read("images"))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e6, -101.0])
def test_one_exploding_sample_costs_its_image_only(run_plugin, value):
    def spoil(self, images, index):
        images[index == 2, 1, 0, 3, 4] = value
        return images

    result, _ = run_plugin("spoilt", spoil=spoil)
    assert result.status == Status.DONE
    records = result.store.records()
    assert len(records) == 18
    assert records.loc[records["status"] != "done", ["index", "sample", "status"]].to_numpy().tolist() == [[2, 1, "diverged"]]
    psnr = result.metrics().set_index("name").loc["psnr"]
    assert psnr["n"] == 5
    assert "5 of 6" in psnr["settings"]
    sound, _ = run_plugin("sound")
    others = [0, 1, 3, 4, 5]
    assert torch.equal(images_of(result)[others], images_of(sound)[others])
    assert StoredRun.read(result.store).index.tolist() == others
    per_image, expected = (StoredRun.read(run.store).per_image["psnr"] for run in (result, sound))
    assert per_image.tolist() == expected[others].tolist()


def test_largest_value_that_counts_as_an_image(run_plugin):
    def spoil(self, images, index):
        images[index == 2] *= 100
        return images

    records = run_plugin("large", spoil=spoil)[0].store.records()
    assert (records["status"] == "done").all()


@pytest.mark.parametrize(
    ("largest", "tried"),
    [
        # Twelve rows are four images; halves of them: two images, one image, one image in parts.
        (6, [12, 6, 6, 6]),
        (5, [12, 6, 3, 3, 3, 3, 3, 3]),
        (2, [12, 6, 3, *[1] * 18]),
    ],
)
def test_batch_that_does_not_fit_is_halved(run_plugin, largest, tried):
    result, rows_seen = run_plugin("small", largest=largest)
    assert result.status == Status.DONE
    assert rows_seen == tried
    assert f"out of memory with 12 samples in a batch; went on with {min(tried)}" in result.note
    assert result.store.provenance()["sessions"][-1]["batch_size"] == min(tried)
    assert "out of memory" in result.store.paths.log.read_text()
    assert torch.equal(images_of(result), images_of(run_plugin("large")[0]))


@pytest.mark.parametrize(("samples", "num_images", "batch_size"), [(3, 2, 12), (1, 1, 12), (1, 3, 2), (4, 1, 1)])
def test_sampler_that_never_fits_says_so(run_plugin, samples, num_images, batch_size):
    with pytest.raises(torch.OutOfMemoryError):
        run_plugin("none", largest=0, samples=samples, num_images=num_images, batch_size=batch_size)


def test_other_errors_are_not_taken_for_a_lack_of_memory(run_plugin):
    def spoil(self, images, index):
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes do not match"):
        run_plugin("broken", spoil=spoil)


@pytest.mark.parametrize("batch_size", [1, 2, 4, 7])
def test_samples_are_the_same_if_they_do_not_fit_into_one_batch(run_plugin, batch_size):
    whole, _ = run_plugin("whole", samples=5)
    parts, rows_seen = run_plugin("parts", samples=5, batch_size=batch_size)
    assert max(rows_seen) <= batch_size or batch_size == 7
    assert torch.equal(images_of(whole), images_of(parts))


def test_a_latent_that_explodes_behind_a_bounded_decoder(run_plugin):
    def sample(self, measurement, num_samples, noise):
        images = Plugin.sample(self, measurement, num_samples, noise).images
        return Samples(images, torch.where((measurement.index == 2)[:, None, None, None, None], 1e12, images))

    result, _ = run_plugin("bounded", sample=sample, num_images=4)
    records = result.results().records()
    assert set(records.loc[records["status"] == Status.DIVERGED, "index"]) == {2}
    assert "3 of 12 samples diverged; the 1 images" in result.note
