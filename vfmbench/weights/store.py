"""Weight files in our format: safetensors beside a `manifest.json` that says what each file is, verified by hash on load."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vfmbench.errors import MissingError
from vfmbench.files import file_sha256, replace_file
from vfmbench.weights.manifest import MANIFEST, Manifest


@dataclass(frozen=True)
class Weights:
    """One verified file: tensors by name (float32), its manifest entry, its SHA-256."""

    tensors: dict[str, Tensor]
    entry: dict[str, Any]
    sha256: str

    def fill(self, network: nn.Module, prefix: str) -> None:
        """Puts one network's tensors into it. Raises MissingError if they are not of its names and sizes."""
        try:
            network.load_state_dict(self.part(prefix))
        except RuntimeError as error:
            first = str(error).splitlines()[1:2]
            reason = first[0].strip() if first else str(error)
            raise MissingError(f"The weights {self.entry['file']} do not fit the network {prefix!r}: {reason}") from error

    def part(self, prefix: str) -> dict[str, Tensor]:
        """The state dict of one network in the file, e.g. `part("adapter")`; tensor names begin with their network's."""
        start = prefix + "."
        return {name.removeprefix(start): tensor for name, tensor in self.tensors.items() if name.startswith(start)}


class WeightStore(Manifest):
    """A directory of weight files, with the entries of its manifest."""

    def load(self, name: str) -> Weights:
        """Raises MissingError if the file is absent, unreadable or not the one that the manifest names.

        Tensors that are stored in float32 stay in the file, mapped into memory, until they are used.
        """
        entry = self.entry(name)
        path = self.directory / entry["file"]
        try:
            found = file_sha256(path)
        except OSError as error:
            raise MissingError(f"Cannot read the weights {path}: {error.strerror}. {self.hint}") from error
        if found != entry["sha256"]:
            raise MissingError(
                f"The weights {path} are damaged: SHA-256 is {found[:12]}..., expected {entry['sha256'][:12]}.... {self.hint}"
            )
        try:
            tensors = load_file(path)
        except SafetensorError as error:
            raise MissingError(f"The weights {path} are not a safetensors file ({error}). {self.hint}") from error
        return Weights({key: value.float() for key, value in tensors.items()}, entry, found)

    def save(
        self,
        name: str,
        tensors: Mapping[str, Tensor],
        entry: Mapping[str, Any],
        dtype: torch.dtype | None = torch.float16,
    ) -> None:
        """Writes `<name>.safetensors` and its manifest entry; each file is replaced in one step.

        Args:
            dtype: that the tensors are stored in; None: each in its own.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        stored = {key: tensor.detach().to("cpu", dtype or tensor.dtype).contiguous() for key, tensor in tensors.items()}
        path = self.directory / f"{name}.safetensors"

        def write(temporary: Path) -> None:
            temporary.touch()
            mode = temporary.stat().st_mode
            save_file(stored, temporary)
            # save_file makes a file that only its owner can read, but folders of weights are shared.
            temporary.chmod(mode)

        replace_file(path, write)
        self._enter(name, {**entry, "file": path.name, "sha256": file_sha256(path)})

    def copy(self, name: str, source: WeightStore) -> None:
        """Takes over a file of another store as it is, with its hash. Raises MissingError if the source has no intact one."""
        entry = source.load(name).entry
        self.directory.mkdir(parents=True, exist_ok=True)
        replace_file(self.directory / entry["file"], lambda path: shutil.copyfile(source.directory / entry["file"], path))
        self._enter(name, entry)

    def _enter(self, name: str, entry: Mapping[str, Any]) -> None:
        manifest = self.entries() if (self.directory / MANIFEST).exists() else {}
        replace_file(self.directory / MANIFEST, json.dumps({**manifest, name: entry}, indent=1).encode())


class NoWeights(WeightStore):
    """The store of a suite without networks. Args: hint: the error for any weights that are asked for."""

    def __init__(self, hint: str):
        super().__init__(Path(), hint)

    def entry(self, name: str) -> dict[str, Any]:
        raise MissingError(self.hint)
