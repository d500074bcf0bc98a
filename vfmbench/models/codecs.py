"""Codecs between images and the latents that a flow lives on."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor


class IdentityCodec:
    """Pixel space: the latent is the image."""

    def encode(self, images: Tensor) -> Tensor:
        return images

    def decode(self, latents: Tensor) -> Tensor:
        return latents

    def decode_with_vjp(self, latents: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """The image and the map g -> (dD/dz)^T g."""
        return latents, lambda cotangent: cotangent
