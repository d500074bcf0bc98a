"""Weight files in our format: safetensors beside a `manifest.json` that says what each file is, verified by hash on load."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from vfmbench.base import MissingError
from vfmbench.files import replace_file

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Weights:
    """One verified file: tensors by name (float32), its manifest entry, its SHA-256."""

    tensors: dict[str, Tensor]
    entry: dict[str, Any]
    sha256: str

    def part(self, prefix: str) -> dict[str, Tensor]:
        """The state dict of one network in the file, e.g. `part("adapter")`; tensor names begin with their network's."""
        start = prefix + "."
        return {name.removeprefix(start): tensor for name, tensor in self.tensors.items() if name.startswith(start)}


class WeightStore:
    """A directory of weight files. `hint` ends the error for a missing or damaged file: how to get it."""

    def __init__(self, directory: Path, hint: str):
        self.directory, self.hint = directory, hint

    def entry(self, name: str) -> dict[str, Any]:
        """The manifest's entry. Raises MissingError if the file is not listed."""
        manifest = self._manifest()
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

    def load(self, name: str) -> Weights:
        """Raises MissingError if the file is absent, unreadable or not the one that the manifest names."""
        entry = self.entry(name)
        path = self.directory / entry["file"]
        try:
            content = path.read_bytes()
        except OSError as error:
            raise MissingError(f"Cannot read the weights {path}: {error.strerror}. {self.hint}") from error
        found = hashlib.sha256(content).hexdigest()
        if found != entry["sha256"]:
            raise MissingError(
                f"The weights {path} are damaged: SHA-256 is {found[:12]}..., expected {entry['sha256'][:12]}.... {self.hint}"
            )
        try:
            tensors = load(content)
        except SafetensorError as error:
            raise MissingError(f"The weights {path} are not a safetensors file ({error}). {self.hint}") from error
        return Weights({key: value.float() for key, value in tensors.items()}, entry, found)

    def save(self, name: str, tensors: Mapping[str, Tensor], entry: Mapping[str, Any]) -> None:
        """Writes `<name>.safetensors` in half precision and its manifest entry; each file is replaced in one step."""
        self.directory.mkdir(parents=True, exist_ok=True)
        content = save({key: tensor.detach().to("cpu", torch.float16).contiguous() for key, tensor in tensors.items()})
        file = f"{name}.safetensors"
        replace_file(self.directory / file, content)
        manifest = self._manifest() if (self.directory / MANIFEST).exists() else {}
        manifest[name] = {**entry, "file": file, "sha256": hashlib.sha256(content).hexdigest()}
        replace_file(self.directory / MANIFEST, json.dumps(manifest, indent=1).encode())

    def _manifest(self) -> dict[str, dict[str, Any]]:
        path = self.directory / MANIFEST
        try:
            manifest = json.loads(path.read_text())
        except FileNotFoundError:
            raise MissingError(f"There are no weights in {self.directory}. {self.hint}") from None
        except (OSError, ValueError) as error:
            raise MissingError(f"Cannot read {path}: {error}. {self.hint}") from error
        if not isinstance(manifest, dict):
            raise MissingError(f"{path} is damaged: it is not a mapping. {self.hint}")
        return manifest
