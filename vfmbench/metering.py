"""Counts network evaluations and the time spent inside networks, so that a run can state its cost and its own overhead."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from vfmbench.measurement import Evaluations

KINDS = tuple(Evaluations.__dataclass_fields__)


class Meter:
    """Accumulates evaluations (rows times calls) by kind, and seconds inside networks.

    On CUDA, calls are timed by events that are read only when the total is asked for, so the device never waits.
    """

    def __init__(self, device: torch.device):
        self._cuda = device.type == "cuda"
        self.reset()

    def reset(self) -> None:
        self.counts = dict.fromkeys(KINDS, 0)
        self._seconds = 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def measure(self, kind: str, rows: int) -> Iterator[None]:
        self.counts[kind] += rows
        if self._cuda:
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            yield
            end.record()
            self._events.append((start, end))
        else:
            start_time = time.perf_counter()
            yield
            self._seconds += time.perf_counter() - start_time

    def seconds(self) -> float:
        if self._events:
            torch.cuda.synchronize()
            self._seconds += sum(start.elapsed_time(end) for start, end in self._events) / 1000
            self._events.clear()
        return self._seconds

    def per_sample(self, num_samples: int) -> Evaluations:
        return Evaluations(**{kind: count / num_samples for kind, count in self.counts.items()})
