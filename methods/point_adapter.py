"""Noise adapters for points: q(z|y) = N(mean(y), diag(exp(logvar(y)))) as a multilayer perceptron, or affine.

Source: Variational Flow Maps (arXiv 2603.07276), appendix B.1 and (affine) A.2. Called as `adapter(observation, problem)` like
the image adapter, with the observation as A^T y, [B,d,1,1]; there is one problem, whose id is ignored.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from vfmbench.errors import unknown_name
from vfmbench.methods.adapter import NoiseAdapter
from vfmbench.models.mlp import Shape, perceptron
from vfmbench.options import Options, validate

LOG_STD_RANGE = (-6.0, 3.0)


class PerceptronAdapterOptions(Options):
    """Shape of an adapter for points (VFM appendix B.1: 4 hidden layers of width 256)."""

    kind: Literal["mlp"]
    width: int = Field(256, ge=1)
    depth: int = Field(4, ge=1)


class PerceptronAdapter(nn.Module):
    """Mean and log-variance from one perceptron, each float32 [B,*shape]."""

    def __init__(self, shape: Shape, options: PerceptronAdapterOptions):
        super().__init__()
        self._shape = shape
        self.body = perceptron(math.prod(shape), options.width, options.depth, 2 * math.prod(shape))

    def forward(self, observation: Tensor, problem: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_std = self.body(observation.flatten(1)).float().chunk(2, 1)
        return mean.unflatten(1, self._shape), 2 * log_std.clamp(*LOG_STD_RANGE).unflatten(1, self._shape)


class AffineAdapterOptions(Options):
    kind: Literal["affine"]


class AffineAdapter(nn.Module):
    """A mean that is affine in the observation and one variance for all, as linear-Gaussian problems have. Starts at N(0,I)."""

    def __init__(self, shape: Shape, options: AffineAdapterOptions):
        super().__init__()
        self._shape = shape
        self.mean = nn.Linear(math.prod(shape), math.prod(shape))
        self.log_std = nn.Parameter(torch.zeros(math.prod(shape)))
        nn.init.zeros_(self.mean.weight)
        nn.init.zeros_(self.mean.bias)

    def forward(self, observation: Tensor, problem: Tensor) -> tuple[Tensor, Tensor]:
        mean = self.mean(observation.flatten(1)).unflatten(1, self._shape)
        return mean, 2 * self.log_std.clamp(*LOG_STD_RANGE).unflatten(0, self._shape).expand_as(mean)


_PREFIX = "architecture.adapter."


def adapter_network(shape: Shape, architecture: Mapping[str, Any]) -> nn.Module:
    """A noise adapter with fresh weights; `kind` in the architecture says which, the image adapter if it is absent.

    Args:
        shape: of one point; the image adapter's architecture holds its own sizes.

    Raises:
        UserError: an unknown kind or option of an adapter for points.
        TypeError, ValueError: options that do not make an image adapter.
    """
    if "kind" not in architecture:
        return NoiseAdapter(**architecture)
    kind = str(architecture["kind"])
    if kind == "mlp":
        return PerceptronAdapter(shape, validate(PerceptronAdapterOptions, architecture, _PREFIX))
    if kind == "affine":
        return AffineAdapter(shape, validate(AffineAdapterOptions, architecture, _PREFIX))
    raise unknown_name("noise adapter", kind, ["mlp", "affine"])
