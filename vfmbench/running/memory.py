"""Peak memory of tensors during a call: from the allocator on CUDA, by watching storages on a CPU."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class _LiveStorages(TorchDispatchMode):
    """Adds up the bytes of storages that operations return, from their creation to their end."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = self._current = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for storage in _storages((args, kwargs)):
            # Made before the call, such as a weight: an operation may return a view of it.
            self._add(storage, 0)
        result = func(*args, **(kwargs or {}))
        for storage in _storages(result):
            self._add(storage, storage.nbytes())
        return result

    def _add(self, storage: torch.UntypedStorage, size: int) -> None:
        key = storage._cdata
        if key not in self._known:
            self._known.add(key)
            self._current += size
            self.peak = max(self.peak, self._current)
            weakref.finalize(storage, self._remove, key, size)

    def _remove(self, key: int, size: int) -> None:
        self._known.discard(key)
        self._current -= size


def _storages(tree: Any) -> list[torch.UntypedStorage]:
    return [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def peak_tensor_memory(call: Callable[[], object], device: torch.device) -> int:
    """Bytes of tensors that `call` holds at its worst moment, above what was allocated before it.

    A CPU's allocator keeps no such count, so every operation is watched there, which makes the call slow; workspaces inside an
    operation (of a convolution, say) are not seen.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with _LiveStorages() as storages:
        call()
    return storages.peak
