"""Images of two folders, paired by file name: what somebody's own code wrote, and the true images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from vfmbench.errors import UserError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")


@dataclass(frozen=True)
class PairedImages:
    """True images uint8 [N,3,H,W] in order of their names, and the same number of samples of each, uint8 [N,S,3,H,W]."""

    truth: Tensor
    samples: Tensor


def read_pairs(samples: Path, reference: Path) -> PairedImages:
    """Reads both folders, at any depth. An image is named by its path below the folder, without the suffix.

    One sample of the reference's `a/b.png` is `a/b.*` in `samples`; several are all images in the folder `a/b` there, in
    order of their names. Images are turned as their EXIF orientation says and become RGB.

    Raises:
        UserError: not a folder, no images, a name without a partner or with two, different numbers of samples, different sizes,
            an image that cannot be read, is transparent or has more than 8 bits; the message names the first one.
    """
    truths = _by_name(reference)
    drawn: dict[str, list[Path]] = {name: [] for name in truths}
    for name, path in _by_name(samples).items():
        owner = name if name in drawn else str(PurePosixPath(name).parent)
        if owner not in drawn:
            raise UserError(f"{path} has no image of the same name in {reference}.")
        drawn[owner].append(path)
    first = next(iter(drawn))
    for name, paths in drawn.items():
        if not paths:
            raise UserError(f"{truths[name]} has no image of the same name in {samples}.")
        if len(paths) != len(drawn[first]):
            raise UserError(f"{name} has {len(paths)} samples in {samples}, but {first} has {len(drawn[first])}.")
    truth = _read([truths[name] for name in drawn], size_of=truths[first])
    images = _read([path for paths in drawn.values() for path in paths], size_of=truths[first])
    return PairedImages(truth, images.unflatten(0, (len(drawn), -1)))


def _by_name(folder: Path) -> dict[str, Path]:
    """The folder's images by name, sorted; hidden files are left out."""
    if not folder.is_dir():
        raise UserError(f"{folder} is {'not a folder' if folder.exists() else 'not there'}.")
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() not in SUFFIXES or path.name.startswith(".") or not path.is_file():
            continue
        name = path.relative_to(folder).with_suffix("").as_posix()
        if name in found:
            raise UserError(f"{found[name]} and {path} have the same name.")
        found[name] = path
    if not found:
        raise UserError(f"There are no images ({', '.join(SUFFIXES)}) in {folder}.")
    return found


def _read(paths: Sequence[Path], size_of: Path) -> Tensor:
    """Images uint8 [N,3,H,W], all of the size of the one at `size_of`."""
    _, height, width = _decode(size_of).shape
    images = torch.empty((len(paths), 3, height, width), dtype=torch.uint8)
    for row, path in zip(images, paths, strict=True):
        image = _decode(path)
        if image.shape != row.shape:
            raise UserError(
                f"{path} has {image.shape[2]}x{image.shape[1]} pixels, but {size_of} has {width}x{height}; "
                "metrics need images of one size."
            )
        row.copy_(image)
    return images


def _decode(path: Path) -> Tensor:
    """uint8 [3,H,W]."""
    try:
        with Image.open(path) as opened:
            image = ImageOps.exif_transpose(opened)
    except UnidentifiedImageError:
        raise UserError(f"{path} cannot be read: it is not an image in a known format.") from None
    except Exception as error:  # Pillow's readers raise anything from OSError to IndexError on a damaged file
        raise UserError(f"{path} cannot be read: {error}.") from error
    if image.mode.startswith(("I", "F")):
        raise UserError(f"{path} has more than 8 bits in a pixel (Pillow's mode {image.mode}); metrics need 8-bit images.")
    if image.has_transparency_data and image.convert("RGBA").getchannel("A").getextrema() != (255, 255):
        raise UserError(f"{path} has transparent pixels; lay it on a background first.")
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
