"""The one conversion between float images in [-1, 1] and stored uint8 images."""

from __future__ import annotations

import torch
from torch import Tensor


def to_uint8(images: Tensor) -> Tensor:
    """Rounds and clamps [-1, 1] to 0..255; used before every metric, file and picture."""
    return ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def to_float(images: Tensor) -> Tensor:
    """uint8 0..255 to float32 [-1, 1]."""
    return images.float() / 127.5 - 1
