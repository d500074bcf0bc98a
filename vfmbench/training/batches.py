"""Random batches of training images, read ahead by threads where images lie in files."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from vfmbench.domains import Domain
from vfmbench.interfaces import Dataset, Suite

_Loaded = tuple[Tensor, Tensor]


class Batches:
    """Random training batches of a data set on a device, drawn with replacement.

    Args:
        domain: of the data.
        threads: number of threads that decode images; 0 decodes in the caller, which suits data in memory.
    """

    def __init__(self, dataset: Dataset, domain: Domain, device: torch.device, threads: int = 0):
        self._dataset, self._domain, self._device, self._threads = dataset, domain, device, threads
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="decode") if threads else None
        self._ahead: dict[tuple[int, ...], list[Future[_Loaded]]] = {}

    def positions(self, size: int, generator: torch.Generator) -> Tensor:
        """Where the images of a batch stand in the data set, int64 [size]."""
        return torch.randint(len(self._dataset), (size,), generator=generator)

    def load(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Images [B,C,H,W] in [-1,1] and labels [B]. Raises UserError for an image that cannot be decoded."""
        rows = positions.tolist()
        if self._pool is None:
            images, labels = self._dataset.load(rows)
        else:
            parts = [future.result() for future in self._ahead.pop(tuple(rows), None) or self._start(rows)]
            images, labels = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
        return self._domain.restore(images.to(self._device)), labels.to(self._device)

    def draw(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Images and labels of a random batch, as `load` gives them."""
        return self.load(self.positions(size, generator))

    def read_ahead(self, positions: Tensor) -> None:
        """Starts to decode images that `load` will be asked for; of no effect without threads."""
        if self._pool is not None:
            rows = positions.tolist()
            self._ahead[tuple(rows)] = self._start(rows)

    def forget(self) -> None:
        """Drops what was started and not fetched."""
        for futures in self._ahead.values():
            for future in futures:
                future.cancel()
        self._ahead.clear()

    def _start(self, rows: list[int]) -> list[Future[_Loaded]]:
        assert self._pool is not None
        size = -(-len(rows) // self._threads)
        return [self._pool.submit(self._dataset.load, rows[at : at + size]) for at in range(0, len(rows), size)]


def whole_split(suite: Suite, split: str, device: torch.device, limit: int | None = None) -> tuple[Tensor, Tensor]:
    """The first `limit` images, or all, in [-1,1] and their labels, of a split that fits into memory."""
    dataset = suite.dataset(split)
    images, labels = dataset.load(range(_count(dataset, limit)))
    return suite.domain.restore(images.to(device)), labels.to(device)


def split_in_pieces(
    suite: Suite, split: str, device: torch.device, limit: int | None, rows: int
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """The first `limit` images, or all, at most `rows` at a time: images in [-1,1], labels and positions."""
    dataset = suite.dataset(split)
    count = _count(dataset, limit)
    for start in range(0, count, rows):
        positions = range(start, min(start + rows, count))
        images, labels = dataset.load(positions)
        yield suite.domain.restore(images.to(device)), labels.to(device), torch.tensor(positions, device=device)


def _count(dataset: Dataset, limit: int | None) -> int:
    return len(dataset) if limit is None else min(limit, len(dataset))
