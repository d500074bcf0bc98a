"""The noise adapter q(z|y,c): a convolutional residual network with FiLM conditioning on the inverse problem's id c.

Source: Variational Flow Maps (arXiv 2603.07276), appendix B.2.1; the sizes and all that the paper leaves open (order of layers,
biases, the clamp) are those of the authors' release, so that their weights load (`vfmbench.methods.published`). The paper's
adapter sees the observation as an image; the `restored` one, ours, also sees a restored image and which pixels were observed,
and may start from the restored image's latent.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vfmbench.errors import unknown_name
from vfmbench.interfaces import Codec
from vfmbench.measurement import Measurement
from vfmbench.restoration import regularised_inverse

LOGVAR_RANGE = (-10.0, 2.0)

# Between what is best for deblurring (0.2) and for super-resolution (1), by the PSNR of the inverse on photos64's validation.
_RESTORING_PRIOR_STD = 0.3

SIZES = {
    "small": {"channels": 32, "blocks_per_stage": 1, "embedding_size": 128},
    "base": {"channels": 64, "blocks_per_stage": 2, "embedding_size": 256},
    "large": {"channels": 128, "blocks_per_stage": 3, "embedding_size": 512},
}


def expand_adapter_size(architecture: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword arguments of `NoiseAdapter` in which a named `size` is written out.

    Parameters for 256x256x3 images, 32x32x4 latents and six problems: small 1,745,192, base 10,401,224, large 55,329,416. (The
    paper says about 10 M for base.) Other keys of the architecture win over those that the size stands for.

    Raises UserError for an unknown size.
    """
    options = dict(architecture)
    if "size" not in options:
        return options
    size = str(options.pop("size"))
    if size not in SIZES:
        raise unknown_name("adapter size", size, SIZES)
    return {**SIZES[size], **options}


def adapter_observation(measurement: Measurement, restored: bool) -> Tensor:
    """What an adapter sees of a measurement: the observation as an image [B,C,H,W].

    Args:
        restored: append the regularised inverse, C channels, and a channel that is 1 where a pixel was observed: [B,2C+1,H,W].

    Raises UserError for `restored` and an operator that is not linear.
    """
    operator = measurement.operator
    image = operator.to_image(measurement.y)
    if not restored:
        return image
    observed = torch.ones_like(image[:, :1]) if operator.observed is None else operator.observed.to(image)
    return torch.cat(
        [image, regularised_inverse(measurement, _RESTORING_PRIOR_STD), observed.expand(-1, 1, *image.shape[2:])], 1
    )


def adapter_arguments(observation: Tensor, problem: Tensor, restored: bool, codec: Codec) -> tuple[Tensor, ...]:
    """An adapter's arguments: `adapter_observation`, problem ids [B] and, if `restored`, the restored image's latent."""
    if not restored:
        return observation, problem
    channels = observation.shape[1] // 2
    with torch.no_grad():
        return observation, problem, codec.encode(observation[:, channels : 2 * channels])


class FiLM(nn.Module):
    """gamma(c) * h + beta(c) per channel, initialised to the identity."""

    def __init__(self, embedding_size: int, channels: int):
        super().__init__()
        self.linear = nn.Linear(embedding_size, 2 * channels)
        nn.init.zeros_(self.linear.weight)
        with torch.no_grad():
            self.linear.bias.copy_(torch.cat([torch.ones(channels), torch.zeros(channels)]))

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        gamma, beta = self.linear(embedding)[:, :, None, None].chunk(2, dim=1)
        return gamma * h + beta


class ResidualBlock(nn.Module):
    """(GroupNorm - SiLU - conv3x3 - FiLM) twice, with a 1x1 shortcut where the channels change."""

    def __init__(self, in_channels: int, channels: int, embedding_size: int, norm_groups: int):
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(norm_groups, in_channels), nn.GroupNorm(norm_groups, channels)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.film1, self.film2 = FiLM(embedding_size, channels), FiLM(embedding_size, channels)
        self.shortcut = nn.Conv2d(in_channels, channels, 1) if in_channels != channels else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.film1(self.conv1(F.silu(self.norm1(x))), embedding)
        h = self.film2(self.conv2(F.silu(self.norm2(h))), embedding)
        return self.shortcut(x) + h


class NoiseAdapter(nn.Module):
    """Mean and log-variance of q(z|y,c), a diagonal Gaussian over the flow map's noise.

    The defaults are the paper's "base" for 256x256x3 images and 32x32x4 latents. Four stages; a stride-2 convolution follows
    a stage while the resolution is above the latent's.

    Args:
        image_size, image_channels: of the observation as an image, `operator.to_image(y)`.
        latent_size, latent_channels: of z; `image_size` must be `latent_size` times a power of two.
        num_problems: number of inverse-problem ids.
        patch_size: side of the pixel blocks that become channels before the first convolution; 1 in the paper. The halvings
            then start at image_size / patch_size.
        restored: see `adapter_observation`; the mean then starts at `skip_gain` times the restored image's latent.
        skip_gain: initial value of a factor that is learnt for every problem and channel; with 0 the restored image is a
            feature only, and z starts without an image in it, which the map would otherwise learn to keep instead of to draw.
        restored_logvar: log-variance that q starts at where pixels were observed; it is 0 in holes. A restored latent is worth
            little under unit noise; without a skip 0 makes q start at the prior.
    """

    def __init__(
        self,
        image_size: int = 256,
        image_channels: int = 3,
        latent_size: int = 32,
        latent_channels: int = 4,
        num_problems: int = 6,
        channels: int = 64,
        channel_multipliers: tuple[int, ...] = (1, 2, 4, 4),
        blocks_per_stage: int = 2,
        embedding_size: int = 256,
        norm_groups: int = 32,
        patch_size: int = 1,
        restored: bool = False,
        skip_gain: float = 1.0,
        restored_logvar: float = -2.0,
    ):
        super().__init__()
        self.patch_size, self.restored_logvar = patch_size, restored_logvar
        self.embedding = nn.Sequential(
            nn.Embedding(num_problems, embedding_size),
            nn.Linear(embedding_size, embedding_size),
            nn.SiLU(),
            nn.Linear(embedding_size, embedding_size),
        )
        seen = (2 * image_channels + 1 if restored else image_channels) * patch_size**2
        self.conv_in = nn.Conv2d(seen, channels, 3, padding=1)
        self.stages = nn.ModuleList()
        width, size = channels, image_size // patch_size
        for multiplier in channel_multipliers:
            stage = nn.ModuleList()
            for _ in range(blocks_per_stage):
                stage.append(ResidualBlock(width, channels * multiplier, embedding_size, norm_groups))
                width = channels * multiplier
            if size > latent_size:
                stage.append(nn.Conv2d(width, width, 3, stride=2, padding=1))
                size //= 2
            self.stages.append(stage)
        if size != latent_size:
            raise ValueError(
                f"image_size {image_size} does not reach latent_size {latent_size} by patches of {patch_size} and "
                f"{len(channel_multipliers)} halvings"
            )
        self.middle = nn.ModuleList(ResidualBlock(width, width, embedding_size, norm_groups) for _ in range(2))
        self.norm_out = nn.GroupNorm(norm_groups, width)
        self.conv_out = nn.Conv2d(width, 2 * latent_channels, 3, padding=1)
        # q starts at the prior N(0, I), so joint training begins from the unconditional flow map.
        nn.init.zeros_(self.conv_out.weight)
        nn.init.zeros_(self.conv_out.get_parameter("bias"))
        if restored:
            self.skip_gain = nn.Parameter(torch.full((num_problems, latent_channels), float(skip_gain)))

    def forward(self, observation: Tensor, problem: Tensor, latent: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Args: observation [B,.,H,W]; problem [B] ids; latent of the restored image, [B,c,h,w], as are the returned mean and
        log-variance.
        """
        embedding = self.embedding(problem)
        h = self.conv_in(F.pixel_unshuffle(observation, self.patch_size))
        for stage in self.stages:
            for layer in stage.children():
                h = layer(h, embedding) if isinstance(layer, ResidualBlock) else layer(h)
        for block in self.middle:
            h = block(h, embedding)
        mean, logvar = self.conv_out(F.silu(self.norm_out(h))).chunk(2, dim=1)
        if latent is not None:
            mean = mean + self.skip_gain[problem][:, :, None, None] * latent
            logvar = logvar + self.restored_logvar * F.adaptive_avg_pool2d(
                observation[:, -1:], (latent.shape[-2], latent.shape[-1])
            )
        return mean, logvar.clamp(*LOGVAR_RANGE)
