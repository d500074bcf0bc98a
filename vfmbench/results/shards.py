"""A run's samples: safetensors files, one a batch, written in one step and read by need. Needs no torch."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from vfmbench.config import RunIdentity
from vfmbench.errors import Status, UserError
from vfmbench.files import replace_file
from vfmbench.results.paths import RunPaths
from vfmbench.results.run_directory import RunStore

Array = NDArray[Any]

PICTURED = 8
"""Images at the beginning of a run that pictures show."""

_TENSORS = ("images", "index", "label", "residual", "log_likelihood")
_OPTIONAL_TENSORS = ("prior", "source", "effective_samples")


@dataclass(frozen=True)
class Shard:
    """One batch of results: B images with S samples each.

    Attributes:
        images: as the suite's domain stores them, [B,S,C,H,W].
        index, label: int64 [B].
        residual: normalised data-fidelity residual of the stored images, float32 [B,S]; not finite where a sample diverged.
        log_likelihood: of a fresh observation of the true image under the stored images, float32 [B,S], nats.
        measurement_hash: SHA-256 of each measurement's bytes, B strings.
        cost: per-sample cost of the batch: seconds, network_seconds, peak_memory_bytes, one entry per evaluation kind.
        prior: draws from the method's own prior, as `images`; None where it has none or the suite does not ask for them.
        source: noise that each sample was made from, float32, of the latents' shape; None where the domain does not keep it.
        effective_samples: what the S samples of an image are worth in independent draws, float32 [B]; None: S.
    """

    images: Array
    index: Array
    label: Array
    residual: Array
    log_likelihood: Array
    measurement_hash: Sequence[str]
    cost: Mapping[str, float]
    prior: Array | None = None
    source: Array | None = None
    effective_samples: Array | None = None


@dataclass(frozen=True, eq=False)
class _File:
    """What is known of a shard's file without its large tensors: positions of its images, names of its tensors, its header."""

    path: Path
    index: list[int]
    names: frozenset[str]
    header: Mapping[str, str]


class Shards:
    """The samples of the run in a directory, as they are when they are first asked for.

    >>> shards = Shards(run.results().directory)
    >>> shards.read("images", shards.positions[:2]).shape
    (2, 16, 1, 8, 8)

    A file that cannot be read is set aside, so that its batch is drawn again. What is read of the first `PICTURED` images stays
    in memory, because pictures show after metrics what metrics have read.
    """

    def __init__(self, directory: Path):
        self._paths = RunPaths(directory)
        self._kept: dict[tuple[str, int], Array] = {}

    def write(self, shard: Shard) -> None:
        """Adds a batch; what was asked of this object before does not change."""
        found = {name: getattr(shard, name) for name in (*_TENSORS, *_OPTIONAL_TENSORS)}
        tensors = {name: np.ascontiguousarray(array) for name, array in found.items() if array is not None}
        header = {"cost": json.dumps(shard.cost), "measurement_hash": json.dumps(shard.measurement_hash)}
        replace_file(self._paths.shard(int(shard.index[0]), int(shard.index[-1])), save(tensors, header))

    @cached_property
    def _files(self) -> list[_File]:
        found = []
        for path in self._paths.shards():
            try:
                with safe_open(path, framework="numpy") as file:
                    found.append(_File(path, file.get_tensor("index").tolist(), frozenset(file.keys()), file.metadata()))
            except (SafetensorError, OSError):
                path.rename(path.with_suffix(".unreadable"))
        return found

    @cached_property
    def _places(self) -> dict[int, tuple[_File, int]]:
        """The file of each image, and the row in it."""
        return {position: (file, row) for file in self._files for row, position in enumerate(file.index)}

    @cached_property
    def positions(self) -> list[int]:
        """Positions of the images whose samples are stored, in order."""
        return sorted(self._places)

    def evaluable(self) -> list[int]:
        """Positions of the images whose samples are all done, in order: what metrics are computed from."""
        if not self.positions:
            return []
        broken = {self.positions[row] for row, _ in np.argwhere(~np.isfinite(self.read("residual")))}
        return [position for position in self.positions if position not in broken]

    def has(self, name: str) -> bool:
        """Whether samples are stored, all with this tensor of `Shard`."""
        return bool(self._files) and all(name in file.names for file in self._files)

    def read(self, name: str, positions: Sequence[int] | None = None, samples: int | None = None) -> Array:
        """Rows of one tensor of `Shard`, [n,...]; nothing else is read.

        Args:
            positions: of the images, in the order wanted; None for all that are stored, in order.
            samples: only the first so many of each image; None for all.

        Raises:
            UserError: no samples are stored.
        """
        wanted = self.positions if positions is None else list(positions)
        missing = [position for position in wanted if (name, position) not in self._kept]
        rows = self._read(name, missing, samples)
        found = dict(zip(missing, rows, strict=True))
        if samples is None:
            self._kept |= {
                (name, position): found[position].copy() for position in self.positions[:PICTURED] if position in found
            }
        if len(missing) == len(wanted):
            return rows
        return np.stack([found[at] if at in found else self._kept[name, at][:samples] for at in wanted])

    def _read(self, name: str, positions: Sequence[int], samples: int | None) -> Array:
        if not self._files:
            raise UserError(f"{self._paths.directory} holds no samples.")
        result = self._part(self._files[0], name, slice(0), samples)
        result = np.empty((len(positions), *result.shape[1:]), result.dtype)
        for file, row, place, count in self._runs(positions):
            result[place : place + count] = self._part(file, name, slice(row, row + count), samples)
        return result

    def _runs(self, positions: Sequence[int]) -> Iterator[tuple[_File, int, int, int]]:
        """Stretches of images that follow each other in a file: the file, the first one's row, its place here, their number."""
        start = 0
        places = [self._places[position] for position in positions]
        for end in range(1, len(places) + 1):
            file, row = places[start]
            if end == len(places) or places[end] != (file, row + end - start):
                yield file, row, start, end - start
                start = end

    @staticmethod
    def _part(file: _File, name: str, rows: slice, samples: int | None) -> Array:
        with safe_open(file.path, framework="numpy") as opened:
            tensor = opened.get_slice(name)
            return tensor[rows] if samples is None else tensor[rows, :samples]

    def records(self, seed: int) -> pd.DataFrame:
        """A row per image and sample, as a run stores them; in the order of the files."""
        return pd.concat([_records(file, seed) for file in self._files], ignore_index=True)

    def measurement_hashes(self) -> dict[int, str]:
        """SHA-256 of each image's measurement, by its position."""
        return {
            position: text
            for file in self._files
            for position, text in zip(file.index, json.loads(file.header["measurement_hash"]), strict=True)
        }


def _records(file: _File, seed: int) -> pd.DataFrame:
    with safe_open(file.path, framework="numpy") as opened:
        label, residual, likelihood = (opened.get_tensor(name) for name in ("label", "residual", "log_likelihood"))
        rows, samples = residual.shape
        known = "effective_samples" in file.names
        effective = opened.get_tensor("effective_samples") if known else np.full(rows, samples)
    cost = json.loads(file.header["cost"])
    return pd.DataFrame(
        {
            "index": np.repeat(file.index, samples),
            "sample": np.tile(np.arange(samples), rows),
            "label": np.repeat(label, samples),
            "seed": seed,
            "residual": residual.ravel().astype(float),
            "log_likelihood": likelihood.ravel().astype(float),
            "effective_samples": np.repeat(effective, samples).astype(float),
            "status": np.where(np.isfinite(residual.ravel()), Status.DONE.value, Status.DIVERGED.value),
            "nfe": cost["network_forwards"],
            **cost,
        }
    )


def common_positions(stored: Sequence[Shards]) -> list[int]:
    """Positions of the images that all runs have samples of, in order."""
    return sorted(set.intersection(*(set(shards.positions) for shards in stored)))


def compile_tables(shards: Shards, store: RunStore, identity: RunIdentity) -> pd.DataFrame:
    """Stores the records and the measurements' hashes from the shards, and returns the records.

    A planned image that no shard holds could not be read: its rows are `failed`, with label -1 and without numbers.

    Raises:
        UserError: there are no shards.
    """
    if not shards.positions:
        raise UserError(f"None of the {identity.num_images} images could be read; {store.paths.dataset} says why.")
    failed = [
        {"index": index, "sample": sample, "label": -1, "seed": identity.seed, "status": Status.FAILED.value}
        for index in sorted(set(range(identity.num_images)).difference(shards.positions))
        for sample in range(identity.samples)
    ]
    records = shards.records(identity.seed)
    if failed:
        records = pd.concat([records, pd.DataFrame(failed)], ignore_index=True)
    store.write_records(records)
    store.write_measurements(shards.measurement_hashes())
    return records
