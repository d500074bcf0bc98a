"""photos64: 64x64 patches of photographs at a random place and scale.

Test and validation patches come from the colour photographs that ship inside scikit-image and scikit-learn, or, once a folder
of photographs is named, from those of its photographs that are held out; training patches come from the others.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property, lru_cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from pydantic import Field
from torch import Tensor

from vfmbench.errors import MissingError, UserError
from vfmbench.interfaces import Dataset
from vfmbench.tasks.datasets.arrays import ArrayDataset
from vfmbench.tasks.datasets.decoding import to_rgb_image
from vfmbench.tasks.datasets.files import PathOptions, name_bytes, ordered_images

SIZE = 64
LARGEST_FACTOR = 4.0
NUM_PATCHES = {"test": 1024, "validation": 256}
PATCHES_PER_PHOTOGRAPH = 256
"""Of a training photograph; different crops, so that a training hardly ever meets one twice."""

_LARGEST_SIDE = 512
"""Training photographs are reduced until their shorter side is below twice this: else factor 4 would see texture only."""

_FLAT = 12.0
"""Standard deviation within channels, of 255, below which a patch (sky, black border) is drawn again."""

_DRAWS = 8
_KEPT_PHOTOGRAPHS = 2048

# The two motorcycles are a stereo pair of one scene, so that they are one source.
_EMBEDDED = {
    "test": (
        ("astronaut.png",),
        ("china.jpg",),
        ("flower.jpg",),
        ("hubble_deep_field.jpg",),
        ("ihc.png",),
        ("motorcycle_left.png", "motorcycle_right.png"),
        ("retina.jpg",),
    ),
    "validation": (("chelsea.png",), ("coffee.png",), ("rocket.jpg",)),
}


class PatchOptions(PathOptions):
    """`--suite photos64`. `seed` chooses the patches of every split, and which photographs of a folder are held out."""

    held_out: float = Field(
        0.2,
        ge=0,
        le=1,
        exclude=True,
        description="share of the folder's photographs that are never trained on: three quarters of them for test, the others "
        "for validation; 0: train on all and evaluate on the embedded photographs",
    )


def photos64(options: PatchOptions, split: str) -> ArrayDataset | PatchDataset:
    """Test: 1024 patches of several photographs in turn; validation: 256 of others; train: 256 of each of the rest.

    Without `data.path`, or with `data.held_out` 0, test is from seven embedded sources and validation from three others.

    Raises:
        MissingError: training without `data.path`, or an embedded photograph that is not where its package has it.
        UserError: no folder, too few usable photographs in it, or more unusable ones than `data.max_errors`.
    """
    if split == "train":
        return PatchDataset(options)
    if options.path is None or options.held_out == 0:
        sources = [[_embedded(name) for name in group] for group in _EMBEDDED[split]]
    else:
        root, splits = _folder_splits(options)
        sources = [[(name, _read(root / name))] for name in splits[split][: NUM_PATCHES[split]]]
    images, names = [], []
    for number in range(NUM_PATCHES[split]):
        group = sources[number % len(sources)]
        name, photograph = group[number // len(sources) % len(group)]
        images.append(_crop(photograph, f"{options.seed}/{split}/{name}/{number}", flip=False))
        names.append(f"{name}#{number}")
    return ArrayDataset(torch.stack(images), torch.zeros(len(images), dtype=torch.int64), names)


class PatchDataset(Dataset):
    """Training patches: 256 seeded crops of every photograph that is trained on, cut when they are asked for, half of them
    mirrored.

    Files that are not images or smaller than a patch are left out.

    Attributes:
        num_photographs: number of photographs that are trained on.
    """

    def __init__(self, options: PatchOptions):
        self._root, splits = _folder_splits(options)
        self._names, self._seed = splits["train"], options.seed
        if not self._names:
            raise UserError(f"data.held_out: {options.held_out:g} leaves no photograph of {self._root} to train on.")
        self.num_photographs = len(self._names)
        self._photograph = lru_cache(_KEPT_PHOTOGRAPHS)(lambda number: _read(self._root / self._names[number]))

    def __len__(self) -> int:
        return self.num_photographs * PATCHES_PER_PHOTOGRAPH

    @cached_property
    def sha256(self) -> str:
        digest = hashlib.sha256(f"photos64 {self._seed} {PATCHES_PER_PHOTOGRAPH} {LARGEST_FACTOR} {_FLAT}\n".encode())
        for name in self._names:
            digest.update(f"{(self._root / name).stat().st_size} ".encode() + name_bytes(name) + b"\n")
        return digest.hexdigest()

    def photograph(self, index: Tensor) -> Tensor:
        """Number of the photograph that each patch is from, 0 to num_photographs - 1; int64 [B] -> int64 [B]."""
        return index // PATCHES_PER_PHOTOGRAPH

    def load(self, index: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Raises UserError for a photograph that cannot be decoded."""
        patches = []
        for position in index:
            number, patch = divmod(int(position), PATCHES_PER_PHOTOGRAPH)
            key = f"{self._seed}/train/{self._names[number]}/{patch}"
            patches.append(_crop(self._photograph(number), key, flip=True))
        return torch.stack(patches), torch.zeros(len(patches), dtype=torch.int64)


def _folder_splits(options: PatchOptions) -> tuple[Path, dict[str, list[str]]]:
    """The folder, and its usable photographs by split: in the seeded order test, validation, train."""
    root = options.folder("training on photos64 needs photographs: --set data.path=DIR names a folder of them.")
    usable, errors = [], []
    for name in ordered_images(root, options.seed):
        reason = _unusable(root / name)
        if reason:
            errors.append(f"{name}: {reason}")
        else:
            usable.append(name)
    if not usable:
        raise UserError(f"data.path: none of the {len(errors)} images in {root} can be used; the first is {errors[0]}.")
    if len(errors) > options.max_errors:
        raise UserError(
            f"data.path: {len(errors)} images in {root} cannot be used, more than data.max_errors={options.max_errors} "
            f"allows; the first is {errors[0]}."
        )
    held_out = round(options.held_out * len(usable))
    if options.held_out and held_out < 2:
        raise UserError(
            f"data.held_out: {options.held_out:g} of the {len(usable)} photographs in {root} are too few, one is needed for "
            "test and one for validation; with 0, all are trained on and the embedded photographs evaluated on."
        )
    test = held_out - -(-held_out // 4)
    return root, {"test": usable[:test], "validation": usable[test:held_out], "train": usable[held_out:]}


def _read(path: Path) -> Image.Image:
    """A photograph of the folder, large ones reduced."""
    try:
        with Image.open(path) as opened:
            image = to_rgb_image(opened)
    except Exception as error:  # Pillow's readers raise anything from OSError to IndexError on a damaged file
        raise UserError(f"data.path: cannot decode {path}: {error}.") from error
    return image.reduce(max(1, min(image.size) // _LARGEST_SIDE))


def _unusable(path: Path) -> str | None:
    """Why no patch can be cut from a file, as far as its header tells."""
    try:
        with Image.open(path) as image:
            width, height = image.size
    except Exception as error:
        return "not an image in a known format" if isinstance(error, OSError) else str(error)
    return f"{width}x{height} pixels, at least {SIZE}x{SIZE} are needed" if min(width, height) < SIZE else None


def _embedded(name: str) -> tuple[str, Image.Image]:
    """A photograph that ships with scikit-image or scikit-learn, read without importing either."""
    for package, folder in (("skimage", "data"), ("sklearn", "datasets/images")):
        spec = find_spec(package)
        path = Path(spec.origin).parent / folder / name if spec and spec.origin else None
        if path and path.is_file():
            with Image.open(path) as opened:
                return name, opened.convert("RGB")
    raise MissingError(
        f"The photograph {name} is in neither scikit-image nor scikit-learn here; reinstall them: "
        "pip install --force-reinstall scikit-image scikit-learn."
    )


def _crop(photograph: Image.Image, key: str, flip: bool) -> Tensor:
    """A square of 64 to 256 pixels, uniform in place and in scale, averaged down to uint8 [3,64,64]; flat ones are redrawn."""
    largest = min(LARGEST_FACTOR, min(photograph.size) / SIZE)
    for draw in range(_DRAWS):
        scale, left, top, mirror = _uniform(f"{key}/{draw}")
        side = round(SIZE * (1 + scale * (largest - 1)))
        x, y = round(left * (photograph.width - side)), round(top * (photograph.height - side))
        patch = np.asarray(photograph.resize((SIZE, SIZE), Image.Resampling.BOX, (x, y, x + side, y + side)))
        if patch.std((0, 1)).mean() >= _FLAT:
            break
    if flip and mirror < 0.5:
        patch = patch[:, ::-1]
    return torch.from_numpy(patch.transpose(2, 0, 1).copy())


def _uniform(key: str) -> list[float]:
    """Four numbers in [0, 1) from a hash, which no library's next version will change."""
    words = np.frombuffer(hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest(), dtype="<u8")
    return [float(word >> np.uint64(11)) * 2.0**-53 for word in words]
