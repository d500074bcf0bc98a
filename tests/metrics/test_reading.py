"""Pixels are read once for all metrics, a block at a time, and what the blocks are changes no number."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from vfmbench.domains import IMAGES
from vfmbench.errors import UserError
from vfmbench.metrics import calibration, posterior
from vfmbench.metrics import evaluation as evaluation_module
from vfmbench.metrics import reading as module
from vfmbench.metrics.compute import compute_metrics, default_metrics
from vfmbench.metrics.metric import metric
from vfmbench.metrics.reading import Reading, Reordered
from vfmbench.metrics.values import mean_value
from vfmbench.registry import metrics as registry
from vfmbench.results.schema import MetricSpec


class Stored:
    """Rows on a disk that does not exist: made when they are read. Knows what was read, and how much of it is still alive."""

    device = torch.device("cpu")

    def __init__(self, rows):
        self._rows = rows
        self.shape, self.dtype = rows.shape, rows.dtype
        self.read, self.alive, self.most = [], 0, 0

    def __len__(self):
        return len(self._rows)

    def __getitem__(self, rows):
        found = self._rows[rows].numpy().copy()
        self.read += torch.arange(len(self))[rows].tolist()
        self.alive += found.nbytes
        self.most = max(self.most, self.alive)
        # Shares its memory, and is alive as long as any view of it.
        array = found.view(Watched)
        array.owner = self
        return torch.frombuffer(array, dtype=torch.uint8).reshape(array.shape)


class Watched(np.ndarray):
    owner = None

    def __del__(self):
        if self.owner is not None:
            self.owner.alive -= self.nbytes


def of_images():
    return {name: registry.get(name) for name in default_metrics(IMAGES)}


def values(results):
    return {result.row.name: (result.row.value, result.row.low, result.row.high, result.row.reason) for result in results}


def test_all_metrics_of_images_read_every_sample_once(make_set, pixel_space, monkeypatch):
    monkeypatch.setattr(module, "_READ_VALUES", 5 * 3 * 64)
    whole = make_set(17, 3, feature_spaces={"pixels": pixel_space()}, label=torch.arange(17) % 2)
    expected = values(compute_metrics(whole, of_images()))
    stored = Stored(whole.samples)
    lazy = replace(whole, samples=stored, truth=Stored(whole.truth), feature_spaces={"pixels": pixel_space()})
    assert values(compute_metrics(lazy, of_images())) == expected
    assert stored.read == list(range(17))
    assert sum(value is not None for value, *_ in expected.values()) > 20


@pytest.mark.parametrize("read", [1, 4, 100])
def test_the_size_of_a_reading_changes_no_block(make_set, monkeypatch, read):
    evaluation = make_set(11, 2)
    monkeypatch.setattr(module, "_READ_VALUES", read * 2 * 64)
    reading, blocks = Reading(evaluation.truth, evaluation.samples), {"images": [], "truth": [], "samples": []}

    def noting(kind, rows):
        blocks[kind].append(len(rows))
        return rows.flatten(1).float()

    images = reading.ask(lambda truth, samples: noting("images", samples), 3)
    truth = reading.ask_truth(lambda rows: noting("truth", rows), 5)
    samples = reading.ask_samples(lambda rows: noting("samples", rows), 8)
    assert torch.equal(images.result(), evaluation.samples.flatten(1).float())
    assert torch.equal(truth.result(), evaluation.truth.flatten(1).float())
    assert torch.equal(samples.result(), evaluation.samples.flatten(0, 1).flatten(1).float())
    assert blocks == {"images": [3, 3, 3, 2], "truth": [5, 5, 1], "samples": [8, 8, 6]}


def test_rows_of_other_images_come_with_a_block(make_set):
    evaluation = make_set(7, 2)
    order = torch.tensor([3, 4, 5, 6, 0, 1, 2])
    asked = evaluation.per_image(lambda truth, samples, other: other.flatten(1), 2, [Reordered(evaluation.truth, order)])
    assert torch.equal(asked.result(), evaluation.truth[order].flatten(1))


def peak(make_set, pixel_space, count):
    whole = make_set(count, 4, (3, 16, 16), feature_spaces={"pixels": pixel_space(dimension=6)})
    stored, truth = Stored(whole.samples), Stored(whole.truth)
    lazy = replace(whole, samples=stored, truth=truth)
    # Not those between all pairs of images, whose work, not memory of pixels, would grow.
    chosen = {name: one for name, one in of_images().items() if name not in ("fid", "fid_infinity", "kid", "mmd", "prdc")}
    compute_metrics(lazy, chosen)
    assert stored.read == list(range(count))
    assert stored.alive == truth.alive == 0
    return stored.most, stored.most / (whole.samples.numel() / count)


def test_memory_of_pixels_does_not_grow_with_the_number_of_images(make_set, pixel_space, monkeypatch):
    values_of_an_image = 4 * 3 * 16 * 16
    monkeypatch.setattr(module, "_READ_VALUES", 4 * values_of_an_image)
    monkeypatch.setattr(evaluation_module, "_FEATURE_BATCH", 16)
    for blocks in (calibration, evaluation_module, posterior):
        monkeypatch.setattr(blocks, "_BLOCK_VALUES", 8 * values_of_an_image)
    few, many = peak(make_set, pixel_space, 40), peak(make_set, pixel_space, 160)
    assert few == many
    # A block of eight images that waits to be full, and the four that are being read.
    assert many[1] <= 16


def test_one_that_fails_costs_no_other(make_set):
    evaluation = make_set(6, 2)
    calls = []

    def broken(truth, samples):
        calls.append(len(truth))
        raise UserError("no")

    asked = evaluation.per_image(broken, 2), evaluation.per_image(lambda truth, samples: truth.flatten(1), 2)
    with pytest.raises(UserError, match="no"):
        asked[0].result()
    assert torch.equal(asked[1].result(), evaluation.truth.flatten(1))
    assert calls == [2]


def test_images_that_cannot_be_read_are_no_metrics_failure(make_set):
    class Broken(Stored):
        def __getitem__(self, rows):
            raise UserError("Cannot decode a.png.")

    evaluation = make_set(6, 2)
    with pytest.raises(UserError, match="Cannot decode"):
        compute_metrics(replace(evaluation, truth=Broken(evaluation.truth)), {"psnr": registry.get("psnr")})


def test_a_metric_may_take_its_answers_at_once(make_set):
    """A plugin's plain function: a reading of its own, and the same numbers."""

    @metric(MetricSpec(name="brightness"))
    def brightness(evaluation):
        asked = evaluation.per_image(lambda _, samples: samples.double().mean((1, 2, 3, 4)))
        return [mean_value("brightness", asked.result(), "")]

    whole = make_set(6, 2)
    stored = Stored(whole.samples)
    results = values(compute_metrics(replace(whole, samples=stored), {"psnr": registry.get("psnr"), "brightness": brightness}))
    assert results["brightness"][0] == pytest.approx(float(whole.samples.double().mean()))
    assert stored.read == list(range(6))
