"""A small autoencoder of image patches: principal components of square blocks, and convolutions that add what these miss.

The linear part alone is block PCA, the best linear code of its size for single blocks; the convolutions also see neighbouring
blocks. Both ends work on the grid of blocks, so that a pass costs little more than one layer at full resolution would.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vfmbench.metering import Meter
from vfmbench.models.codecs import AutoencoderCodec
from vfmbench.models.compilation import prepared
from vfmbench.precision import PLAIN, Execution

_PIECE = 256


class _Block(nn.Module):
    """x + conv(silu(conv(silu(x)))), the second convolution starting at zero."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = _zero(nn.Conv2d(channels, channels, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.silu(self.conv1(F.silu(x))))


def _zero(layer: nn.Conv2d) -> nn.Conv2d:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def _residual(in_channels: int, out_channels: int, channels: int, blocks: int) -> nn.Sequential:
    """A convolutional network that starts at zero."""
    return nn.Sequential(
        nn.Conv2d(in_channels, channels, 3, padding=1),
        *(_Block(channels) for _ in range(blocks)),
        nn.SiLU(),
        _zero(nn.Conv2d(channels, out_channels, 3, padding=1)),
    )


class _Standardisation(nn.Module):
    """Latents [B,c,h,w] to mean 0 and deviation 1 in every channel, by constants that `standardise` measures, and back."""

    def __init__(self, channels: int):
        super().__init__()
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("std", torch.ones(channels))

    def forward(self, latents: Tensor) -> Tensor:
        return (latents - self.mean[:, None, None]) / self.std[:, None, None]

    def inverse(self, latents: Tensor) -> Tensor:
        return self.mean[:, None, None] + self.std[:, None, None] * latents


class PatchEncoder(nn.Module):
    """Images [B,C,H,W] in [-1,1] -> latents [B,c,H/p,W/p] of about unit mean variance, in the order of their variance.

    Args:
        image_channels, latent_channels: C and c, c at most C p^2.
        patch_size: p, side of a block in pixels.
        channels, blocks: width and depth of the convolutional part.
        standardised: whether every channel of the latents has mean 0 and variance 1 instead (`standardise`), as the noise has
            that a flow takes to them.
    """

    def __init__(
        self,
        image_channels: int,
        latent_channels: int,
        patch_size: int,
        channels: int,
        blocks: int,
        standardised: bool = False,
    ):
        super().__init__()
        self.patch_size = patch_size
        entries = image_channels * patch_size**2
        self.mean: Tensor
        self.analysis: Tensor
        self.register_buffer("mean", torch.zeros(entries))
        self.register_buffer("analysis", torch.zeros(latent_channels, entries))
        self.residual = _residual(entries, latent_channels, channels, blocks)
        self.standardisation = _Standardisation(latent_channels) if standardised else None

    def forward(self, images: Tensor) -> Tensor:
        latents = self.linear(images) + self.residual(self._blocks(images))
        return latents if self.standardisation is None else self.standardisation(latents)

    def linear(self, images: Tensor) -> Tensor:
        """Block PCA alone, never standardised."""
        return F.conv2d(self._blocks(images), self.analysis[:, :, None, None])

    def _blocks(self, images: Tensor) -> Tensor:
        return F.pixel_unshuffle(images, self.patch_size) - self.mean[:, None, None]


class PatchDecoder(nn.Module):
    """Latents [B,c,h,w] -> images [B,C,p h,p w] in about [-1,1], not clamped; arguments as of `PatchEncoder`."""

    def __init__(
        self,
        image_channels: int,
        latent_channels: int,
        patch_size: int,
        channels: int,
        blocks: int,
        standardised: bool = False,
    ):
        super().__init__()
        self.patch_size = patch_size
        entries = image_channels * patch_size**2
        self.mean: Tensor
        self.synthesis: Tensor
        self.register_buffer("mean", torch.zeros(entries))
        self.register_buffer("synthesis", torch.zeros(entries, latent_channels))
        self.residual = _residual(latent_channels, entries, channels, blocks)
        self.standardisation = _Standardisation(latent_channels) if standardised else None

    def forward(self, latents: Tensor) -> Tensor:
        if self.standardisation is not None:
            latents = self.standardisation.inverse(latents)
        return self.linear(latents) + F.pixel_shuffle(self.residual(latents), self.patch_size)

    def linear(self, latents: Tensor) -> Tensor:
        """Block PCA alone, of latents that are not standardised."""
        return F.pixel_shuffle(F.conv2d(latents, self.synthesis[:, :, None, None], self.mean), self.patch_size)


def patch_autoencoder(architecture: Mapping[str, Any]) -> tuple[PatchEncoder, PatchDecoder]:
    """Both ends, their linear parts zero until `fit_linear` or a state dict sets them.

    Args:
        architecture: image_channels, latent_channels, patch_size, perhaps `standardised`, and for each end `encoder` and
            `decoder` channels and blocks.

    Raises TypeError or KeyError for arguments missing or unknown.
    """
    shared = {key: value for key, value in architecture.items() if key not in ("encoder", "decoder")}
    return PatchEncoder(**shared, **architecture["encoder"]), PatchDecoder(**shared, **architecture["decoder"])


@torch.no_grad()
def fit_linear(encoder: PatchEncoder, decoder: PatchDecoder, images: Tensor, exponent: float = 0.5) -> None:
    """Sets the linear parts to the principal components of the blocks of images [N,C,H,W], computed in float64.

    Args:
        exponent: a latent's standard deviation is its component's to this power, all scaled to unit mean variance: 1 keeps the
            image's own proportions, 0 whitens.
    """
    blocks = F.pixel_unshuffle(images, encoder.patch_size).permute(0, 2, 3, 1).flatten(0, 2).double()
    mean = blocks.mean(0)
    variance, components = torch.linalg.eigh((blocks - mean).T @ (blocks - mean) / len(blocks))
    count = len(encoder.analysis)
    components, std = components.flip(1)[:, :count], variance.flip(0)[:count].clamp_min(1e-12).sqrt()
    target = std**exponent
    target = target / target.square().mean().sqrt()
    encoder.mean.copy_(mean)
    decoder.mean.copy_(mean)
    encoder.analysis.copy_((components * (target / std)).T)
    decoder.synthesis.copy_(components * (std / target))


@torch.no_grad()
def standardise(encoder: PatchEncoder, decoder: PatchDecoder, images: Tensor) -> None:
    """Sets the constants of both ends so that the latents of images [N,C,H,W] have mean 0 and deviation 1 in every channel.

    They are rounded to half precision, in which weights are stored. Raises ValueError for ends that do not standardise.
    """
    encoding, decoding = encoder.standardisation, decoder.standardisation
    if encoding is None or decoding is None:
        raise ValueError("the autoencoder's architecture has not standardised=True")
    latents = torch.cat([encoding.inverse(encoder(piece)) for piece in images.split(_PIECE)])
    std, mean = torch.std_mean(latents.double(), (0, 2, 3))
    for constants in (encoding, decoding):
        constants.mean.copy_(mean.half())
        constants.std.copy_(std.half())


def patch_codec(
    encoder: PatchEncoder, decoder: PatchDecoder, device: torch.device, meter: Meter, execution: Execution = PLAIN
) -> AutoencoderCodec:
    """The codec of both ends, which are moved to `device`."""
    return AutoencoderCodec(prepared(decoder.to(device), execution), prepared(encoder.to(device), execution), meter)
