"""ImageNet (ILSVRC 2012) as a folder of class folders."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

from vfmbench.errors import UserError
from vfmbench.tasks.datasets.files import PathOptions
from vfmbench.tasks.datasets.folders import FolderDataset, class_folders, folder_split, with_classes

SIZE = 256


class ImageNetOptions(PathOptions):
    """`--suite imagenet256`."""


@cache
def classes() -> list[str]:
    """WordNet ids of the 1000 classes, sorted: the numbering that published class-conditional networks use."""
    return files(__package__).joinpath("imagenet_classes.txt").read_text().split()


def imagenet(options: ImageNetOptions, split: str) -> FolderDataset:
    """ImageNet at 256x256 pixels; splits as `folder_split` makes them, so that the test images come from `val` if it is there.

    A label is the place of the image's folder among all 1000 WordNet ids, also where the data holds only some of them.

    Raises:
        MissingError: no `data.path`.
        UserError: not a folder, no images in it, or images outside folders named by their WordNet id.
    """
    path = options.folder("give ImageNet's (class folders, or train and val with class folders) with --set data.path=DIR.")
    known = set(classes())
    strange = [name for name in class_folders(path) if name not in known]
    if strange:
        raise UserError(
            f"data.path: {strange[0]!r} in {path} is not an ImageNet class; its folders are named by WordNet id, as n01440764 "
            "(other images: --suite folder)."
        )
    return with_classes(folder_split(path, options, SIZE, split, classes()), path)
