"""Folders of image files as seeded, hashed splits."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import torch
from pydantic import Field
from torch import Tensor

from vfmbench.errors import UserError
from vfmbench.interfaces import Dataset
from vfmbench.tasks.datasets.decoding import RECIPE, decode
from vfmbench.tasks.datasets.files import PathOptions, folders_in, name_bytes, ordered_images

MAX_TEST = 1024
MAX_VALIDATION = 256


class FolderOptions(PathOptions):
    """`--suite folder`."""

    size: int = Field(256, ge=1, le=4096, description="height and width to which images are resized and cropped")


class FolderDataset(Dataset):
    """One split of image files, decoded when they are asked for.

    Args:
        root: folder that the names in `files` are relative to.
        files: in the split's order.
        classes: first-level folders by number; the label of a file in none of them is `len(classes)`.
        size: side of the square images, in pixels.
        max_errors: number of files that may fail to decode.
        hash_contents: whether `sha256` reads the files. A training split may be too large for that; its hash is over names and
            sizes.
    """

    def __init__(
        self, root: Path, files: Sequence[str], classes: Sequence[str], size: int, max_errors: int, hash_contents: bool
    ):
        self._root, self.files, self.num_classes = root, files, len(classes)
        numbers = {name: number for number, name in enumerate(classes)}
        self.labels = [numbers.get(name.partition("/")[0], len(classes)) for name in files]
        self._size, self._max_errors, self._hash_contents = size, max_errors, hash_contents
        self.errors: dict[int, str] = {}
        self._decoded: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return len(self.files)

    @cached_property
    def sha256(self) -> str:
        """Over the preprocessing, and each file's name, label and contents (or size), in order."""
        digest = hashlib.sha256(f"{RECIPE} {self._size}\n".encode())
        for name, label in zip(self.files, self.labels, strict=True):
            digest.update(f"{label} {self._fingerprint(name)} ".encode() + name_bytes(name) + b"\n")
        return digest.hexdigest()

    def _fingerprint(self, name: str) -> str:
        path = self._root / name
        try:
            if not self._hash_contents:
                return str(path.stat().st_size)
            with path.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except OSError:
            # Such a file is counted among the errors once its image is needed.
            return "unreadable"

    def readable(self, index: Sequence[int]) -> list[int]:
        """The positions whose files decode; the others get an entry in `errors`. What it decoded waits for `load`.

        Raises:
            UserError: more files than the limit have failed so far.
        """
        self._decoded = {}
        for position in index:
            try:
                self._decoded[position] = self._decode(position)
                self.errors.pop(position, None)
            except Exception as error:  # Pillow's readers raise anything from OSError to IndexError on a damaged file
                self.errors[position] = f"{self.files[position]}: {_reason(error)}"
        if len(self.errors) > self._max_errors:
            raise UserError(
                f"{len(self.errors)} images in {self._root} cannot be decoded, more than data.max_errors={self._max_errors} "
                f"allows; the first is {next(iter(self.errors.values()))}."
            )
        return list(self._decoded)

    def load(self, index: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Raises UserError for a file that cannot be decoded; `readable` tells which those are."""
        images = []
        for position in index:
            try:
                images.append(self._decoded[position] if position in self._decoded else self._decode(position))
            except Exception as error:
                raise UserError(f"Cannot decode {self._root / self.files[position]}: {_reason(error)}.") from error
        return torch.stack(images), torch.tensor([self.labels[position] for position in index])

    def _decode(self, position: int) -> Tensor:
        with (self._root / self.files[position]).open("rb") as file:
            return decode(file, self._size)


def folder(options: FolderOptions, split: str) -> FolderDataset:
    """Any folder of images; a class is a first-level folder, numbered in sorted order over the whole data set.

    Images beside class folders form one more class, numbered last; where there are no class folders all labels are 0.

    Raises:
        MissingError: no `data.path`.
        UserError: not a folder, or no images in it, or too few for this split.
    """
    path = options.folder("name one with --set data.path=DIR.")
    return folder_split(path, options, options.size, split, class_folders(path))


def folder_split(path: Path, options: PathOptions, size: int, split: str, classes: Sequence[str]) -> FolderDataset:
    """A split of the images below `path`, in the seeded order; `classes` are the first-level folders by number.

    With the sub-folders `train` and one of `val`, `validation`, `test`: train is the former; test is the first 1024 images of
    the latter but no more than 80 %, and validation the next 256. Otherwise all are carved from the one folder: test likewise,
    validation the next 256 but no more than half of the rest, train what remains. Counts are rounded up.
    """
    train, held_out = split_roots(path)
    root = train if split == "train" else held_out
    names = ordered_images(root, options.seed)
    test = min(MAX_TEST, -(-4 * len(names) // 5))
    rest = len(names) - test
    if train == held_out:
        validation = min(MAX_VALIDATION, -(-rest // 2))
        part = {"test": slice(test), "validation": slice(test, test + validation), "train": slice(test + validation, None)}
    else:
        part = {"test": slice(test), "validation": slice(test, test + MAX_VALIDATION), "train": slice(None)}
    return part_of(root, names, part[split], classes, options, size, split)


def part_of(
    root: Path, names: Sequence[str], part: slice, classes: Sequence[str], options: PathOptions, size: int, split: str
) -> FolderDataset:
    """The split that consists of a part of the images `names` below `root`. Raises UserError if it is empty."""
    if not names[part]:
        raise UserError(f"data.path: the {len(names)} images in {root} are too few for a {split} split.")
    return FolderDataset(root, names[part], classes, size, options.max_errors, hash_contents=split != "train")


def with_classes(dataset: FolderDataset, path: Path) -> FolderDataset:
    """The data set itself. Raises UserError if an image lies outside the class folders, so that its class is unknown."""
    stray = next(
        (name for name, label in zip(dataset.files, dataset.labels, strict=True) if label == dataset.num_classes), None
    )
    if stray is not None:
        raise UserError(f"data.path: {stray} in {path} lies in no class folder, so that its class is unknown.")
    return dataset


def split_roots(path: Path) -> tuple[Path, Path]:
    """The folders of training and held-out images: `path` itself twice unless it holds both."""
    train = path / "train"
    held_out = next((path / name for name in ("val", "validation", "test") if (path / name).is_dir()), None)
    return (train, held_out) if train.is_dir() and held_out else (path, path)


def class_folders(path: Path) -> list[str]:
    """Sorted names of the first-level folders of the training and held-out images; hidden folders do not count."""
    return sorted({name for root in split_roots(path) for name in folders_in(root)})


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
