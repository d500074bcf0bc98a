"""Shards on their way from the device to the disk: written while the next ones are drawn, so that a run killed at any moment
loses only the batch that is being drawn and the three at most that wait to be written.
"""

from __future__ import annotations

import hashlib
import logging
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vfmbench.results.shards import Shard, Shards

LOG = logging.getLogger("vfmbench")

_SHARDS_WAITING = 2


class HostCopy:
    """Tensors on their way to the host. The copy from a CUDA device goes into pinned memory, and the device does not wait."""

    def __init__(self, tensors: Mapping[str, Tensor]):
        self._tensors = {name: tensor.detach().to("cpu", non_blocking=True) for name, tensor in tensors.items()}
        self._copied = torch.cuda.Event() if any(tensor.is_cuda for tensor in tensors.values()) else None
        if self._copied is not None:
            self._copied.record()

    def wait(self) -> dict[str, NDArray[Any]]:
        """The tensors' numbers, as soon as they have arrived; in any thread."""
        if self._copied is not None:
            self._copied.synchronize()
        return {name: tensor.numpy() for name, tensor in self._tensors.items()}


class ShardWriter:
    """Writes shards in their order in a thread of its own, while the next ones are drawn.

    A context: its end, also by an interrupt, waits until all shards are written. What goes wrong with a shard is raised by the
    next call or, at the latest, at the end; an error that ends the context anyway is not replaced by it.
    """

    def __init__(self, shards: Shards):
        self._shards = shards
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="shard-writer")
        self._waiting: deque[Future[None]] = deque()

    def __enter__(self) -> Self:
        return self

    def write(self, finish: Callable[[], Shard]) -> None:
        """Has the shard that `finish` returns written; `finish` is called in the writing thread.

        Returns when no more than two shards wait behind the one that is being written.
        """
        self._waiting.append(self._thread.submit(lambda: self._shards.write(finish())))
        while self._waiting and (self._waiting[0].done() or len(self._waiting) > 1 + _SHARDS_WAITING):
            self._waiting[0].result()
            self._waiting.popleft()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._thread.shutdown(wait=True)
        problems = [problem for problem in (future.exception() for future in self._waiting) if problem not in (None, error)]
        for problem in problems:
            LOG.error("a batch could not be stored: %s", problem)
        if problems and error is None:
            raise problems[0]


def measurement_hashes(y: NDArray[Any]) -> list[str]:
    """SHA-256 of each row's float32 bytes."""
    return [hashlib.sha256(row.tobytes()).hexdigest() for row in y.astype(np.float32, copy=False)]
