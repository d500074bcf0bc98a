"""From the architecture in a manifest or a suite's file to a flow network; the key `kind` says which, a SiT if it is absent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from vfmbench.errors import UserError, unknown_name
from vfmbench.models.mlp import PerceptronFlow, PerceptronOptions
from vfmbench.models.sit import SiT, expand_sit_size
from vfmbench.options import validate


def flow_network(shape: tuple[int, int, int], architecture: Mapping[str, Any]) -> nn.Module:
    """A flow network with fresh weights for latents of this shape.

    Raises:
        UserError: an unknown kind, size of a SiT or option of a network for points; a SiT for latents of another shape.
        TypeError, ValueError: options that do not make a SiT.
    """
    kind = architecture.get("kind", "sit")
    if kind == "sit":
        network = SiT(**expand_sit_size({key: value for key, value in architecture.items() if key != "kind"}))
        size = network.grid_size * network.patch_size
        if (network.in_channels, size, size) != tuple(shape):
            raise UserError(
                f"These flow weights are for latents of {network.in_channels}x{size}x{size}, not of "
                f"{'x'.join(map(str, shape))}; give weights of this suite."
            )
        return network
    if kind == "mlp":
        return PerceptronFlow(shape, validate(PerceptronOptions, architecture, "architecture.flow."))
    raise unknown_name("flow network", str(kind), ["sit", "mlp"])
