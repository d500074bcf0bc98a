"""Kinds of data that a suite's file may name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from vfmbench.domains import Shape
from vfmbench.interfaces import Dataset
from vfmbench.options import Options
from vfmbench.tasks.datasets.arrays import digits
from vfmbench.tasks.datasets.cifar10 import Cifar10Options, cifar10
from vfmbench.tasks.datasets.folders import FolderOptions, folder
from vfmbench.tasks.datasets.imagenet import ImageNetOptions, imagenet
from vfmbench.tasks.datasets.patches import PatchOptions, photos64

O = TypeVar("O", bound=Options)  # noqa: E741


@dataclass(frozen=True)
class DataSource(Generic[O]):
    """A kind of data: what may be chosen of it (`--set data.key=value`), and how its splits are loaded.

    >>> class NoiseOptions(Options):
    ...     seed: int = 0
    >>> noise = DataSource(NoiseOptions, lambda options, split: MyNoise(options.seed, split))
    >>> registry.data_sources.register("noise", noise)  # a suite's file then has: data: {source: noise, seed: 3}

    Attributes:
        load: (options, split) -> the split.
        shape: (C, H, W) of images where it depends on the options; None: the suite's file says it.
    """

    Options: type[O]
    load: Callable[[O, str], Dataset]
    shape: Callable[[O], Shape] | None = None


class DigitsOptions(Options):
    """The digits ship with scikit-learn: nothing to choose."""


DIGITS = DataSource(DigitsOptions, lambda _, split: digits(split))
FOLDER = DataSource(FolderOptions, folder, lambda options: (3, options.size, options.size))
CIFAR10 = DataSource(Cifar10Options, cifar10)
IMAGENET = DataSource(ImageNetOptions, imagenet)
PHOTOGRAPHS = DataSource(PatchOptions, photos64)
