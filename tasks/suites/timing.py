"""Random images in place of a suite's data, for timing only."""

from __future__ import annotations

import torch

from vfmbench.tasks.datasets.arrays import ArrayDataset

_IMAGES = 256


def random_images(shape: tuple[int, int, int], num_classes: int, split: str) -> ArrayDataset:
    """A split of uniformly random pixels uint8 and labels, the same at every call; all splits are alike."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (_IMAGES, *shape), dtype=torch.uint8, generator=generator)
    return ArrayDataset(images, torch.randint(max(1, num_classes), (_IMAGES,), generator=generator))
