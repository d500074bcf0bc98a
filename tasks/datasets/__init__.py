"""Data sets as fixed, hashed splits of uint8 images."""

from vfmbench.tasks.datasets.arrays import ArrayDataset, digits
from vfmbench.tasks.datasets.cifar10 import Cifar10Options, cifar10
from vfmbench.tasks.datasets.folders import FolderDataset, FolderOptions, folder
from vfmbench.tasks.datasets.imagenet import ImageNetOptions, imagenet

__all__ = [
    "ArrayDataset",
    "Cifar10Options",
    "FolderDataset",
    "FolderOptions",
    "ImageNetOptions",
    "cifar10",
    "digits",
    "folder",
    "imagenet",
]
