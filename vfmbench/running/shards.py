"""A run's samples: shards written atomically one batch at a time, so that a run killed at any moment loses only the batch
that is being drawn and the three at most that wait to be written. A shard carries its images and its records.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from vfmbench.config import RunIdentity
from vfmbench.errors import Status, UserError
from vfmbench.files import replace_file
from vfmbench.results.paths import RunPaths
from vfmbench.results.run_directory import RunStore

LOG = logging.getLogger("vfmbench")

_SHARD_TENSORS = ("images", "index", "label", "residual", "log_likelihood")
_OPTIONAL_TENSORS = ("prior", "source", "effective_samples")
_SHARDS_WAITING = 2


@dataclass(frozen=True)
class Shard:
    """One batch of results: B images with S samples each.

    Attributes:
        images: as the suite's domain stores them, [B,S,C,H,W].
        index, label: int64 [B].
        residual: normalised data-fidelity residual of the stored images, float32 [B,S].
        log_likelihood: of a fresh observation of the true image under the stored images, float32 [B,S], nats.
        measurement_hash: SHA-256 of each measurement's bytes, B strings.
        cost: per-sample cost of the batch: seconds, network_seconds, peak_memory_bytes, one entry per evaluation kind.
        prior: draws from the method's own prior, as `images`; None where it has none or the suite does not ask for them.
        source: noise that each sample was made from, float32, of the latents' shape; None where the domain does not keep it.
        effective_samples: what the S samples of an image are worth in independent draws, float32 [B]; None: S.
    """

    images: Tensor
    index: Tensor
    label: Tensor
    residual: Tensor
    log_likelihood: Tensor
    measurement_hash: list[str]
    cost: dict[str, float]
    prior: Tensor | None = None
    source: Tensor | None = None
    effective_samples: Tensor | None = None

    def records(self, seed: int) -> pd.DataFrame:
        """A row per image and sample, as a run stores them."""
        rows, samples = self.residual.shape
        status = np.where(self.residual.flatten().isfinite(), Status.DONE.value, Status.DIVERGED.value)
        effective = torch.full((rows,), float(samples)) if self.effective_samples is None else self.effective_samples
        return pd.DataFrame(
            {
                "index": self.index.repeat_interleave(samples).numpy(),
                "sample": np.tile(np.arange(samples), rows),
                "label": self.label.repeat_interleave(samples).numpy(),
                "seed": seed,
                "residual": self.residual.flatten().double().numpy(),
                "log_likelihood": self.log_likelihood.flatten().double().numpy(),
                "effective_samples": effective.repeat_interleave(samples).double().numpy(),
                "status": status,
                "nfe": self.cost["network_forwards"],
                **self.cost,
            }
        )


class HostCopy:
    """Tensors on their way to the host. The copy from a CUDA device goes into pinned memory, and the device does not wait."""

    def __init__(self, tensors: Mapping[str, Tensor]):
        self._tensors = {name: tensor.detach().to("cpu", non_blocking=True) for name, tensor in tensors.items()}
        self._copied = torch.cuda.Event() if any(tensor.is_cuda for tensor in tensors.values()) else None
        if self._copied is not None:
            self._copied.record()

    def wait(self) -> dict[str, Tensor]:
        """The tensors, as soon as they have arrived; in any thread."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._tensors


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


def measurement_hashes(y: Tensor) -> list[str]:
    """SHA-256 of each row's float32 bytes."""
    return [hashlib.sha256(row.tobytes()).hexdigest() for row in y.detach().float().cpu().contiguous().numpy()]


class Shards:
    """The shards of the run in a directory."""

    def __init__(self, directory: Path):
        self._paths = RunPaths(directory)

    def write(self, shard: Shard) -> None:
        tensors = {name: getattr(shard, name) for name in (*_SHARD_TENSORS, *_OPTIONAL_TENSORS)}
        tensors = {name: tensor for name, tensor in tensors.items() if tensor is not None}
        header = {"cost": json.dumps(shard.cost), "measurement_hash": json.dumps(shard.measurement_hash)}
        content = save({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, header)
        replace_file(self._paths.shard(int(shard.index[0]), int(shard.index[-1])), content)

    def read(self) -> list[Shard]:
        """All finished shards in order of their images."""
        result = []
        for tensors, header in self._read(_SHARD_TENSORS, _OPTIONAL_TENSORS):
            hashes, cost = json.loads(header["measurement_hash"]), json.loads(header["cost"])
            result.append(Shard(**tensors, measurement_hash=hashes, cost=cost))
        return result

    def finished(self) -> set[int]:
        """Positions of the images whose samples are stored."""
        return {index for tensors, _ in self._read(("index",)) for index in tensors["index"].tolist()}

    def _read(self, names: Sequence[str], optional: Sequence[str] = ()) -> Iterator[tuple[dict[str, Tensor], dict[str, str]]]:
        """The named tensors and the header of each shard. One that cannot be read is set aside and computed again."""
        for path in self._paths.shards():
            try:
                with safe_open(path, framework="pt") as file:
                    present = [*names, *(name for name in optional if name in file.keys())]  # noqa: SIM118 - not a mapping
                    tensors, header = {name: file.get_tensor(name) for name in present}, file.metadata()
            except (SafetensorError, OSError):
                path.rename(path.with_suffix(".unreadable"))
                continue
            yield tensors, header

    def evaluable(self) -> list[int]:
        """Positions of the images whose samples are stored and all done, in order: what metrics are computed from."""
        found = self._read(("index", "residual"))
        done = [tensors["index"][tensors["residual"].isfinite().all(1)] for tensors, _ in found]
        return sorted(torch.cat(done).tolist()) if done else []


def compile_tables(store: RunStore, identity: RunIdentity) -> pd.DataFrame:
    """Stores the records and the measurements' hashes from the shards, and returns the records.

    A planned image that no shard holds could not be read: its rows are `failed`, with label -1 and without numbers.

    Raises:
        UserError: there are no shards.
    """
    shards = Shards(store.directory).read()
    if not shards:
        raise UserError(f"None of the {identity.num_images} images could be read; {store.paths.dataset} says why.")
    stored = {index for shard in shards for index in shard.index.tolist()}
    failed = [
        {"index": index, "sample": sample, "label": -1, "seed": identity.seed, "status": Status.FAILED.value}
        for index in range(identity.num_images)
        for sample in range(identity.samples)
        if index not in stored
    ]
    tables = [shard.records(identity.seed) for shard in shards]
    records = pd.concat([*tables, pd.DataFrame(failed)] if failed else tables, ignore_index=True)
    store.write_records(records)
    hashes = {index: text for shard in shards for index, text in zip(shard.index.tolist(), shard.measurement_hash, strict=True)}
    store.write_measurements(hashes)
    return records
