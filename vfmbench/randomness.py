"""Counter-based random numbers: every (seed, stream, image, sample, draw) has its own, computed for a whole batch at once.

A generator object per sample would need a Python loop over the batch; a counter-based generator maps a key and a counter to
random bits by arithmetic alone. This is Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011)
on int64 tensors; integer arithmetic makes the bits equal on every device.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)


def philox4x32(counter: Sequence[Tensor], key: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Ten rounds of Philox on four counter words (int64 tensors of 32-bit values, broadcastable); four words of bits."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        # An int64 product wraps modulo 2**64, and masking after the shift recovers the unsigned high word.
        low_high = c0 * _MULTIPLIERS[0]
        other = c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            ((other >> 32) & _MASK) ^ c1 ^ k0,
            other & _MASK,
            ((low_high >> 32) & _MASK) ^ c3 ^ k1,
            low_high & _MASK,
        )
        k0, k1 = (k0 + _KEY_STEPS[0]) & _MASK, (k1 + _KEY_STEPS[1]) & _MASK
    return c0, c1, c2, c3


class PhiloxNoise:
    """Noise for rows identified by (image index, sample index); implements `vfmbench.interfaces.NoiseSource`.

    Args:
        seed: any number or text; `split_seed` for measurements.
        stream: purpose of the numbers ("sampling", "measurement/gaussian_deblur", ...); streams are independent.
        image: image index of each row, int64 [rows]; the numbers come out on its device.
        sample: sample index of each row, int64 [rows]; zeros if omitted.
    """

    def __init__(self, seed: int | str, stream: str, image: Tensor, sample: Tensor | None = None):
        digest = hashlib.sha256(f"{seed}/{stream}".encode()).digest()
        self._key = (int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:8], "little"))
        self._image = image
        self._sample = torch.zeros_like(image) if sample is None else sample

    def _words(self, count: int, draw: int) -> Tensor:
        """At least `count` 32-bit words a row, int64 [rows, 4*ceil(count/4)]."""
        block = torch.arange(math.ceil(count / 4), device=self._image.device)
        rows = (self._sample[:, None], self._image[:, None])
        words = philox4x32((block[None, :], torch.full_like(block[None, :], draw), *rows), self._key)
        return torch.stack(torch.broadcast_tensors(*words), dim=-1).flatten(1)

    def uniform(self, shape: Sequence[int], draw: int) -> Tensor:
        count = math.prod(shape)
        # 24 bits fill a float32 mantissa exactly, so the result is never rounded up to 1.
        return ((self._words(count, draw)[:, :count] >> 8).float() * 2.0**-24).reshape(-1, *shape)

    def normal(self, shape: Sequence[int], draw: int) -> Tensor:
        count = math.prod(shape)
        words = self._words(count, draw)
        # Box-Muller in float64, for equal tails on every device; +1 keeps the logarithm finite.
        radius = (-2 * torch.log(((words[:, 0::2] + 1).double()) * 2.0**-32)).sqrt()
        angle = words[:, 1::2].double() * (2 * math.pi * 2.0**-32)
        pairs = torch.stack([radius * angle.cos(), radius * angle.sin()], dim=-1).flatten(1)
        return pairs[:, :count].float().reshape(-1, *shape)


def sample_rows(index: Tensor, samples: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Row identities for the given samples of each image: image and sample index, each [len(index) * len(samples)]."""
    sample = torch.as_tensor(list(samples), device=index.device)
    return index.repeat_interleave(len(sample)), sample.repeat(len(index))


def split_seed(split: str, seed: int) -> str:
    """The seed of a split's measurements: equal positions of two splits must not share operators and noise."""
    return f"{split}/{seed}"
