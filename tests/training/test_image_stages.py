"""Stages on latents: a cache of them, images read ahead, TensorBoard's files, the decoder's memory, missing feature spaces."""

import builtins
import io

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from rich.console import Console

from vfmbench.domains import IMAGES
from vfmbench.errors import UserError
from vfmbench.registry import stages, suites
from vfmbench.tasks.datasets import FolderOptions, folder
from vfmbench.training import latents
from vfmbench.training.batches import Loader
from vfmbench.training.latents import LatentCache
from vfmbench.training.processes import Processes
from vfmbench.training.trainer import Trainer

from .tiny import CPU, QUIET, small_codec, stage_of, weights_after


@pytest.fixture
def pictures(tmp_path):
    for number in range(24):
        pixels = np.random.default_rng(number).integers(0, 256, (20, 24, 3), dtype=np.uint8)
        target = tmp_path / "pictures" / f"{number % 3}"
        target.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(target / f"{number}.png")
    return tmp_path / "pictures"


@pytest.mark.parametrize("name", ["flow", "vfm_float32"])
def test_training_on_cached_latents_is_training_on_encoded_ones(tmp_path, monkeypatch, name):
    monkeypatch.setattr(latents, "_IMAGES_IN_FILE", 500)
    expected = weights_after(stage_of(name, tmp_path, small_codec()), tmp_path / "plain" / "run")
    codec = small_codec()
    found = weights_after(stage_of(name, tmp_path, codec, cache_latents=True), tmp_path / "cached" / "run")
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    (cache,) = (tmp_path / "cached").glob("latents-*")
    assert len(list(cache.glob("*.npy"))) == 3
    # Nothing is encoded any more, neither in the steps nor to fill the cache again.
    encoded = codec._meter.counts["encoder_forwards"]
    assert encoded == 1257
    weights_after(stage_of(name, tmp_path, codec, cache_latents=True), tmp_path / "cached" / "again")
    assert codec._meter.counts["encoder_forwards"] == encoded


def test_a_cache_goes_on_where_it_stopped_and_belongs_to_its_codec(tmp_path, monkeypatch):
    monkeypatch.setattr(latents, "_IMAGES_IN_FILE", 100)
    dataset, codec = suites.get("digits")({}).dataset("train"), small_codec()
    cache = LatentCache(tmp_path, dataset, codec, (2, 4, 4), CPU)
    for rank in range(3):
        part = LatentCache(tmp_path, dataset, codec, (2, 4, 4), CPU)
        monkeypatch.setattr(Processes, "wait", lambda self: None)
        part.fill(64, Processes(CPU, rank, 3), QUIET)
    before = codec._meter.counts["encoder_forwards"]
    assert before >= len(dataset)
    sorted(cache.folder.iterdir())[4].unlink()
    cache.fill(64, Processes(CPU), QUIET)
    assert codec._meter.counts["encoder_forwards"] == before + 100
    positions = torch.tensor([1256, 0, 99, 100, 437])
    images, labels = Loader(dataset, IMAGES, CPU).load(positions)
    found, found_labels = cache.load(positions)
    torch.testing.assert_close(found, codec.encode(images).detach())
    assert torch.equal(found_labels, labels)
    other = small_codec()
    torch.nn.init.zeros_(other._encoder.bias)
    assert LatentCache(tmp_path, dataset, other, (2, 4, 4), CPU).folder != cache.folder


def test_pixel_space_has_nothing_to_cache(tmp_path):
    weights_after(stage_of("vfm_float32", tmp_path, cache_latents=True), tmp_path / "out" / "run")
    assert not list((tmp_path / "out").glob("latents-*"))


def test_images_read_ahead_are_the_same_in_the_same_order(pictures):
    dataset = folder(FolderOptions(path=pictures, size=16), "test")
    plain, ahead = Loader(dataset, IMAGES, CPU), Loader(dataset, IMAGES, CPU, threads=3)
    positions = [torch.randint(len(dataset), (7,), generator=torch.Generator().manual_seed(step)) for step in range(3)]
    for here, coming in zip(positions, [*positions[1:], None], strict=True):
        if coming is not None:
            ahead.read_ahead(coming)
        for found, expected in zip(ahead.load(here), plain.load(here), strict=True):
            assert torch.equal(found, expected)
    assert not ahead._ahead


def test_an_image_that_does_not_decode_is_an_error_of_its_step(pictures):
    dataset = folder(FolderOptions(path=pictures, size=16), "test")
    (pictures / dataset.files[2]).write_text("not an image")
    loader = Loader(dataset, IMAGES, CPU, threads=2)
    loader.read_ahead(torch.tensor([0, 1]))
    loader.read_ahead(torch.tensor([2, 1]))
    loader.load(torch.tensor([0, 1]))
    with pytest.raises(UserError, match="Cannot decode"):
        loader.load(torch.tensor([2, 1]))


def test_training_with_threads_draws_the_same_batches(tmp_path):
    expected = weights_after(stage_of("vfm_float32", tmp_path), tmp_path / "one")
    changed = stage_of("vfm_float32", tmp_path, loader_threads=2, accumulate=2)
    torch.testing.assert_close(weights_after(changed, tmp_path / "two"), expected, rtol=1e-3, atol=1e-4)


def test_tensorboard_has_the_rows_of_the_curves(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    stage = stage_of("features", tmp_path, steps=45, tensorboard=True, validate_every=30)
    stage.evaluate = lambda networks, split, rows: {"accuracy": 0.5}
    Trainer(stage, tmp_path / "run", QUIET).run()
    curves = pd.read_csv(tmp_path / "run" / "curves.csv", index_col="step")
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    assert set(events.Tags()["scalars"]) == set(curves.columns) == {"cross_entropy", "validation/accuracy"}
    for name in curves.columns:
        written = {event.step: event.value for event in events.Scalars(name)}
        assert written == pytest.approx(curves[name].dropna().to_dict(), rel=1e-6)


def test_without_tensorboard_a_note_says_so_and_the_training_goes_on(tmp_path, monkeypatch):
    real = builtins.__import__

    def without(name, *arguments):
        if name.startswith(("tensorboard", "torch.utils.tensorboard")):
            raise ImportError(name)
        return real(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", without)
    console = Console(file=io.StringIO(), width=400)
    Trainer(stage_of("features", tmp_path, tensorboard=True), tmp_path / "run", console).run()
    assert "pip install 'vfmbench[tensorboard]'" in console.file.getvalue()
    assert (tmp_path / "run" / "curves.csv").exists()
    assert not (tmp_path / "run" / "tensorboard").exists()


def test_a_checkpointed_decoder_has_the_same_gradient(tmp_path):
    expected = weights_after(stage_of("vfm_float32", tmp_path, small_codec()), tmp_path / "plain")
    codec = small_codec()
    found = weights_after(stage_of("vfm_float32", tmp_path, codec, checkpoint_decoder=True), tmp_path / "checkpointed")
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    # Forward and once more for the gradient, in three steps of 16 rows.
    assert codec._meter.counts["decoder_forwards"] == 2 * 3 * 16


def test_only_the_first_images_are_evaluated_piece_by_piece(tmp_path):
    stage = stage_of("vfm_float32", tmp_path, validate_images=21)
    del stage.evaluate
    pieces = list(stage._pieces("validation", 16))
    assert [len(images) for images, _, _ in pieces] == [16, 5]
    assert torch.cat([index for _, _, index in pieces]).tolist() == list(range(21))
    by_pieces = stage.evaluate(stage.networks, "validation", 16)
    assert by_pieces == pytest.approx(stage.evaluate(stage.networks, "validation", 32), rel=1e-5)


def test_numbers_in_a_feature_space_that_is_not_there_are_left_out_with_the_reason(tmp_path):
    said = io.StringIO()
    stage = stage_of("flow", tmp_path, validate_every=2)
    del stage.evaluate
    Trainer(stage, tmp_path / "run", Console(file=said, width=400)).run()
    assert "no numbers on the validation split: The weights 'features' are not in" in said.getvalue()
    assert (tmp_path / "run" / "checkpoint.pt").exists()


@pytest.mark.parametrize("name", ["flow", "frozen_adapter", "vfm"])
def test_the_papers_options_are_valid(name):
    suite = suites.get("imagenet256")({})
    stage_class = stages.get(name)
    options = stage_class.Options(**suite.training[name])
    stage_class.check(suite, options)
    assert options.batch_size == 256
    assert options.steps in (round(80 * 1281167 / 256), round(100 * 1281167 / 256))
    assert "features" not in stage_class.needed(suite)
