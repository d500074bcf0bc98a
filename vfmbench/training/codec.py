"""Training of a suite's own codec: a patch autoencoder that starts as block PCA."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from vfmbench.interfaces import Suite
from vfmbench.models.patch_autoencoder import PatchDecoder, PatchEncoder, fit_linear, patch_autoencoder, standardise
from vfmbench.training.batches import Batch, whole_split
from vfmbench.training.stage import Stage, TrainingOptions
from vfmbench.weights.store import WeightStore


class CodecStage(Stage):
    """Mean squared error of decode(encode(x) + noise), noise as a KL-VAE's, so that near latents decode to near images."""

    name = "codec"

    class Options(TrainingOptions):
        latent_noise: float = Field(0.05, ge=0, description="standard deviation, of latents with unit mean variance")
        linear_images: int = Field(
            4096, ge=1, description="training images that the principal components and the latents' mean and deviation are of"
        )

    options: Options

    def __init__(self, suite: Suite, options: TrainingOptions, weights: WeightStore, device: torch.device):
        super().__init__(suite, options, weights, device)
        self._architecture = self._resolve(self.suite, self.options)
        encoder, decoder = patch_autoencoder(self._architecture)
        fit_linear(encoder, decoder, self._even_images())
        self.networks = {"encoder": encoder.to(self.device), "decoder": decoder.to(self.device)}

    def _even_images(self) -> Tensor:
        """Images at even distances in the training split, on the CPU."""
        positions = torch.linspace(0, len(self.suite.dataset("train")) - 1, self.options.linear_images).long()
        return self._loader.load(positions)[0].cpu()

    @staticmethod
    def _resolve(suite: Suite, options: TrainingOptions) -> dict[str, Any]:
        shapes = {
            "image_channels": suite.image_shape[0],
            "latent_channels": suite.latent_shape[0],
            "patch_size": suite.image_shape[1] // suite.latent_shape[1],
        }
        ends = {"encoder": {"channels": 64, "blocks": 2}, "decoder": {"channels": 64, "blocks": 3}}
        return {**shapes, **ends, **options.architecture}

    @classmethod
    def check(cls, suite: Suite, options: TrainingOptions) -> None:
        with torch.device("meta"):
            patch_autoencoder(cls._resolve(suite, options))

    def loss(self, batch: Batch, ema: Mapping[str, nn.Module]) -> tuple[Tensor, dict[str, Tensor]]:
        images, _ = self._loader.load(batch.positions)
        latents = self.networks["encoder"](images)
        noise = batch.normal(*latents.shape[1:])
        decoded = self.networks["decoder"](latents + self.options.latent_noise * noise)
        error = (decoded - images).square().mean()
        return error, {"squared_error": error.detach()}

    def finish(self, ema: Mapping[str, nn.Module]) -> None:
        """Measures the constants of an architecture that is `standardised`; meanwhile its latents are as the ends make them."""
        encoder, decoder = ema["encoder"], ema["decoder"]
        assert isinstance(encoder, PatchEncoder)
        assert isinstance(decoder, PatchDecoder)
        if encoder.standardisation is not None:
            standardise(encoder, decoder, self._even_images().to(self.device))

    @torch.no_grad()
    def evaluate(self, ema: Mapping[str, nn.Module], split: str, rows: int) -> dict[str, float]:
        """PSNR (dB) of the reconstruction and of the linear part alone, means over images, and the latents' deviation."""
        images, _ = whole_split(self.suite, split, self.device, self.options.validate_images)
        encoder, decoder = ema["encoder"], ema["decoder"]
        assert isinstance(encoder, PatchEncoder)
        assert isinstance(decoder, PatchDecoder)
        latents = encoder(images)
        return {
            "psnr": _psnr(decoder(latents), images),
            "psnr/linear": _psnr(decoder.linear(encoder.linear(images)), images),
            "latent_std": latents.std().item(),
        }

    def manifest(self) -> dict[str, Any]:
        return {"architecture": {"codec": self._architecture}}


def _psnr(decoded: Tensor, images: Tensor) -> float:
    error = (decoded.clamp(-1, 1) - images).square().flatten(1).mean(1)
    return (10 * torch.log10(4 / error)).mean().item()
