"""Kinds of data that a suite's file may name."""

from __future__ import annotations

from vfmbench.interfaces import DataSource
from vfmbench.options import Options
from vfmbench.tasks.datasets.arrays import digits
from vfmbench.tasks.datasets.cifar10 import Cifar10Options, cifar10
from vfmbench.tasks.datasets.folders import FolderOptions, folder
from vfmbench.tasks.datasets.imagenet import ImageNetOptions, imagenet
from vfmbench.tasks.datasets.patches import PatchOptions, photos64


class DigitsOptions(Options):
    """The digits ship with scikit-learn: nothing to choose."""


DIGITS = DataSource(DigitsOptions, lambda _, split: digits(split))
FOLDER = DataSource(FolderOptions, folder, lambda options: (3, options.size, options.size))
CIFAR10 = DataSource(Cifar10Options, cifar10)
IMAGENET = DataSource(ImageNetOptions, imagenet)
PHOTOGRAPHS = DataSource(PatchOptions, photos64)
