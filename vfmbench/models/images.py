"""What networks on images ask of their input."""

from __future__ import annotations

from torch import Tensor

from vfmbench.errors import UserError


def require_rgb(images: Tensor, smallest: int, who: str) -> None:
    """Raises UserError for images [...,C,H,W] of other than three channels, or with a side below `smallest` pixels."""
    channels, height, width = images.shape[-3:]
    if channels != 3 or min(height, width) < smallest:
        size = f" of at least {smallest}x{smallest} pixels" if smallest > 1 else ""
        raise UserError(f"{who} needs RGB images{size}, not {channels} channels of {height}x{width}")
