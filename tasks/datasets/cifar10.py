"""CIFAR-10 in the forms that it is handed around in."""

from __future__ import annotations

import io
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import torch
from pyarrow import parquet
from torch import Tensor

from vfmbench.errors import UserError
from vfmbench.interfaces import Dataset
from vfmbench.tasks.datasets.arrays import ArrayDataset
from vfmbench.tasks.datasets.decoding import decode
from vfmbench.tasks.datasets.files import PathOptions, folders_in, ordered_images, seeded_order
from vfmbench.tasks.datasets.folders import MAX_TEST, MAX_VALIDATION, FolderDataset, part_of, with_classes

SIZE = 32
CLASSES = 10

_PYTHON_FILES = {"train": [f"data_batch_{number}" for number in range(1, 6)], "test": ["test_batch"]}
_GET_IT = (
    "fetch CIFAR-10 with python -c \"from torchvision.datasets import CIFAR10; CIFAR10('data', download=True)\" "
    "and add --set data.path=data."
)


class Cifar10Options(PathOptions):
    """`--suite cifar10`."""


def cifar10(options: Cifar10Options, split: str) -> Dataset:
    """CIFAR-10 (Krizhevsky 2009), 32x32 pixels, ten classes.

    `data.path` holds torchvision's `cifar-10-batches-py` (or is it), parquet files whose names begin with train and test, or
    the folders `train` and `test` with ten class folders each. Test is the first 1024 images of the official test set in a
    seeded order, validation the first 256 of the official training set, train its rest: the two sets are never mixed. The
    order is over positions (or file names), so that each form has its own choice of images; their hash tells them apart.

    Raises:
        MissingError: no `data.path`; the message says how to fetch the data.
        UserError: none of these forms, or a damaged file.
    """
    path = options.folder(_GET_IT)
    part = "test" if split == "test" else "train"
    python_folder = path if (path / "test_batch").is_file() else path / "cifar-10-batches-py"
    parquet_files = sorted(path.glob(f"{part}*.parquet")) or sorted(path.glob(f"plain_text/{part}*.parquet"))
    if python_folder.is_dir():
        return _from_python([python_folder / name for name in _PYTHON_FILES[part]], part, split, options.seed)
    if parquet_files:
        return _from_parquet(parquet_files, part, split, options.seed)
    if (path / "train").is_dir() and (path / "test").is_dir():
        return _from_folders(path, part, split, options)
    raise UserError(
        f"data.path: {path} holds none of cifar-10-batches-py, {part}*.parquet, or the folders train and test "
        "(other images: --suite folder --set data.size=32)."
    )


def _choose(count: int, split: str) -> slice:
    """Which of the `count` images of an official set, in the seeded order, form the split."""
    validation = min(MAX_VALIDATION, count // 2)
    return {"test": slice(MAX_TEST), "validation": slice(validation), "train": slice(validation, None)}[split]


def _rows(count: int, part: str, split: str, seed: int) -> tuple[list[int], list[str]]:
    """The split's positions in the official set, and a name for each."""
    order = seeded_order([f"{part}/{row:05d}" for row in range(count)], seed)[_choose(count, split)]
    if not order:
        raise UserError(f"data.path: the {count} images of CIFAR-10's {part} set are too few for a {split} split.")
    return [int(name.removeprefix(f"{part}/")) for name in order], order


def _from_python(paths: Sequence[Path], part: str, split: str, seed: int) -> ArrayDataset:
    """The "python version" of the data's own site: pickled dictionaries with b"data", uint8 [N,3072], and b"labels"."""
    batches = [_read_batch(path) for path in paths]
    images = torch.cat([images for images, _ in batches])
    labels = torch.cat([labels for _, labels in batches])
    rows, names = _rows(len(images), part, split, seed)
    return ArrayDataset(images[rows], labels[rows], names)


def _read_batch(path: Path) -> tuple[Tensor, Tensor]:
    try:
        with path.open("rb") as file:
            batch = _ArrayUnpickler(file, encoding="bytes").load()
        images = torch.from_numpy(np.asarray(batch[b"data"], np.uint8).reshape(-1, 3, SIZE, SIZE))
        labels = torch.tensor(batch[b"labels"], dtype=torch.int64)
    except FileNotFoundError:
        raise UserError(f"data.path: there is no {path}.") from None
    except Exception as error:  # a damaged pickle raises anything
        raise UserError(f"data.path: {path} is not a batch of CIFAR-10 ({type(error).__name__}: {error}).") from error
    return images, labels


class _ArrayUnpickler(pickle.Unpickler):
    """Reads NumPy arrays and plain values only: a data file must not be able to run code."""

    _ALLOWED: ClassVar[dict[tuple[str, str], Any]] = {
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        # Of this NumPy, whatever the module was called in the one that wrote the file.
        ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
        ("numpy._core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return self._ALLOWED[module, name]


def _from_parquet(paths: Sequence[Path], part: str, split: str, seed: int) -> ArrayDataset:
    """The Hugging Face hub's form: `label`, and `image` or `img` as encoded bytes, bare or in a struct's field `bytes`."""
    try:
        table = pa.concat_tables([parquet.read_table(path) for path in paths])
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"data.path: cannot read {paths[0].name} as parquet: {error}.") from error
    image = next((name for name in ("image", "img") if name in table.column_names), None)
    if image is None or "label" not in table.column_names:
        raise UserError(
            f"data.path: {paths[0]} needs the columns label and image (or img), it has {', '.join(table.column_names)}."
        )
    rows, names = _rows(len(table), part, split, seed)
    table = table.take(rows)
    images = [_decode_cell(cell, name) for cell, name in zip(table[image].to_pylist(), names, strict=True)]
    return ArrayDataset(torch.stack(images), torch.tensor(table["label"].to_pylist(), dtype=torch.int64), names)


def _decode_cell(cell: Any, name: str) -> Tensor:
    try:
        return decode(io.BytesIO(cell["bytes"] if isinstance(cell, dict) else cell), SIZE)
    except Exception as error:  # Pillow's readers raise anything
        raise UserError(f"data.path: image {name} of the parquet file cannot be decoded: {error}.") from error


def _from_folders(path: Path, part: str, split: str, options: PathOptions) -> FolderDataset:
    classes = sorted({*folders_in(path / "train"), *folders_in(path / "test")})
    if len(classes) != CLASSES:
        raise UserError(f"data.path: CIFAR-10 has {CLASSES} classes, but train and test in {path} hold {len(classes)} folders.")
    names = ordered_images(path / part, options.seed)
    dataset = part_of(path / part, names, _choose(len(names), split), classes, options, SIZE, split)
    return with_classes(dataset, path)
