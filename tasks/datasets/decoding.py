"""From an image file to a square uint8 RGB image."""

from __future__ import annotations

from typing import IO

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

# Part of every hash of data that went through `decode`: change it with whatever changes the pixels.
RECIPE = "exif transpose, alpha on white, 16 bit / 257, RGB, ADM centre crop"


def decode(file: IO[bytes], size: int) -> Tensor:
    """The first frame of an image file as uint8 [3,size,size].

    Turned as its EXIF orientation says (ADM's own code leaves such a photograph on its side); transparent pixels are laid on
    white; 16-bit values are divided by 257 and rounded; everything then becomes RGB and is cropped by `centre_crop`.

    Raises:
        ValueError: not an image, or no image that can be shown in 8 bits; the message is the reason. Pillow's readers raise
            further exceptions of any class on damaged files.
    """
    try:
        with Image.open(file) as opened:
            image = to_rgb_image(opened)
    except UnidentifiedImageError:
        raise ValueError("not an image in a known format") from None
    cropped = centre_crop(image, size)
    return torch.from_numpy(np.array(cropped)).permute(2, 0, 1).contiguous()


def centre_crop(image: Image.Image, size: int) -> Image.Image:
    """The centre of an 8-bit image as size x size pixels.

    ADM's preprocessing of ImageNet (Dhariwal and Nichol 2021, "Diffusion models beat GANs on image synthesis"): the image is
    halved with a box filter while its shorter side is at least twice `size`, resized with Pillow's bicubic filter so that the
    shorter side is `size`, and cropped. An image smaller than `size` is enlarged by the bicubic step.
    """
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))


def to_rgb_image(opened: Image.Image) -> Image.Image:
    """An opened image file upright in 8-bit RGB, as `decode` describes it. Raises ValueError as `decode` does."""
    image = ImageOps.exif_transpose(opened)
    # Depending on format and version, Pillow opens a 16-bit grey image as "I;16", "I;16B" or "I".
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError("32-bit integers have no known range")
        image = Image.fromarray(((values + 128) // 257).astype(np.uint8))
    if image.mode == "F":
        raise ValueError("floating-point values have no known range")
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image.convert("RGB")
