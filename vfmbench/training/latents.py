"""Latents of the training images, encoded once and then read from files."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn

from vfmbench.domains import IMAGES
from vfmbench.files import replace_file
from vfmbench.interfaces import Codec, Dataset
from vfmbench.training.processes import Processes

_IMAGES_IN_FILE = 2048


class LatentCache:
    """E(x) of every image of a data set, float32, and its label, in memory-mapped files of a few thousand images each.

    A file that is there is complete, so that an interrupted encoding goes on where it stopped, with any number of processes.

    Args:
        root: gets a folder whose name depends on the data's hash and on the codec's weights.
        codec: encoder and decoder; its networks are its attributes.
    """

    def __init__(self, root: Path, dataset: Dataset, codec: Codec, shape: tuple[int, int, int], device: torch.device):
        self._dataset, self._codec, self._shape, self._device = dataset, codec, shape, device
        key = hashlib.sha256(f"{dataset.sha256}/{_weights_hash(codec)}/{_IMAGES_IN_FILE}".encode()).hexdigest()
        self.folder = root / f"latents-{key[:12]}"
        self._files: dict[int, np.ndarray] = {}

    def fill(self, rows: int, processes: Processes, console: Console) -> None:
        """Encodes what is missing, each process its own files, `rows` images at a time.

        Raises UserError for an image that cannot be decoded.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        own = range(processes.rank, -(-len(self._dataset) // _IMAGES_IN_FILE), processes.count)
        missing = [number for number in own if not self._path(number).exists()]
        for number in track(missing, "latents", console=console, disable=not missing):
            self._encode_file(number, rows)
        processes.wait()

    def load(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Latents [B,c,h,w] and labels [B] at these positions of the data set."""
        rows = [self._file(number)[row] for number, row in (divmod(at, _IMAGES_IN_FILE) for at in positions.tolist())]
        latents = torch.from_numpy(np.stack([row["latent"] for row in rows]))
        labels = torch.from_numpy(np.stack([row["label"] for row in rows]))
        return latents.to(self._device), labels.to(self._device)

    def _encode_file(self, number: int, rows: int) -> None:
        first = number * _IMAGES_IN_FILE
        positions = range(first, min(first + _IMAGES_IN_FILE, len(self._dataset)))
        content = np.empty(len(positions), [("label", np.int64), ("latent", np.float32, self._shape)])
        for start in range(0, len(positions), rows):
            images, labels = self._dataset.load(positions[start : start + rows])
            with torch.no_grad():
                latents = self._codec.encode(IMAGES.restore(images.to(self._device)))
            content["label"][start : start + rows] = labels.numpy()
            content["latent"][start : start + rows] = latents.float().cpu().numpy()
        replace_file(self._path(number), lambda path: _write(path, content))

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:06d}.npy"

    def _file(self, number: int) -> np.ndarray:
        if number not in self._files:
            self._files[number] = np.load(self._path(number), mmap_mode="r")
        return self._files[number]


def _write(path: Path, values: np.ndarray) -> None:
    with path.open("wb") as file:
        np.save(file, values)


def _weights_hash(codec: Codec) -> str:
    """SHA-256 over the parameters of all networks that the codec holds."""
    digest = hashlib.sha256()
    for name, network in sorted(vars(codec).items()):
        if isinstance(network, nn.Module):
            for key, value in network.state_dict().items():
                digest.update(f"{name}.{key} {tuple(value.shape)}\n".encode())
                digest.update(value.detach().cpu().float().numpy().tobytes())
    return digest.hexdigest()
