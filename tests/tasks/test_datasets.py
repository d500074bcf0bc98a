"""Data sets: what is read from a folder, in which order, into which split, and what becomes of files that do not decode."""

import io
import os
import shutil
import unicodedata

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import functional

from vfmbench.errors import MissingError, UserError
from vfmbench.tasks.datasets import (
    Cifar10Options,
    FolderDataset,
    FolderOptions,
    ImageNetOptions,
    cifar10,
    digits,
    folder,
    imagenet,
)
from vfmbench.tasks.datasets.decoding import centre_crop, decode

SPLITS = ("train", "validation", "test")


def picture(*size: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    channels = len(Image.new(mode, (1, 1)).getbands())
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], channels), dtype=np.uint8)
    return Image.fromarray(pixels.squeeze(), mode) if channels == 1 else Image.fromarray(pixels)


def fill(root, names, size=(20, 16)):
    for number, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(*size, seed=number).save(path)
    return root


def encoded(image: Image.Image, kind: str, **options) -> io.BytesIO:
    file = io.BytesIO()
    image.save(file, kind, **options)
    file.seek(0)
    return file


def small(path, **options) -> FolderOptions:
    return FolderOptions(path=path, size=8, **options)


# Decoding and cropping.


def halve(pixels: np.ndarray, axis: int) -> np.ndarray:
    """Means of neighbouring pairs, rounded up at .5 as Pillow does after each of its two passes."""
    even, odd = (pixels.take(range(start, pixels.shape[axis], 2), axis).astype(int) for start in (0, 1))
    return ((even + odd + 1) // 2).astype(np.uint8)


@pytest.mark.parametrize("size", [(64, 64), (128, 64), (64, 96), (24, 16), (40, 30), (16, 16), (8, 8), (12, 8)])
def test_crop_is_halving_then_the_usual_resize_and_crop(size):
    image = picture(*size)
    pixels = np.array(image)
    while min(pixels.shape[:2]) >= 32:
        pixels = halve(halve(pixels, 1), 0)
    resized = functional.resize(Image.fromarray(pixels), 16, functional.InterpolationMode.BICUBIC)
    expected = np.array(functional.center_crop(resized, [16, 16]))
    assert np.array_equal(np.array(centre_crop(image, 16)), expected)


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (17, 33), (500, 375), (7, 301)])
def test_any_size_becomes_the_wanted_one(size):
    assert decode(encoded(picture(*size), "png"), 16).shape == (3, 16, 16)


def test_an_image_of_the_right_size_is_left_alone():
    image = picture(16, 16)
    decoded = decode(encoded(image, "png"), 16)
    assert decoded.dtype == torch.uint8
    assert np.array_equal(decoded.permute(1, 2, 0).numpy(), np.array(image))


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp", "bmp", "tiff"])
def test_grey_images_get_three_equal_channels(kind):
    flat = Image.new("L", (16, 16), 100)
    assert (decode(encoded(flat, kind), 16).int() - 100).abs().max() <= 1


def test_transparent_pixels_are_white():
    image = Image.new("RGBA", (16, 16), (200, 0, 0, 0))
    image.paste((10, 20, 30, 255), (0, 0, 8, 16))
    decoded = decode(encoded(image, "png"), 16)
    assert decoded[:, 0, 0].tolist() == [10, 20, 30]
    assert decoded[:, 0, 15].tolist() == [255, 255, 255]
    grey = Image.merge("LA", [Image.new("L", (16, 16), 50), Image.new("L", (16, 16), 0)])
    assert (decode(encoded(grey, "png"), 16) == 255).all()


def test_palette_images_take_their_colours_and_their_transparency():
    image = Image.new("P", (16, 16), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    image.paste(0, (8, 0, 16, 16))
    assert decode(encoded(image, "png"), 16)[:, 3, 3].tolist() == [10, 20, 30]
    assert decode(encoded(image, "png", transparency=0), 16)[:, 3, 12].tolist() == [255, 255, 255]


@pytest.mark.parametrize("kind", ["png", "tiff"])
def test_16_bit_images_keep_their_contrast(kind):
    values = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    decoded = decode(encoded(Image.fromarray(values), kind), 16)
    assert np.array_equal(decoded[0].numpy(), np.rint(values / 257).astype(np.uint8))


def test_cmyk_becomes_rgb():
    image = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    assert (decode(encoded(image, "jpeg", quality=95), 16)[:, 8, 8] - torch.tensor([255, 0, 0])).abs().max() <= 6


def test_photographs_are_turned_upright():
    image = Image.new("RGB", (16, 16), "black")
    image.paste("white", (0, 0, 16, 4))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    decoded = decode(encoded(image, "png", exif=exif), 16)
    assert (decoded[:, :, 12:] == 255).all()
    assert (decoded[:, :, :12] == 0).all()


def test_values_without_a_range_are_refused():
    with pytest.raises(ValueError, match="floating-point"):
        decode(encoded(Image.fromarray(np.ones((16, 16), np.float32)), "tiff"), 16)
    with pytest.raises(ValueError, match="32-bit"):
        decode(encoded(Image.fromarray(np.full((16, 16), 70000, np.int32)), "tiff"), 16)


# Which files, in which order, in which split.


def names_of(path, split="test", **options) -> list[str]:
    return list(folder(small(path, **options), split).files)


def test_every_suffix_at_any_depth_is_found(tmp_path):
    names = ["a.png", "b.JPG", "c/d.jpeg", "c/e/f.webp", "c/e/g.bmp", "h.tif", "i.TIFF"]
    fill(tmp_path, names)
    for other in ("notes.txt", ".hidden.png", ".git/x.png", "c/movie.mp4"):
        (tmp_path / other).parent.mkdir(exist_ok=True)
        (tmp_path / other).write_bytes(b"")
    assert sorted(name for split in SPLITS[1:] for name in names_of(tmp_path, split)) == sorted(names)


def test_order_depends_on_seed_and_names_only(tmp_path):
    names = [f"class {number % 3}/{number}.png" for number in range(30)]
    fill(tmp_path / "here", names)
    fill(tmp_path / "there" / "deep", reversed(names))
    order = names_of(tmp_path / "here")
    assert names_of(tmp_path / "there" / "deep") == order
    shutil.move(tmp_path / "here", tmp_path / "elsewhere")
    assert names_of(tmp_path / "elsewhere") == order
    assert order != sorted(order)
    assert names_of(tmp_path / "elsewhere", seed=1) != order
    (tmp_path / "elsewhere" / order[0]).unlink()
    assert [name for name in names_of(tmp_path / "elsewhere") if name in order] == order[1:]


def test_the_order_is_this_one(tmp_path):
    # Published results name images by their place in it.
    fill(tmp_path, [f"{letter}.png" for letter in "abcdefgh"])
    assert "".join(name[0] for name in names_of(tmp_path)) == "cghfbea"


def test_composed_and_decomposed_accents_are_the_same_name(tmp_path):
    names = ["Zoë.png", "café.png", *"abcdefg"]
    names = [name if name.endswith("png") else f"{name}.png" for name in names]
    orders = []
    for form in ("NFC", "NFD"):
        fill(tmp_path / form, [unicodedata.normalize(form, name) for name in names])
        orders.append([unicodedata.normalize("NFC", name) for name in names_of(tmp_path / form)])
    assert orders[0] == orders[1]
    assert folder(small(tmp_path / "NFC"), "test").sha256 == folder(small(tmp_path / "NFD"), "test").sha256


@pytest.mark.parametrize(
    ("count", "sizes"), [(2, (2, 0, 0)), (5, (4, 1, 0)), (10, (8, 1, 1)), (1280, (1024, 128, 128)), (3000, (1024, 256, 1720))]
)
def test_one_folder_is_carved_into_disjoint_splits(tmp_path, count, sizes):
    for number in range(count):
        (tmp_path / f"{number}.png").touch()
    parts = []
    for split, size in zip(("test", "validation", "train"), sizes, strict=True):
        if size:
            parts.append(names_of(tmp_path, split))
            assert len(parts[-1]) == size
        else:
            with pytest.raises(UserError, match=f"{count} images .* too few for a {split} split"):
                names_of(tmp_path, split)
    assert len(set().union(*parts)) == sum(map(len, parts)) == count


@pytest.mark.parametrize("held_out", ["val", "validation", "test"])
def test_folders_train_and_val_are_the_splits(tmp_path, held_out):
    fill(tmp_path, [f"train/{number}.png" for number in range(7)] + [f"{held_out}/{number}.png" for number in range(10)])
    datasets = {split: folder(small(tmp_path), split) for split in SPLITS}
    assert {split: len(dataset) for split, dataset in datasets.items()} == {"train": 7, "validation": 2, "test": 8}
    assert not set(datasets["test"].files) & set(datasets["validation"].files)
    # The same images and hash as when the held-out folder itself is given.
    assert folder(small(tmp_path / held_out), "test").sha256 == datasets["test"].sha256


def test_labels_number_the_first_level_over_the_whole_data_set(tmp_path):
    fill(tmp_path, ["train/dog/1.png", "train/ant/1.png", "val/cat/deep/er/1.png", "val/dog/1.png", "val/dog/2.png"])
    dataset = folder(small(tmp_path), "test")
    found = dict(zip(dataset.files, dataset.load(range(len(dataset)))[1].tolist(), strict=True))
    assert found == {"cat/deep/er/1.png": 1, "dog/1.png": 2, "dog/2.png": 2}
    assert folder(small(tmp_path), "train").load([0, 1])[1].sort().values.tolist() == [0, 2]
    fill(tmp_path / "flat", ["1.png", "2.png"])
    assert folder(small(tmp_path / "flat"), "test").load([0, 1])[1].tolist() == [0, 0]


def test_links_are_followed_and_loops_end(tmp_path):
    fill(tmp_path / "store", [f"{number}.png" for number in range(3)])
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "class").symlink_to(tmp_path / "store")
    (tmp_path / "store" / "up").symlink_to(tmp_path / "data")
    assert sorted(names_of(tmp_path / "data")) == ["class/0.png", "class/1.png", "class/2.png"]


# Hashes.


def test_hash_sees_contents_names_and_size(tmp_path):
    fill(tmp_path / "a", [f"{number}.png" for number in range(4)])
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    reference = folder(small(tmp_path / "a"), "test")
    assert folder(small(tmp_path / "b"), "test").sha256 == reference.sha256
    assert folder(FolderOptions(path=tmp_path / "a", size=9), "test").sha256 != reference.sha256
    file = tmp_path / "b" / reference.files[0]
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert folder(small(tmp_path / "b"), "test").sha256 != reference.sha256


def test_only_the_split_is_read_and_a_training_split_not_at_all(tmp_path):
    fill(tmp_path, [f"train/{number}.png" for number in range(4)] + [f"val/{number}.png" for number in range(5)])
    before = {split: folder(small(tmp_path), split).sha256 for split in SPLITS}
    file = next((tmp_path / "train").iterdir())
    file.write_bytes(bytes(len(file.read_bytes())))
    assert {split: folder(small(tmp_path), split).sha256 for split in SPLITS} == before
    file.write_bytes(b"")
    after = {split: folder(small(tmp_path), split).sha256 for split in SPLITS}
    assert [split for split in SPLITS if after[split] != before[split]] == ["train"]


# Files that do not decode.


def test_broken_files_are_named_counted_and_left_out(tmp_path):
    fill(tmp_path, ["good.png", "cut.png", "cut.jpg"], size=(64, 64))
    for name in ("cut.png", "cut.jpg"):
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content[: len(content) // 2])
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    names = sorted(file.name for file in tmp_path.iterdir())
    dataset = FolderDataset(tmp_path, names, classes=[], size=8, max_errors=4, hash_contents=True)
    assert len(dataset.sha256) == 64
    assert dataset.readable(range(len(names))) == [names.index("good.png")]
    words = {"cut.png": "truncated", "cut.jpg": "truncated", "text.png": "known format", "gone.png": "No such file"}
    for name, word in words.items():
        position = names.index(name)
        assert dataset.errors[position].startswith(f"{name}: ")
        assert word in dataset.errors[position]
        assert str(tmp_path) not in dataset.errors[position]
        with pytest.raises(UserError, match=f"{name}: .*{word}"):
            dataset.load([position])


def test_too_many_broken_files_are_an_error(tmp_path):
    fill(tmp_path, [f"{number}.png" for number in range(30)])
    for number in range(12):
        (tmp_path / f"text{number}.png").write_text("not an image")
    order = names_of(tmp_path)
    bad = [name for name in order if name.startswith("text")]
    dataset = folder(small(tmp_path, max_errors=len(bad)), "test")
    assert len(dataset.readable(range(len(dataset)))) == len(order) - len(bad)
    dataset = folder(small(tmp_path, max_errors=3), "test")
    up_to_the_fourth = order.index(bad[3])
    dataset.readable(range(up_to_the_fourth))
    with pytest.raises(UserError, match=rf"4 images .*max_errors=3.* {bad[0]}"):
        dataset.readable([up_to_the_fourth])
    assert FolderOptions().max_errors == 10


def test_an_image_is_decoded_once_a_batch_and_tried_again_later(tmp_path, monkeypatch):
    dataset = folder(small(fill(tmp_path, [f"{number}.png" for number in range(5)])), "test")
    decoded = []
    real = dataset._decode

    def counting(position):
        decoded.append(position)
        if position == 2 and decoded.count(2) == 1:
            raise OSError(5, "Input/output error")
        return real(position)

    monkeypatch.setattr(dataset, "_decode", counting)
    assert dataset.readable([3, 2, 0]) == [3, 0]
    assert dataset.errors == {2: f"{dataset.files[2]}: Input/output error"}
    images, labels = dataset.load([3, 0])
    assert decoded == [3, 2, 0]
    assert images.dtype == torch.uint8
    assert labels.dtype == torch.int64
    assert dataset.readable([2]) == [2]
    assert dataset.errors == {}
    assert torch.equal(dataset.load([0])[0][0], images[1])


def test_data_in_memory_is_always_readable():
    dataset = digits("validation")
    assert dataset.readable([3, 1]) == [3, 1]
    assert dataset.errors == {}
    assert list(dataset.files) == []


@pytest.mark.parametrize("loader", [(folder, FolderOptions), (cifar10, Cifar10Options), (imagenet, ImageNetOptions)])
def test_a_path_that_is_wrong_is_one_clear_sentence(tmp_path, loader):
    load, options = loader
    with pytest.raises(MissingError, match=r"--set data\.path="):
        load(options(), "test")
    with pytest.raises(UserError, match="not there"):
        load(options(path=tmp_path / "nowhere"), "test")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="not a folder"):
        load(options(path=tmp_path / "file"), "test")
    (tmp_path / "empty" / "also empty").mkdir(parents=True)
    with pytest.raises(UserError, match=r"no images|holds none of|not an ImageNet class"):
        load(options(path=tmp_path / "empty"), "test")


@pytest.mark.skipif(os.getuid() == 0, reason="root may read everything")
def test_a_folder_that_cannot_be_listed(tmp_path):
    fill(tmp_path, ["a/1.png", "b/1.png"])
    (tmp_path / "a").chmod(0)
    with pytest.raises(UserError, match="cannot list"):
        names_of(tmp_path)
    (tmp_path / "a").chmod(0o700)


# ImageNet.


def test_imagenet_labels_are_places_among_all_1000_classes(tmp_path):
    fill(tmp_path, ["n15075141/a.JPEG", "n01440764/b.JPEG", "n03777568/c.JPEG"], size=(300, 280))
    dataset = imagenet(ImageNetOptions(path=tmp_path), "test")
    images, labels = dataset.load(range(3))
    assert images.shape == (3, 3, 256, 256)
    # tench, Model T and toilet tissue in every list of ImageNet's classes.
    assert dict(zip(dataset.files, labels.tolist(), strict=True)) == {
        "n15075141/a.JPEG": 999,
        "n01440764/b.JPEG": 0,
        "n03777568/c.JPEG": 661,
    }


def test_imagenet_without_class_folders_is_refused(tmp_path):
    fill(tmp_path, ["ILSVRC2012_val_00000001.JPEG"])
    with pytest.raises(UserError, match="no class folder"):
        imagenet(ImageNetOptions(path=tmp_path), "test")
    fill(tmp_path, ["tench/1.JPEG"])
    with pytest.raises(UserError, match=r"'tench'.*WordNet"):
        imagenet(ImageNetOptions(path=tmp_path), "test")
