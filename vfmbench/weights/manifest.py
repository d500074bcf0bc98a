"""The `manifest.json` beside weight files: what each of them is. Reading it needs no torch, and none of the files."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from vfmbench.errors import MissingError

MANIFEST = "manifest.json"


@lru_cache(maxsize=64)
def _parsed(path: Path, modified: int, size: int, number: int) -> Any:
    """The content of a JSON file. A sweep of a thousand runs asks for one manifest thousands of times."""
    return json.loads(path.read_text())


class Manifest:
    """The entries of a directory of weight files. `hint` ends the error for what is missing or damaged: how to get it.

    >>> Manifest(Path("results/training/digits")).entry("flow")["training"]["options"]
    """

    def __init__(self, directory: Path, hint: str = ""):
        self.directory, self.hint = directory, hint

    def entries(self) -> dict[str, dict[str, Any]]:
        """By name of the file's weights. Raises MissingError if there is no manifest, or a damaged one."""
        path = self.directory / MANIFEST
        try:
            found = path.stat()
            manifest = _parsed(path, found.st_mtime_ns, found.st_size, found.st_ino)
        except FileNotFoundError:
            raise MissingError(f"There are no weights in {self.directory}. {self.hint}") from None
        except (OSError, ValueError) as error:
            raise MissingError(f"Cannot read {path}: {error}. {self.hint}") from error
        if not isinstance(manifest, dict):
            raise MissingError(f"{path} is damaged: it is not a mapping. {self.hint}")
        return manifest

    def entry(self, name: str) -> dict[str, Any]:
        """Raises MissingError if the weights are not listed."""
        manifest = self.entries()
        if name not in manifest:
            raise MissingError(
                f"The weights {name!r} are not in {self.directory} (it has: {', '.join(manifest) or 'none'}). {self.hint}"
            )
        entry = manifest[name]
        lacking = [key for key in ("file", "sha256", "architecture") if not isinstance(entry, dict) or key not in entry]
        if lacking:
            raise MissingError(
                f"{self.directory / MANIFEST} is damaged: {name!r} has no {' and no '.join(lacking)}. {self.hint}"
            )
        return entry

    def sha256(self, name: str) -> str:
        return self.entry(name)["sha256"]
