"""Which rows a training step has and where its random numbers come from; images, read ahead where they lie in files."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from vfmbench.domains import Domain
from vfmbench.interfaces import Dataset, Suite
from vfmbench.training.processes import ALONE, WHOLE, Processes, Share

_Loaded = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Batch:
    """The rows of a training step that one process computes at once.

    Random numbers are drawn for the step's whole batch and then cut, so that those of a row depend neither on the number of
    processes nor on that of the micro-batches. All shares of a step draw the same numbers in the same order.

    Attributes:
        step: number of the step, from 0.
        positions: of the rows in the training split, int64 [rows].
        generator: of all further random numbers, on the CPU.
        share: which of the whole batch's rows these are.
        processes: those that compute the other shares.

    Example:
        batch = Batch.draw(step, len(dataset), options.batch_size, generator)
        images, label = loader.load(batch.positions)
        noise = batch.normal(*images.shape[1:])
    """

    step: int
    positions: Tensor
    generator: torch.Generator
    share: Share
    processes: Processes

    @classmethod
    def draw(
        cls,
        step: int,
        split_size: int,
        batch_size: int,
        generator: torch.Generator,
        share: Share = WHOLE,
        processes: Processes = ALONE,
    ) -> Batch:
        """A share of `batch_size` positions, drawn with replacement."""
        whole = torch.randint(split_size, (batch_size,), generator=generator)
        return cls(step, share.cut(whole), generator, share, processes)

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def whole(self) -> int:
        """Number of rows of the step's whole batch."""
        return self.share.whole(len(self))

    @property
    def index(self) -> Tensor:
        """A number for each row that no other row of the training has, for counter-based random numbers: int64 [rows]."""
        return self.cut(torch.arange(self.whole)) + self.step * self.whole

    def cut(self, whole: Tensor) -> Tensor:
        """These rows of a tensor over the whole batch, on the device."""
        return self.share.cut(whole).to(self.processes.device)

    def normal(self, *shape: int) -> Tensor:
        """Standard normal numbers [rows, *shape]."""
        return self.cut(torch.randn(self.whole, *shape, generator=self.generator))

    def uniform(self, *shape: int) -> Tensor:
        """Uniform numbers in [0, 1), [rows, *shape]."""
        return self.cut(torch.rand(self.whole, *shape, generator=self.generator))

    def mean(self, here: Tensor) -> Tensor:
        """From means over these rows to means over the whole batch, without gradient. Only where a process has one share."""
        return self.processes.mean(here.detach())


class Loader:
    """Reads the images of a data set onto a device.

    Args:
        domain: of the data.
        threads: number of threads that decode images; 0 decodes in the caller, which suits data in memory.
    """

    def __init__(self, dataset: Dataset, domain: Domain, device: torch.device, threads: int = 0):
        self._dataset, self._domain, self._device, self._threads = dataset, domain, device, threads
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="decode") if threads else None
        self._ahead: dict[tuple[int, ...], list[Future[_Loaded]]] = {}

    def load(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Images [B,C,H,W] in [-1,1] and labels [B]. Raises UserError for an image that cannot be decoded."""
        rows = positions.tolist()
        if self._pool is None:
            images, labels = self._dataset.load(rows)
        else:
            parts = [future.result() for future in self._ahead.pop(tuple(rows), None) or self._start(rows)]
            images, labels = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
        return self._domain.restore(images.to(self._device)), labels.to(self._device)

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
