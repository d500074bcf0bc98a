"""A codec that is a pair of networks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vfmbench.interfaces import Vjp
from vfmbench.metering import Meter


class AutoencoderCodec:
    """A pair of networks, counted; a `vfmbench.interfaces.Codec`. No call clamps its images: a data term needs its gradient
    everywhere.

    Args:
        decoder: latents [B,c,h,w] -> images [B,C,H,W] in [-1, 1]; any latent scale belongs inside. Frozen by this class.
        encoder: the other way round, deterministic (the posterior's mean); None if there is none.
        meter: where passes are counted.
    """

    def __init__(self, decoder: nn.Module, encoder: nn.Module | None, meter: Meter):
        self._decoder = decoder.eval().requires_grad_(False)
        self._encoder = encoder.eval().requires_grad_(False) if encoder is not None else None
        self._meter = meter

    @property
    def has_encoder(self) -> bool:
        return self._encoder is not None

    def encode(self, images: Tensor) -> Tensor:
        """Raises ValueError without an encoder, as does `encode_with_vjp`."""
        with self._meter.measure("encoder_forwards", len(images)):
            return self._existing_encoder()(images)

    def encode_with_vjp(self, images: Tensor) -> tuple[Tensor, Vjp]:
        """The latent and the map g -> (dE/dx)^T g, which may be called once."""
        return self._with_vjp(self._existing_encoder(), images, "encoder")

    def decode(self, latents: Tensor) -> Tensor:
        with self._meter.measure("decoder_forwards", len(latents)):
            return self._decoder(latents)

    def decode_with_vjp(self, latents: Tensor) -> tuple[Tensor, Vjp]:
        """The image and the map g -> (dD/dz)^T g, which may be called once."""
        return self._with_vjp(self._decoder, latents, "decoder")

    def _existing_encoder(self) -> nn.Module:
        if self._encoder is None:
            raise ValueError("this codec has no encoder")
        return self._encoder

    def _with_vjp(self, network: nn.Module, x: Tensor, kind: str) -> tuple[Tensor, Vjp]:
        with torch.enable_grad(), self._meter.measure(f"{kind}_forwards", len(x)):
            leaf = x.detach().requires_grad_(True)
            output = network(leaf)

        def vjp(cotangent: Tensor) -> Tensor:
            with self._meter.measure(f"{kind}_vjps", len(x)):
                return torch.autograd.grad(output, leaf, cotangent)[0]

        return output.detach(), vjp
