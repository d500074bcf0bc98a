"""Reads weights that vfmbench does not ship, from where `vfmbench.weights.external_files` finds them.

Nothing is downloaded: the error for a missing file ends with the command that fetches it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from vfmbench.errors import MissingError, UserError
from vfmbench.weights.external_files import FILES, ExternalFile, ExternalPaths, HashState, hash_state, locate
from vfmbench.weights.reading import read_content

__all__ = ["FILES", "ExternalPaths", "ExternalWeights", "load_external"]


@dataclass(frozen=True)
class ExternalWeights:
    """A file that was found and read: tensors by name, SHA-256 of its bytes."""

    file: ExternalFile
    path: Path
    tensors: Mapping[str, Tensor]
    sha256: str

    @property
    def origin(self) -> str:
        """For a metric's settings: which file this is, and whether it is known to be the published one."""
        published = self.file.is_published(self.sha256)
        if published is None:
            return f"weights {self.path.name}, whose publisher gives no hash to check it by"
        if published:
            return f"weights {self.file.file_name}"
        return f"WARNING: {self.path.name} is NOT the published {self.file.file_name}"

    def fill(self, load: Callable[[dict[str, Tensor]], object]) -> None:
        """`load(tensors)`, as `load_state_dict` does. Raises UserError if they are not the network's."""
        try:
            load(dict(self.tensors))
        except RuntimeError as error:
            problem = str(error).strip().splitlines()[-1].strip()
            shown = problem if len(problem) <= 160 else problem[:160] + "..."
            raise UserError(f"{self.path} has another layout than {self.file.file_name}: {shown}") from None


def load_external(name: str, given: Path | None) -> ExternalWeights:
    """Finds and reads one of `FILES`; pickled objects other than tensors are refused.

    Args:
        given: the path in the option `weights.<name>`, if there is one. A file that the user names may be another than the
            published one, and then says so in `origin`; one from a cache may not.

    Raises:
        MissingError: it is nowhere, or a cache holds a damaged copy; the message ends with the command that fetches it.
        UserError: the file that the user names cannot be read or holds no weights.
    """
    file, path, sha256 = _found(name, given)
    return ExternalWeights(file, path, _tensors(path), sha256)


def external_sha256(name: str, given: Path | None) -> str:
    """Hash of one of `FILES` without reading its tensors; arguments and errors as those of `load_external`."""
    return _found(name, given)[2]


def _found(name: str, given: Path | None) -> tuple[ExternalFile, Path, str]:
    """The file, where it is, and its SHA-256."""
    file = FILES[name]
    located = locate(file, given)
    how = f"`vfmbench weights fetch {name}` does it, or fetch them with: {file.fetch_command}"
    if located is None:
        raise MissingError(
            f"The weights {file.file_name} ({file.megabytes} MB, {file.licence}) are neither in {file.option} nor in "
            f"{file.variable} nor in the caches of torch hub and Hugging Face; {how}"
        )
    state, sha256 = hash_state(file, located)
    if state == HashState.UNREADABLE:
        raise UserError(f"Cannot read the weights {located.path}.")
    if state == HashState.DAMAGED:
        known = " or ".join(prefix[:8] for prefix in file.sha256)
        raise MissingError(
            f"{located.path} is damaged: its SHA-256 begins with {sha256[:8]}, not {known}; delete it and fetch it again: {how}"
        )
    return file, located.path, sha256


def _tensors(path: Path) -> dict[str, Tensor]:
    content = read_content(path)
    if not all(isinstance(value, Tensor) for value in content.values()):
        raise UserError(f"{path} holds other things than a mapping from names to tensors.")
    return dict(content)
