"""One reading of the true images and samples, block by block, for everything that metrics ask of each image.

Metrics ask first and take their answers later, so that pixels are read once for all of them, and no more than a block is in
memory. A block is of the size that the asker wants, whatever the size in which the disk is read: numbers do not depend on it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

_READ_VALUES = 2**22


class Rows(Protocol):
    """Images or their samples, which may lie on a disk: `rows[2:5]` reads some of them, `rows[:]` all. A tensor is one."""

    @property
    def shape(self) -> torch.Size: ...

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def device(self) -> torch.device: ...

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice | Tensor, /) -> Tensor: ...


class Answer:
    """What a function gives for all rows, [rows,...], once somebody takes it. Made by `Reading.ask`."""

    def __init__(self, read: Callable[[], None], function: Callable[..., Tensor], size: int, total: int):
        self._read, self._function, self._size, self._total = read, function, size, total
        self._waiting: list[tuple[Tensor, ...]] = []
        self._values: Tensor | None = None
        self._filled = 0
        self._error: Exception | None = None

    def result(self) -> Tensor:
        """Reads, with this one, all that was asked so far. Raises what the function, or the reading, raised."""
        if self._values is None and self._error is None:
            self._read()
        if self._error is not None:
            raise self._error
        assert self._values is not None
        return self._values

    def fail(self, error: Exception) -> None:
        self._waiting, self._values, self._error = [], None, error

    def take(self, *rows: Tensor) -> None:
        """The next rows, of each tensor that the function takes; it is called for every `size` of them, and for the last."""
        if self._error is not None:
            return
        self._waiting.append(rows)
        waiting = sum(len(first) for first, *_ in self._waiting)
        last = self._filled + waiting == self._total
        if waiting < self._size and not last:
            return
        joined = [torch.cat(parts) if len(parts) > 1 else parts[0] for parts in zip(*self._waiting, strict=True)]
        whole = waiting if last else waiting - waiting % self._size
        self._waiting = [tuple(part[whole:] for part in joined)] if whole < waiting else []
        try:
            for start in range(0, whole, self._size):
                self._keep(self._function(*(part[start : min(start + self._size, whole)] for part in joined)))
        except Exception as error:  # of this answer alone: the others go on
            self.fail(error)

    def _keep(self, values: Tensor) -> None:
        if self._values is None:
            # Allocated once: small results kept between large blocks would leave the freed blocks' memory in pieces.
            self._values = values.new_empty(self._total, *values.shape[1:])
        self._values[self._filled : self._filled + len(values)] = values
        self._filled += len(values)


class Reading:
    """True images [N,C,H,W] and their samples [N,S,C,H,W], read once for all answers that are asked before one is taken.

    >>> reading = Reading(truth, samples)
    >>> brightness = reading.ask(lambda truth, samples: samples.float().mean((2, 3, 4)), size=64)
    >>> brightness.result().shape
    torch.Size([1000, 16])
    """

    def __init__(self, truth: Rows, samples: Rows):
        self._truth, self._samples = truth, samples
        self._asked: list[tuple[Answer, Callable[[slice, Tensor, Tensor], tuple[Tensor, ...]]]] = []

    def ask(self, function: Callable[..., Tensor], size: int, others: Sequence[Rows] = ()) -> Answer:
        """`function(truth [b,C,H,W], samples [b,S,C,H,W], *others [b,...])` -> [b,...] for blocks of `size` images."""
        answer = Answer(self.read, function, size, len(self._truth))
        self._asked.append((answer, lambda rows, truth, samples: (truth, samples, *(other[rows] for other in others))))
        return answer

    def ask_truth(self, function: Callable[[Tensor], Tensor], size: int) -> Answer:
        """`function(images [b,C,H,W])` -> [b,...] for all true images, `size` at a time."""
        answer = Answer(self.read, function, size, len(self._truth))
        self._asked.append((answer, lambda rows, truth, samples: (truth,)))
        return answer

    def ask_samples(self, function: Callable[[Tensor], Tensor], size: int) -> Answer:
        """`function(images [b,C,H,W])` -> [b,...] for all samples of all images, `size` at a time."""
        answer = Answer(self.read, function, size, len(self._samples) * self._samples.shape[1])
        self._asked.append((answer, lambda rows, truth, samples: (samples.flatten(0, 1),)))
        return answer

    def read(self) -> None:
        """Answers all that was asked. Raises what the rows raise; the answers then raise it too."""
        asked, self._asked = self._asked, []
        if not asked:
            return
        size = max(1, _READ_VALUES // self._samples.shape[1:].numel())
        try:
            for start in range(0, len(self._truth), size):
                rows = slice(start, min(start + size, len(self._truth)))
                truth, samples = self._truth[rows], self._samples[rows]
                for answer, chosen in asked:
                    answer.take(*chosen(rows, truth, samples))
        except Exception as error:
            for answer, _ in asked:
                answer.fail(error)
            raise


class Reordered:
    """Rows in another order: row i is row `order[i]` of the given ones, order int64 [N]."""

    def __init__(self, rows: Rows, order: Tensor):
        self._rows, self._order = rows, order
        self.shape, self.dtype, self.device = rows.shape, rows.dtype, rows.device

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, rows: slice | Tensor, /) -> Tensor:
        return self._rows[self._order[rows]]
