"""The noise adapter of VFM's authors: its parameters' names and shapes, and the names that ours has for the same ones.

Layer by layer the two are the same network; only names differ. Source: the authors' release (abbasmammadov/VFM,
`models/adapter.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from vfmbench.errors import UserError
from vfmbench.weights.conversion import check_layout, shape_of

# Its group norms have min(32, channels) groups, which no shape tells.
NORM_GROUPS = 32

# Published name, our name, shape.
Parameter = tuple[str, str, tuple[int, ...]]


def convert_adapter(
    path: Path, state: Mapping[str, Tensor], image_size: int, latent_size: int
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state dict in our names, and keyword arguments of `NoiseAdapter` that it fits.

    Args:
        path: for messages.
        image_size, latent_size: that the adapter is to be used at; the number of its halvings must lead from one to the other.

    Raises UserError if the parameters are not those of the authors' adapter.
    """
    architecture = _architecture(path, state, image_size, latent_size)
    parameters = list(_parameters(architecture))
    check_layout(path, "an adapter of VFM", state, {published: shape for published, _, shape in parameters})
    return {own: state[published] for published, own, _ in parameters}, architecture


def _architecture(path: Path, state: Mapping[str, Tensor], image_size: int, latent_size: int) -> dict[str, Any]:
    channels, image_channels, *_ = shape_of(path, state, "conv_in.weight", 4)
    num_problems, embedding_size = shape_of(path, state, "class_embed.0.weight", 2)
    if channels % NORM_GROUPS:
        raise UserError(f"{path}: the adapter's {channels} channels are not a multiple of its {NORM_GROUPS} normalised groups.")
    stages, blocks = _count(state, "down_blocks."), _count(state, "down_blocks.0.res_blocks.")
    widths = [shape_of(path, state, f"down_blocks.{stage}.res_blocks.0.conv1.weight", 4)[0] for stage in range(stages)]
    halvings = sum(f"down_blocks.{stage}.downsample.weight" in state for stage in range(stages))
    if image_size != latent_size * 2**halvings:
        raise UserError(f"{path}: the adapter halves {halvings} times, which does not lead from {image_size} to {latent_size}.")
    return {
        "image_size": image_size,
        "image_channels": image_channels,
        "latent_size": latent_size,
        "latent_channels": shape_of(path, state, "conv_out.weight", 4)[0] // 2,
        "num_problems": num_problems,
        "channels": channels,
        "channel_multipliers": [width // channels for width in widths],
        "blocks_per_stage": blocks,
        "embedding_size": embedding_size,
        "norm_groups": NORM_GROUPS,
    }


def _count(state: Mapping[str, Tensor], prefix: str) -> int:
    return len({name.removeprefix(prefix).partition(".")[0] for name in state if name.startswith(prefix)})


def _parameters(architecture: Mapping[str, Any]) -> Iterator[Parameter]:
    """Every parameter of the adapter that these options describe."""
    channels, embedding = architecture["channels"], architecture["embedding_size"]
    blocks, size = architecture["blocks_per_stage"], architecture["image_size"]
    yield "class_embed.0.weight", "embedding.0.weight", (architecture["num_problems"], embedding)
    for layer in (1, 3):
        yield from _layer(f"class_embed.{layer}", f"embedding.{layer}", embedding, embedding)
    yield from _layer("conv_in", "conv_in", channels, architecture["image_channels"], 3, 3)
    width = channels
    for stage, multiplier in enumerate(architecture["channel_multipliers"]):
        for block in range(blocks):
            names = f"down_blocks.{stage}.res_blocks.{block}", f"stages.{stage}.{block}"
            yield from _residual_block(*names, width, channels * multiplier, embedding)
            width = channels * multiplier
        if size > architecture["latent_size"]:
            yield from _layer(f"down_blocks.{stage}.downsample", f"stages.{stage}.{blocks}", width, width, 3, 3)
            size //= 2
    for number in (1, 2):
        yield from _residual_block(f"mid_block{number}", f"middle.{number - 1}", width, width, embedding)
    yield from _layer("norm_out", "norm_out", width)
    yield from _layer("conv_out", "conv_out", 2 * architecture["latent_channels"], width, 3, 3)


def _residual_block(published: str, own: str, before: int, width: int, embedding: int) -> Iterator[Parameter]:
    for number, inputs in ((1, before), (2, width)):
        yield from _layer(f"{published}.norm{number}", f"{own}.norm{number}", inputs)
        yield from _layer(f"{published}.conv{number}", f"{own}.conv{number}", width, inputs, 3, 3)
        yield from _layer(f"{published}.film{number}.fc", f"{own}.film{number}.linear", 2 * width, embedding)
    if before != width:
        yield from _layer(f"{published}.shortcut", f"{own}.shortcut", width, before, 1, 1)


def _layer(published: str, own: str, *shape: int) -> Iterator[Parameter]:
    yield f"{published}.weight", f"{own}.weight", shape
    yield f"{published}.bias", f"{own}.bias", shape[:1]
