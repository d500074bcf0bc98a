"""A flow network for points: u(x, t, r) as a multilayer perceptron."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from vfmbench.options import Options

Shape = tuple[int, int, int]


def perceptron(inputs: int, width: int, depth: int, outputs: int) -> nn.Sequential:
    """`depth` hidden layers of `width` SiLU units, [B,inputs] -> [B,outputs]."""
    sizes = [inputs, *[width] * depth]
    layers: list[nn.Module] = []
    for before, after in pairwise(sizes):
        layers += [nn.Linear(before, after), nn.SiLU()]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], outputs))


class PerceptronOptions(Options):
    """Shape of a flow map for points (VFM appendix B.1: 6 hidden layers of width 512)."""

    kind: Literal["mlp"]
    width: int = Field(512, ge=1)
    depth: int = Field(6, ge=1)


class PerceptronFlow(nn.Module):
    """u(x, t, r) with [x, t, r] as input; called as a `SiT` is, but labels and the choice of attention are of no effect.

    x [B,*shape], t and r [B] in [0, 1] -> float32 [B,*shape].
    """

    def __init__(self, shape: Shape, options: PerceptronOptions):
        super().__init__()
        size = math.prod(shape)
        self._shape = shape
        self.body = perceptron(size + 2, options.width, options.depth, size)

    def forward(self, x: Tensor, t: Tensor, r: Tensor, label: Tensor, fused_attention: bool = True) -> Tensor:
        # Under autocast the last product is in half precision, in which x - u would lose the digits of x.
        return self.body(torch.cat([x.flatten(1), t[:, None], r[:, None]], 1)).float().unflatten(1, self._shape)
