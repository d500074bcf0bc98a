"""Splits that are held in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from vfmbench.interfaces import Dataset


class ArrayDataset(Dataset):
    """A split held in memory. Args: images uint8 [N,C,H,W], labels int64 [N], files: a name for each image, or none at all."""

    def __init__(self, images: Tensor, labels: Tensor, files: Sequence[str] = ()):
        self._images, self._labels = images, labels
        self.files = files

    def __len__(self) -> int:
        return len(self._images)

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self._images.numpy().tobytes() + self._labels.numpy().tobytes()).hexdigest()

    def load(self, index: Sequence[int]) -> tuple[Tensor, Tensor]:
        rows = torch.as_tensor(index, dtype=torch.int64)
        return self._images[rows], self._labels[rows]


def digits(split: str) -> ArrayDataset:
    """scikit-learn's 1797 handwritten 8x8 digits: 1257 train, 180 validation, 360 test, by a fixed permutation.

    Source: the test part of UCI's "Optical recognition of handwritten digits"; intensities 0..16 become 0..255. The same 13
    writers occur in every split.
    """
    from sklearn.datasets import load_digits

    data = load_digits()
    # RandomState's stream is frozen by NumPy, so the split never moves.
    order = np.random.RandomState(0).permutation(len(data.images))
    rows = {"test": order[:360], "validation": order[360:540], "train": order[540:]}[split]
    images = torch.from_numpy(np.rint(data.images[rows] * (255 / 16)).astype(np.uint8))
    return ArrayDataset(images[:, None], torch.from_numpy(data.target[rows].astype(np.int64)))
