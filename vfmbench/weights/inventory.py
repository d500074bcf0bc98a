"""What weights are on this machine: the external files, and the folders of weights in our own format; all checked by hash."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from vfmbench.errors import MissingError, UserError
from vfmbench.files import file_sha256
from vfmbench.registry import converters
from vfmbench.weights.converters import Convertible
from vfmbench.weights.external_files import (
    FILES,
    ExternalFile,
    ExternalPaths,
    HashState,
    Located,
    hash_state,
    locate,
    user_weights_folder,
)
from vfmbench.weights.manifest import MANIFEST


@dataclass(frozen=True)
class FileStatus:
    """Where an external file is and what its hash says.

    Attributes:
        located: None if it is nowhere.
        state, sha256: None and empty if it is nowhere, or was not hashed.
        problem: why it could not be looked for; empty if it could.
    """

    file: ExternalFile
    located: Located | None = None
    state: HashState | None = None
    sha256: str = ""
    problem: str = ""

    @property
    def broken(self) -> bool:
        """Whether what should be there is not what it should be."""
        return bool(self.problem) or self.state in (HashState.DAMAGED, HashState.UNREADABLE)


@dataclass(frozen=True)
class ConvertibleStatus:
    """Whether a suite has the weights that a published file would become.

    Attributes:
        folder: of the suite's weights.
        present: what the folder holds under that name: empty, "trained" or "converted from FILE".
    """

    convertible: Convertible
    folder: Path
    present: str


def file_status(file: ExternalFile, paths: ExternalPaths, hashed: bool = True) -> FileStatus:
    """Args: hashed: read the file to hash it, at about half a gigabyte a second."""
    try:
        located = locate(file, paths.path_of(file.name))
    except UserError as error:
        return FileStatus(file, problem=str(error))
    if located is None or not hashed:
        return FileStatus(file, located)
    return FileStatus(file, located, *hash_state(file, located))


def file_statuses(paths: ExternalPaths, names: Collection[str] = FILES, hashed: bool = True) -> list[FileStatus]:
    return [file_status(FILES[name], paths, hashed) for name in names]


def convertible_statuses() -> list[ConvertibleStatus]:
    """Of all published files that a registered converter is for."""
    statuses = []
    for convertible in (file for converter in converters.load_all().values() for file in converter.convertibles):
        folder = user_weights_folder(convertible.suite)
        entry = manifest_entries(folder).get(convertible.weights)
        source = entry.get("source", {}).get("file") if entry else None
        present = f"converted from {source}" if source else "trained" if entry else ""
        statuses.append(ConvertibleStatus(convertible, folder, present))
    return statuses


def shipped_folders() -> list[Path]:
    """Folders of the weights that come with vfmbench, one for each embedded suite."""
    return _with_manifest(Path(str(files("vfmbench.assets"))))


def user_folders() -> list[Path]:
    """Folders of the user's own weights, one for each suite."""
    return _with_manifest(user_weights_folder("suite").parent)


def damage(folder: Path) -> Iterator[tuple[str, str]]:
    """Name and problem of each of the weights in a folder; the problem is empty if they are what the manifest says."""
    from vfmbench.weights.store import WeightStore

    store = WeightStore(folder, "Restore the file, or train or convert it again.")
    for name in manifest_entries(folder) or ("manifest",):
        problem = ""
        try:
            entry = store.entry(name)
            path = folder / entry["file"]
            found, expected = file_sha256(path), entry["sha256"]
            if found != expected:
                problem = f"{path} is damaged: SHA-256 is {found[:12]}..., expected {expected[:12]}.... {store.hint}"
        except MissingError as error:
            problem = str(error)
        except OSError as error:
            problem = f"Cannot read {path}: {error.strerror}. {store.hint}"
        yield name, problem


def _with_manifest(parent: Path) -> list[Path]:
    return sorted(path.parent for path in parent.glob(f"*/{MANIFEST}"))


def manifest_entries(folder: Path) -> dict[str, Any]:
    """The entries of a folder's manifest; empty if there is none that can be read."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
    except (OSError, ValueError):
        return {}
    return manifest if isinstance(manifest, dict) else {}
