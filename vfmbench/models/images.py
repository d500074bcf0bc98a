"""The one conversion between float images in [-1, 1] and stored uint8 images; points are stored as they are."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from vfmbench.errors import UserError


def to_uint8(images: Tensor) -> Tensor:
    """Rounds and clamps [-1, 1] to 0..255; used before every metric, file and picture."""
    return ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def to_float(stored: Tensor) -> Tensor:
    """uint8 0..255 to float32 [-1, 1]; float32 points unchanged."""
    return stored if stored.is_floating_point() else stored.float() / 127.5 - 1


def to_stored(values: Tensor, modality: Literal["images", "points"]) -> Tensor:
    """What a run keeps of a sample: uint8 of an image, float32 of a point."""
    return to_uint8(values) if modality == "images" else values.float()


def require_rgb(images: Tensor, smallest: int, who: str) -> None:
    """Raises UserError for images [...,C,H,W] of other than three channels, or with a side below `smallest` pixels."""
    channels, height, width = images.shape[-3:]
    if channels != 3 or min(height, width) < smallest:
        size = f" of at least {smallest}x{smallest} pixels" if smallest > 1 else ""
        raise UserError(f"{who} needs RGB images{size}, not {channels} channels of {height}x{width}")
