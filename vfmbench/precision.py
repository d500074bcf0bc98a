"""How networks are computed, as a run asks for it. Imports no torch: `vfmbench.models.compilation` does what is asked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Precision = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class Execution:
    """How a suite's networks run: flow, adapter and codec alike, forwards and gradients. State, noise and losses stay float32.

    >>> execution = Execution("bfloat16", compile=True)
    >>> network = prepared(network.to(device), execution)

    Attributes:
        precision: of matrix products, convolutions and attention, by autocast; all that goes in and comes out is float32.
        compile: compile each network for every shape that it meets, on CUDA into CUDA graphs where no gradient is asked for.
    """

    precision: Precision = "float32"
    compile: bool = False


PLAIN = Execution()
"""In float32, not compiled."""
