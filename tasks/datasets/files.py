"""Image files below a folder of the user's: where they are, and in which order."""

from __future__ import annotations

import hashlib
import os
import unicodedata
from collections.abc import Iterable
from pathlib import Path

from pydantic import Field

from vfmbench.errors import MissingError, UserError
from vfmbench.options import Options

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")


class PathOptions(Options):
    """Data that lies in a folder of the user's. Where it lies is no part of a run's identity: the split's hash is."""

    path: Path | None = Field(None, exclude=True, description="the folder")
    seed: int = Field(0, ge=0, description="of the order of the images, and so of the choice of the splits")
    max_errors: int = Field(10, ge=0, exclude=True, description="images that may fail to decode before a run gives up")

    def folder(self, what: str) -> Path:
        """The folder. Raises MissingError, which ends with `what` to do, if none is given; UserError if it is not a folder."""
        if self.path is None:
            raise MissingError(f"There is no folder to read images from; {what}")
        folder = self.path.expanduser()
        if not folder.is_dir():
            raise UserError(f"data.path: {folder} is {'not a folder' if folder.exists() else 'not there'}.")
        return folder


def ordered_images(root: Path, seed: int) -> list[str]:
    """Images below `root`, at any depth, as names relative to it in the seeded order, which depends on the names only.

    Hidden files and folders are left out; links are followed, each folder once.

    Raises:
        UserError: no images, or a folder that cannot be listed.
    """
    names: list[str] = []
    seen: set[tuple[int, int]] = set()
    for folder, folders, files in os.walk(root, followlinks=True, onerror=_refuse):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        below = Path(folder).relative_to(root)
        names += [(below / name).as_posix() for name in files if name.lower().endswith(SUFFIXES) and not name.startswith(".")]
    if not names:
        raise UserError(f"data.path: there are no images ({', '.join(SUFFIXES)}) in {root}.")
    return seeded_order(names, seed)


def folders_in(root: Path) -> list[str]:
    """Names of the folders directly below `root`, hidden ones left out. Raises UserError if it cannot be listed."""
    _, folders, _ = next(os.walk(root, onerror=_refuse))
    return [name for name in folders if not name.startswith(".")]


def seeded_order(names: Iterable[str], seed: int) -> list[str]:
    """The names in the order of SHA-256("<seed>/<name>")."""
    return sorted(names, key=lambda name: (hashlib.sha256(f"{seed}/".encode() + name_bytes(name)).digest(), name))


def name_bytes(name: str) -> bytes:
    """What is hashed for a name. Some file systems store accents decomposed; composed, a name is the same everywhere."""
    return unicodedata.normalize("NFC", name).encode("utf-8", "surrogateescape")


def _refuse(error: OSError) -> None:
    raise UserError(f"data.path: cannot list {error.filename}: {error.strerror}.") from error
