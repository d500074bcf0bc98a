"""Stable Diffusion's VAE: images [B,3,H,W] in [-1, 1] to latents [B,4,H/8,W/8] and back, at the flow's scale.

The network is diffusers' `AutoencoderKL`, built from the published configuration of `stabilityai/sd-vae-ft-mse` and filled from
one file of weights; nothing is fetched. Latents are multiplied by 0.18215, which gives them unit variance (Rombach et al. 2022,
"High-resolution image synthesis with latent diffusion models", section 4.3.2 and appendix D.1). diffusers takes seconds to
import and is imported when a network is built.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from vfmbench.errors import UserError
from vfmbench.metering import Meter
from vfmbench.models.codecs import AutoencoderCodec
from vfmbench.models.compilation import prepared
from vfmbench.precision import PLAIN, Execution
from vfmbench.weights.external import ExternalWeights

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

SCALE = 0.18215

# `config.json` of stabilityai/sd-vae-ft-mse; what it leaves out is as diffusers' defaults have it.
CONFIG: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "act_fn": "silu",
    "latent_channels": 4,
    "norm_num_groups": 32,
    "sample_size": 256,
    "scaling_factor": SCALE,
}

# What diffusers called attention layers until 2023, and what since; the published files have the former.
_OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_SHOWN = 3


class LatentEncoder(nn.Module):
    """Images in [-1, 1] -> the posterior's mean, scaled."""

    def __init__(self, autoencoder: AutoencoderKL):
        super().__init__()
        self.network, self.moments = autoencoder.encoder, autoencoder.get_submodule("quant_conv")

    def forward(self, images: Tensor) -> Tensor:
        mean, _ = self.moments(self.network(images)).chunk(2, dim=1)
        return SCALE * mean


class LatentDecoder(nn.Module):
    """Scaled latents -> images in about [-1, 1], not clamped."""

    def __init__(self, autoencoder: AutoencoderKL):
        super().__init__()
        self.entry, self.network = autoencoder.get_submodule("post_quant_conv"), autoencoder.decoder

    def forward(self, latents: Tensor) -> Tensor:
        return self.network(self.entry(latents / SCALE))


def autoencoder() -> AutoencoderKL:
    """The network of `CONFIG` with fresh weights, on the default device."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    return AutoencoderKL(**CONFIG)


def load_autoencoder(weights: ExternalWeights) -> AutoencoderKL:
    """The network of `CONFIG` with the given weights in float32, on the CPU; attention layers under old or new names.

    Raises UserError: the weights are not this network's.
    """
    with torch.device("meta"):
        network = autoencoder()
    tensors = {_new_name(name): tensor.float() for name, tensor in weights.tensors.items()}
    problems = _differences({name: value.shape for name, value in network.state_dict().items()}, tensors)
    if problems:
        raise UserError(f"{weights.path} is no {weights.file.file_name}: {'; '.join(problems)}.")
    network.load_state_dict(tensors, assign=True)
    return network


def sd_vae_codec(network: AutoencoderKL, device: torch.device, meter: Meter, execution: Execution = PLAIN) -> AutoencoderCodec:
    """The codec of a network, which is moved to `device`.

    Args:
        execution: how encoder and decoder run.
    """
    encoder, decoder = LatentEncoder(network).to(device), LatentDecoder(network).to(device)
    return AutoencoderCodec(prepared(decoder, execution), prepared(encoder, execution), meter)


def _new_name(name: str) -> str:
    layer, _, parameter = name.rpartition(".")
    parent, _, last = layer.rpartition(".")
    return f"{parent}.{_OLD_NAMES[last]}.{parameter}" if ".attentions." in name and last in _OLD_NAMES else name


def _differences(expected: dict[str, torch.Size], tensors: dict[str, Tensor]) -> list[str]:
    """What keeps tensors from being a network's parameters, a phrase for each kind of difference."""
    reshaped = [
        f"{name} is {list(tensors[name].shape)} instead of {list(shape)}"
        for name, shape in expected.items()
        if name in tensors and tensors[name].shape != shape
    ]
    kinds = {
        "missing": sorted(expected.keys() - tensors.keys()),
        "unexpected": sorted(tensors.keys() - expected.keys()),
        "of another shape": reshaped,
    }
    return [_listed(kind, found) for kind, found in kinds.items() if found]


def _listed(kind: str, found: list[str]) -> str:
    more = ", ..." if len(found) > _SHOWN else ""
    return f"tensors {kind}: {len(found)} ({', '.join(found[:_SHOWN])}{more})"
