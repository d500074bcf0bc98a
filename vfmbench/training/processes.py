"""The processes that train a stage together, as `accelerate launch` or `torchrun` started them, and the rows of each.

Networks are not wrapped in DistributedDataParallel. A wrapper cannot be differentiated in forward mode, which the mean-flow
target needs; it knows nothing of a step that calls two networks several times, one of them also as a frozen target; and a step
of the paper's networks (140 M parameters) takes far longer than one all-reduce of their gradients, so that there is little to
gain from overlapping the two. Every process holds the same weights, optimisers and averages, and makes the same update from the
gradients that `average_gradients` leaves.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import Tensor, nn

from vfmbench.errors import UserError

# Others wait while the main process writes a checkpoint or fills a file system's cache.
_PATIENCE = timedelta(hours=2)


@dataclass(frozen=True)
class Share:
    """Every `parts`-th row of a step's batch, from row `part` on: what one process computes at once.

    Random numbers are drawn for the whole batch and then cut, so that those of a row depend neither on the number of processes
    nor on that of the micro-batches. Rows are dealt out in turn because stages treat the first rows of a batch otherwise than
    the last.
    """

    part: int = 0
    parts: int = 1

    def cut(self, whole: Tensor) -> Tensor:
        """The share's rows of a tensor over the whole batch."""
        return whole[self.part :: self.parts]

    def whole(self, rows: int) -> int:
        """Size of the whole batch, if this share of it has so many rows."""
        return rows * self.parts

    def before(self, row: int) -> int:
        """How many of the share's rows lie before this row of the whole batch."""
        return len(range(self.part, row, self.parts))


WHOLE = Share()


@dataclass(frozen=True)
class Processes:
    """A group of `count` equal processes, of which this one has the number `rank`; number 0 alone writes and prints."""

    device: torch.device
    rank: int = 0
    count: int = 1

    @property
    def main(self) -> bool:
        return self.rank == 0

    def shares(self, batch_size: int, accumulate: int) -> list[Share]:
        """This process's micro-batches of a step. Raises UserError if they cannot all be of one size."""
        parts = self.count * accumulate
        if batch_size % parts:
            processes = f"{self.count} process{'es' * (self.count > 1)}"
            raise UserError(
                f"batch_size must be a multiple of {parts}, for accumulate={accumulate} on {processes}, not {batch_size}."
            )
        return [Share(self.rank * accumulate + part, parts) for part in range(accumulate)]

    def mean(self, values: Tensor) -> Tensor:
        """The mean over processes, entry by entry; a value that is not finite in one of them is so in the mean."""
        if self.count == 1:
            return values
        total = values.detach().clone()
        torch.distributed.all_reduce(total)
        return total / self.count

    def average_gradients(self, networks: Iterable[nn.Module]) -> None:
        """Replaces every gradient by its mean over processes; a parameter that got none here counts as zero."""
        if self.count == 1:
            return
        parameters = [parameter for network in networks for parameter in network.parameters() if parameter.requires_grad]
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        # One message of all gradients: a second buffer of their size, but no start-up time for every parameter.
        averaged = self.mean(torch.cat([gradient.flatten() for gradient in gradients]))
        pieces = averaged.split([gradient.numel() for gradient in gradients])
        for gradient, piece in zip(gradients, pieces, strict=True):
            gradient.copy_(piece.view_as(gradient))

    def wait(self) -> None:
        """Returns once every process has come here."""
        if self.count > 1:
            torch.distributed.barrier()


ALONE = Processes(torch.device("cpu"))


def join(device: torch.device) -> Processes:
    """The processes that this one was started with, on their own devices; a process started by itself is alone.

    The launcher's precision and accumulation are not read: they are options of the training.
    """
    if "LOCAL_RANK" not in os.environ:
        return Processes(device)
    from accelerate import PartialState

    state = PartialState(cpu=device.type == "cpu", timeout=_PATIENCE)
    # accelerate numbers CPUs by process, and torch knows only one.
    own = device if state.device.type == "cpu" else state.device
    return Processes(own, state.process_index, state.num_processes)
