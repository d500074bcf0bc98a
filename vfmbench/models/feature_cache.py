"""Features on disk, so that those of the true images are not computed again for every method."""

from __future__ import annotations

import hashlib
import logging
import os
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, frombuffer, uint8

from vfmbench.files import replace_file
from vfmbench.interfaces import FeatureSpace

_LOG = logging.getLogger(__name__)


def cache_folder() -> Path:
    """`$VFMBENCH_CACHE`, by default `~/.cache/vfmbench/features`. It may be deleted at any time."""
    return Path(os.environ.get("VFMBENCH_CACHE") or "~/.cache/vfmbench/features").expanduser()


class CachedFeatures:
    """A feature space whose features are stored by weights, preprocessing and images, one file for each call of `features`.

    A damaged file is computed again. Where the folder cannot be written, nothing is stored.
    """

    def __init__(self, space: FeatureSpace, folder: Path):
        self._space, self._folder = space, folder
        self.name, self.weights_sha256, self.settings = space.name, space.weights_sha256, space.settings

    def features(self, images: Tensor) -> Tensor:
        path = self._folder / self.name / f"{self._key(images)}.safetensors"
        found = _read(path)
        if found is not None:
            return found
        features = self._space.features(images).cpu()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(path, save({"features": features.contiguous(), "sha256": _digest(features)}))
        except OSError as error:
            # A full or read-only disk must not cost the metric.
            _LOG.warning("features of %s are not stored: %s", self.name, error)
        return features

    def classify(self, images: Tensor) -> Tensor | None:
        return self._space.classify(images)

    def _key(self, images: Tensor) -> str:
        header = f"{self.weights_sha256} {self.settings} {images.dtype} {list(images.shape)}\n"
        digest = hashlib.sha256(header.encode())
        digest.update(images.cpu().contiguous().numpy().data)
        return digest.hexdigest()


def _read(path: Path) -> Tensor | None:
    """The stored features, or None for a file that is absent or damaged."""
    try:
        stored = load(path.read_bytes())
    except (OSError, SafetensorError):
        return None
    whole = {"features", "sha256"} <= set(stored) and stored["sha256"].equal(_digest(stored["features"]))
    return stored["features"] if whole else None


def _digest(features: Tensor) -> Tensor:
    return frombuffer(bytearray(hashlib.sha256(features.contiguous().numpy().data).digest()), dtype=uint8)
