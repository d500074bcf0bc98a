"""What a part does behind the harness's back: numbers from global generators, rows through networks."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook


@contextmanager
def other_global_numbers() -> Iterator[list[str]]:
    """Seeds the global generators otherwise for a while; at the end the list names those from which numbers were drawn."""
    used = list[str]()
    numpy_state, python_state = np.random.get_state(), random.getstate()  # noqa: NPY002
    with torch.random.fork_rng():
        torch.manual_seed(1)
        np.random.seed(1)  # noqa: NPY002
        random.seed(1)
        before = _generators()
        try:
            yield used
        finally:
            used += [name for name, state in _generators().items() if state != before[name]]
            np.random.set_state(numpy_state)  # noqa: NPY002
            random.setstate(python_state)


def _generators() -> dict[str, str]:
    """What tells whether each global generator has been used."""
    states = {"torch": torch.get_rng_state().tolist(), "NumPy": np.random.get_state(), "Python": random.getstate()}  # noqa: NPY002
    if torch.cuda.is_available():
        states["torch on CUDA"] = [state.tolist() for state in torch.cuda.get_rng_state_all()]
    return {name: repr(state) for name, state in states.items()}


@contextmanager
def rows_seen_by_networks() -> Iterator[list[int]]:
    """Counts, in the one entry of the list, the rows given to modules with parameters that no other module called."""
    seen, depth = [0], 0

    def enter(module: nn.Module, arguments: tuple[Any, ...]) -> None:
        nonlocal depth
        if depth == 0 and any(True for _ in module.parameters()):
            seen[0] += next((len(value) for value in arguments if isinstance(value, Tensor) and value.ndim), 0)
        depth += 1

    def leave(module: nn.Module, arguments: tuple[Any, ...], output: object) -> None:
        nonlocal depth
        depth -= 1

    handles = register_module_forward_pre_hook(enter), register_module_forward_hook(leave, always_call=True)
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
