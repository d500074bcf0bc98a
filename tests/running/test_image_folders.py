"""Folders of images paired by name: what is accepted, and one sentence for what is not."""

import numpy as np
import pytest
import torch
from PIL import Image

from vfmbench.errors import UserError
from vfmbench.running.image_folders import read_pairs

SIZE = (12, 10)


def save(path, seed, mode="RGB", size=SIZE, **options):
    """Writes random pixels, and returns them as uint8 [3,H,W]."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels).convert(mode)
    image.save(path, **options)
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


@pytest.fixture
def folders(tmp_path):
    """`ours`, `truth`: three images each, in other formats and one of them in a folder."""
    ours, truth = tmp_path / "ours", tmp_path / "truth"
    for seed, name in enumerate(("b", "a", "c/a")):
        save(ours / f"{name}.png", seed)
        save(truth / f"{name}.bmp", 10 + seed)
    return ours, truth


def test_images_are_paired_by_name_whatever_their_format(folders):
    pairs = read_pairs(*folders)
    assert pairs.truth.dtype == pairs.samples.dtype == torch.uint8
    for row, seed in enumerate((1, 0, 2)):
        assert torch.equal(pairs.samples[row, 0], save(folders[0] / "scratch.png", seed))
        assert torch.equal(pairs.truth[row], save(folders[0] / "scratch.png", 10 + seed))
    assert pairs.samples.shape == (3, 1, 3, 10, 12)


def test_several_samples_lie_in_a_folder_of_the_images_name(tmp_path):
    drawn = {}
    for name in ("x", "y"):
        save(tmp_path / "truth" / f"{name}.png", ord(name))
        drawn[name] = [save(tmp_path / "ours" / name / f"{k}.png", ord(name) + k) for k in (1, 2, 3)]
    pairs = read_pairs(tmp_path / "ours", tmp_path / "truth")
    assert torch.equal(pairs.samples, torch.stack([torch.stack(drawn[name]) for name in ("x", "y")]))
    (tmp_path / "ours" / "y" / "3.png").unlink()
    with pytest.raises(UserError, match=r"^y has 2 samples in .*ours, but x has 3\.$"):
        read_pairs(tmp_path / "ours", tmp_path / "truth")


def test_what_is_no_image_or_hidden_is_left_out(folders):
    ours, truth = folders
    (ours / "notes.txt").write_text("")
    (truth / ".hidden.png").write_text("")
    assert len(read_pairs(ours, truth).truth) == 3


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "1"])
def test_grey_palette_and_opaque_images_become_rgb(folders, mode):
    ours, truth = folders
    expected = save(ours / "b.png", 5, mode)
    assert torch.equal(read_pairs(ours, truth).samples[1, 0], expected)


def test_photographs_are_turned_as_exif_says(folders):
    ours, truth = folders
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = save(ours / "b.png", 5, size=SIZE[::-1], exif=exif)
    assert torch.equal(read_pairs(ours, truth).samples[1, 0], pixels.rot90(-1, (1, 2)))


BAD = {
    "no partner": (lambda ours, truth: save(ours / "d.png", 0), ["ours/d.png has no image of the same name in"]),
    "fewer": (lambda ours, truth: (ours / "c" / "a.png").unlink(), ["truth/c/a.bmp has no image of the same name in"]),
    "two of a name": (lambda ours, truth: save(ours / "b.jpg", 0), ["ours/b.jpg and", "ours/b.png have the same name"]),
    "sizes differ": (
        lambda ours, truth: save(ours / "b.png", 0, size=(9, 10)),
        ["ours/b.png has 9x10 pixels", "truth/a.bmp has 12x10"],
    ),
    "reference sizes differ": (
        lambda ours, truth: save(truth / "c" / "a.bmp", 0, size=(9, 10)),
        ["truth/c/a.bmp has 9x10 pixels", "truth/a.bmp has 12x10"],
    ),
    "text": (lambda ours, truth: (ours / "b.png").write_text("text"), ["ours/b.png cannot be read: it is not an image"]),
    "cut": (
        lambda ours, truth: (ours / "b.png").write_bytes((ours / "b.png").read_bytes()[:200]),
        ["ours/b.png cannot be read: "],
    ),
    "16 bit": (
        lambda ours, truth: Image.fromarray(np.zeros((10, 12), np.uint16)).save(ours / "b.png"),
        ["ours/b.png has more than 8 bits"],
    ),
    "transparent": (
        lambda ours, truth: Image.new("RGBA", SIZE, (9, 9, 9, 254)).save(ours / "b.png"),
        ["ours/b.png has transparent pixels"],
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_folders_name_the_first_offender(folders, case):
    spoil, words = BAD[case]
    spoil(*folders)
    with pytest.raises(UserError) as error:
        read_pairs(*folders)
    for word in words:
        assert word in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_no_folder_and_no_images(tmp_path, folders):
    with pytest.raises(UserError, match="nowhere is not there"):
        read_pairs(tmp_path / "nowhere", folders[1])
    with pytest.raises(UserError, match="is not a folder"):
        read_pairs(folders[0], folders[1] / "a.bmp")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="There are no images"):
        read_pairs(folders[0], tmp_path / "empty")
