"""A suite on freshly initialised networks: what `vfmbench bench` times where the trained weights are not there."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from vfmbench.errors import UserError
from vfmbench.interfaces import Suite
from vfmbench.options import validate
from vfmbench.registry import stages as stage_registry

_STD = 0.02


@contextmanager
def untrained(suite: Suite) -> Iterator[Suite]:
    """The suite on random images, with the networks of its training stages as they are before the first step.

    For timing only: its samples are worth nothing. The weights lie in a temporary folder until the context ends.

    Raises UserError for a suite without training stages.
    """
    if not suite.training:
        raise UserError(f"The suite {suite.name} has no training stages whose networks could be timed untrained.")
    with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng():
        torch.manual_seed(0)
        result = suite.for_timing().with_weights(Path(folder))
        for name, section in suite.training.items():
            stage_class = stage_registry.get(section.get("objective", name))
            own = {key: value for key, value in section.items() if key != "objective"}
            options = validate(stage_class.Options, own, f"{name}.")
            stage = stage_class(result, options, result.weights, torch.device("cpu"))
            tensors: dict[str, torch.Tensor] = {}
            for part, network in stage.networks.items():
                _fill_zeros(network)
                tensors |= {f"{part}.{key}": value for key, value in network.state_dict().items()}
            result.weights.save(stage_class.name, tensors, {**stage.manifest(), "inputs": stage.inputs()})
        yield result


@torch.no_grad()
def _fill_zeros(network: nn.Module) -> None:
    """Parameters that start at zero get small random values: a device takes less time and power for zeros."""
    for parameter in network.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=_STD)
