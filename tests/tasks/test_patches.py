"""photos64's data: seeded patches, sources that do not overlap, and folders that cannot be trained on."""

import hashlib

import numpy as np
import pytest
import torch
from PIL import Image

from vfmbench.errors import MissingError, UserError
from vfmbench.tasks.datasets import PatchOptions, photos64
from vfmbench.tasks.datasets.patches import NUM_PATCHES, PATCHES_PER_PHOTOGRAPH


def photograph(path, width=300, height=200, seed=0):
    """Coloured noise that is smooth over eight pixels, so that reducing it leaves something."""
    small = np.random.default_rng(seed).integers(0, 256, (-(-height // 8), -(-width // 8), 3), dtype=np.uint8)
    Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC).save(path)


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "photographs"
    (root / "below").mkdir(parents=True)
    photograph(root / "a.png")
    photograph(root / "below" / "b.jpg", seed=1)
    return root


def test_evaluation_patches_need_no_folder_and_their_sources_do_not_overlap():
    test, validation = (photos64(PatchOptions(), split) for split in ("test", "validation"))
    assert (len(test), len(validation)) == (1024, 256)
    images, labels = test.load(range(14))
    assert images.shape == (14, 3, 64, 64)
    assert images.dtype == torch.uint8
    assert labels.tolist() == [0] * 14
    sources = [{name.partition("#")[0] for name in split.files} for split in (test, validation)]
    assert not sources[0] & sources[1]
    assert sources[1] == {"chelsea.png", "coffee.png", "rocket.jpg"}
    # Sources take turns, so that a short run sees all of them; the stereo pair is one source.
    assert len({name.partition("#")[0].removesuffix("_left.png").removesuffix("_right.png") for name in test.files[:7]}) == 7
    again = photos64(PatchOptions(), "test")
    assert again.sha256 == test.sha256
    assert photos64(PatchOptions(seed=1), "test").sha256 != test.sha256


def test_a_patch_is_the_mean_over_squares_of_its_photograph(tmp_path):
    root = tmp_path / "photographs"
    root.mkdir()
    photograph(root / "a.png", 64, 64)
    dataset = photos64(PatchOptions(path=root, held_out=0), "train")
    pixels = np.asarray(Image.open(root / "a.png")).transpose(2, 0, 1)
    images = dataset.load(range(8))[0].numpy()
    mirrored = [bool((image == pixels[:, :, ::-1]).all()) for image in images]
    straight = [bool((image == pixels).all()) for image in images]
    assert all(a != b for a, b in zip(mirrored, straight, strict=True))
    assert any(mirrored)
    assert any(straight)


def test_training_patches_are_seeded_and_know_their_photograph(folder):
    dataset = photos64(PatchOptions(path=folder, held_out=0), "train")
    assert len(dataset) == 2 * PATCHES_PER_PHOTOGRAPH
    assert dataset.num_photographs == 2
    positions = [0, 3, PATCHES_PER_PHOTOGRAPH, 3]
    images, labels = dataset.load(positions)
    assert dataset.photograph(torch.tensor(positions)).tolist() == [0, 0, 1, 0]
    assert torch.equal(images[1], images[3])
    assert not torch.equal(images[0], images[1])
    assert labels.eq(0).all()
    again = photos64(PatchOptions(path=folder, held_out=0), "train")
    assert torch.equal(again.load(positions)[0], images)
    assert again.sha256 == dataset.sha256
    assert photos64(PatchOptions(path=folder, held_out=0, seed=1), "train").sha256 != dataset.sha256


def test_patches_do_not_depend_on_other_photographs(folder):
    before = photos64(PatchOptions(path=folder, held_out=0), "train")
    photograph(folder / "c.png", seed=2)
    after = photos64(PatchOptions(path=folder, held_out=0), "train")
    digests = [
        {hashlib.sha256(image.numpy().tobytes()).hexdigest() for image in split.load(range(len(split)))[0]}
        for split in (before, after)
    ]
    assert digests[0] < digests[1]


@pytest.fixture
def flat(tmp_path, monkeypatch):
    """Twenty photographs of one colour each, so that a patch tells which it is from."""
    monkeypatch.setattr("vfmbench.tasks.datasets.patches._FLAT", 0.0)
    root = tmp_path / "flat"
    root.mkdir()
    for number in range(20):
        Image.new("RGB", (96, 80), (10 * number, 0, 0)).save(root / f"{number}.png")
    return root


def colours(options, split):
    dataset = photos64(options, split)
    return [int(image[0, 0, 0]) for image in dataset.load(range(len(dataset)))[0]]


def test_held_out_photographs_are_never_trained_on(flat):
    found = {split: colours(PatchOptions(path=flat), split) for split in ("test", "validation", "train")}
    sets = {split: set(values) for split, values in found.items()}
    assert [len(values) for values in sets.values()] == [3, 1, 16]
    assert len(set.union(*sets.values())) == 20
    # Photographs take turns, so that a few patches are of different ones.
    assert set(found["test"][:3]) == sets["test"]
    assert {split: len(values) for split, values in found.items()} == {**NUM_PATCHES, "train": 16 * PATCHES_PER_PHOTOGRAPH}


def test_the_choice_of_held_out_photographs_depends_on_names_and_seed_alone(flat):
    before = set(colours(PatchOptions(path=flat), "test"))
    assert set(colours(PatchOptions(path=flat, seed=1), "test")) != before
    assert photos64(PatchOptions(path=flat, seed=1), "test").sha256 != photos64(PatchOptions(path=flat), "test").sha256
    elsewhere = flat.rename(flat.parent / "elsewhere")
    assert set(colours(PatchOptions(path=elsewhere), "test")) == before


def test_a_whole_folder_can_be_evaluated_on_and_then_leaves_nothing_to_train_on(flat):
    options = PatchOptions(path=flat, held_out=1)
    assert len(set(colours(options, "test"))) == 15
    with pytest.raises(UserError, match=r"data\.held_out: 1 leaves no photograph"):
        photos64(options, "train")


def test_nothing_held_out_means_the_embedded_photographs(flat):
    assert photos64(PatchOptions(path=flat, held_out=0), "test").sha256 == photos64(PatchOptions(), "test").sha256
    assert photos64(PatchOptions(path=flat), "test").sha256 != photos64(PatchOptions(), "test").sha256


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_too_few_photographs_to_hold_some_out_are_refused(folder, split):
    with pytest.raises(UserError, match=r"data\.held_out: 0\.2 of the 2 photographs"):
        photos64(PatchOptions(path=folder), split)


def test_no_folder_says_how_to_name_one():
    with pytest.raises(MissingError, match=r"--set data\.path=DIR"):
        photos64(PatchOptions(), "train")


@pytest.mark.parametrize("what", ["absent", "file", "empty"])
def test_a_folder_without_images_is_named(tmp_path, what):
    path = tmp_path / what
    if what == "file":
        path.write_text("")
    elif what == "empty":
        path.mkdir()
    with pytest.raises(UserError, match=r"data\.path: .*" + what):
        photos64(PatchOptions(path=path, held_out=0), "train")


def test_unusable_files_are_left_out_up_to_a_limit(folder):
    whole = photos64(PatchOptions(path=folder, held_out=0), "train")
    (folder / "broken.jpg").write_text("not an image")
    photograph(folder / "tiny.png", 80, 40)
    assert photos64(PatchOptions(path=folder, held_out=0), "train").sha256 == whole.sha256
    with pytest.raises(UserError, match=r"2 images in .* cannot be used, more than data\.max_errors=1 allows"):
        photos64(PatchOptions(path=folder, held_out=0, max_errors=1), "train")
    for name in ("a.png", "below/b.jpg"):
        (folder / name).unlink()
    with pytest.raises(UserError, match=r"none of the 2 images in .* can be used"):
        photos64(PatchOptions(path=folder, held_out=0), "train")


def test_a_photograph_damaged_behind_its_header_is_named(folder):
    path = folder / "below" / "b.jpg"
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    dataset = photos64(PatchOptions(path=folder, held_out=0), "train")
    with pytest.raises(UserError, match=r"cannot decode .*b\.jpg"):
        dataset.load(range(len(dataset)))


def test_large_photographs_are_reduced_first(tmp_path):
    small, large = tmp_path / "small", tmp_path / "large"
    for root in (small, large):
        root.mkdir()
    photograph(large / "a.png", 1600, 1200)
    Image.open(large / "a.png").reduce(2).save(small / "a.png")
    images = [photos64(PatchOptions(path=root, held_out=0), "train").load(range(4))[0] for root in (small, large)]
    assert torch.equal(*images)
