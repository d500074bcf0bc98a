"""Data sets as fixed, hashed splits of uint8 images."""

from vfmbench.tasks.datasets.arrays import ArrayDataset, digits
from vfmbench.tasks.datasets.cifar10 import Cifar10Options, cifar10
from vfmbench.tasks.datasets.folders import FolderDataset, FolderOptions, folder
from vfmbench.tasks.datasets.imagenet import ImageNetOptions, imagenet
from vfmbench.tasks.datasets.patches import PatchDataset, PatchOptions, photos64

__all__ = [
    "ArrayDataset",
    "Cifar10Options",
    "FolderDataset",
    "FolderOptions",
    "ImageNetOptions",
    "PatchDataset",
    "PatchOptions",
    "cifar10",
    "digits",
    "folder",
    "imagenet",
    "photos64",
]
