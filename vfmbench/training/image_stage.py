"""What stages on the latents of images share: the codec, and latents that are encoded as they are needed or once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from pydantic import Field
from rich.console import Console
from torch import Tensor

from vfmbench.interfaces import IdentityCodec, Suite
from vfmbench.training.batches import split_in_pieces
from vfmbench.training.latents import LatentCache
from vfmbench.training.processes import Processes
from vfmbench.training.stage import Stage, TrainingOptions
from vfmbench.weights.store import WeightStore


class ImageOptions(TrainingOptions):
    """Options of every stage on latents."""

    cache_latents: bool = Field(
        False,
        exclude=True,
        description="encode every training image once, into files beside the stages' folders (float32, 21 GB for ImageNet); "
        "a stage with measurements still reads the images, because y is measured on them: it saves the encoder's pass only",
    )


class ImageStage(Stage):
    """A stage whose networks live on the latents of the suite's codec."""

    options: ImageOptions

    def __init__(self, suite: Suite, options: TrainingOptions, weights: WeightStore, device: torch.device):
        super().__init__(suite, options, weights, device)
        self._codec = self.suite.backbone(self.device).codec
        self._cache: LatentCache | None = None

    @classmethod
    def needed(cls, suite: Suite) -> tuple[str, ...]:
        """The suite's own codec, and those of `needs` that the suite trains."""
        return tuple(name for name in ("codec", *cls.needs) if name in suite.training)

    def prepare(self, out: Path, rows: int, processes: Processes, console: Console) -> None:
        """Encodes the training images if they are to be encoded once; there is nothing to encode in pixel space."""
        if not self.options.cache_latents or isinstance(self._codec, IdentityCodec):
            return
        cache = LatentCache(out, self.suite.dataset("train"), self._codec, self.suite.latent_shape, self.device)
        cache.fill(rows, processes, console)
        self._cache = cache

    def _pieces(self, split: str, rows: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """The images of a split that are evaluated, `rows` at a time: images in [-1,1], labels and positions."""
        return split_in_pieces(self.suite, split, self.device, self.options.validate_images, rows)

    def _encode(self, images: Tensor, positions: Tensor) -> Tensor:
        """Latents of images that stand at these positions of the training split; they carry no gradient."""
        if self._cache is not None:
            return self._cache.load(positions)[0]
        with torch.no_grad():
            return self._codec.encode(images).float()


class LatentStage(ImageStage):
    """A stage that needs of an image only its latent and its label."""

    def read_ahead(self, positions: Tensor) -> None:
        if self._cache is None:
            super().read_ahead(positions)

    def _latents(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Latents and labels at these positions of the training split."""
        if self._cache is not None:
            return self._cache.load(positions)
        images, label = self._loader.load(positions)
        return self._encode(images, positions), label
