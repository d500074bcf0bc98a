"""The run directory: shards written atomically one batch at a time, so that a run killed at any moment loses only the batch
that is being drawn and the three at most that wait to be written.

Layout (`<out>/<suite>/<task>/<method>/<hash>/`): `config.yaml`, `provenance.json`, `samples/shard-*.safetensors`,
`dataset.json`, `measurements.json`, `records.parquet`, `metrics.json`, `metrics_per_image.parquet`, `grid.png`, `log.txt`. A
shard carries its images and its records; the tables beside it are compiled from the shards.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pandas as pd
import torch
import yaml
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from vfmbench.base import Status, UserError
from vfmbench.config import RunIdentity
from vfmbench.files import locked_directory, replace_file
from vfmbench.interfaces import Dataset, MetricValue

LOG = logging.getLogger("vfmbench")

SCHEMA_VERSION = 2
_SHARD_TENSORS = ("images", "index", "label", "residual", "log_likelihood")
_OPTIONAL_TENSORS = ("prior", "source", "effective_samples")
_SHARDS_WAITING = 2


@dataclass(frozen=True)
class Shard:
    """One batch of results: B images with S samples each.

    Attributes:
        images: uint8 [B,S,C,H,W]; float32 for points.
        index, label: int64 [B].
        residual: normalised data-fidelity residual of the stored images, float32 [B,S].
        log_likelihood: of a fresh observation of the true image under the stored images, float32 [B,S], nats.
        measurement_hash: SHA-256 of each measurement's bytes, B strings.
        cost: per-sample cost of the batch: seconds, network_seconds, peak_memory_bytes, one entry per evaluation kind.
        prior: draws from the method's own prior, as `images`; None where it has none or the suite does not ask for them.
        source: noise that each sample was made from, float32, of the latents' shape; points only.
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
        """A row per image and sample, as in records.parquet."""
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

    def __init__(self, store: RunStore):
        self._store = store
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="shard-writer")
        self._waiting: deque[Future[None]] = deque()

    def __enter__(self) -> Self:
        return self

    def write(self, finish: Callable[[], Shard]) -> None:
        """Has the shard that `finish` returns written; `finish` is called in the writing thread.

        Returns when no more than two shards wait behind the one that is being written.
        """
        self._waiting.append(self._thread.submit(lambda: self._store.write_shard(finish())))
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


def metric_row(metric: str, value: MetricValue) -> dict[str, Any]:
    """One entry of metrics.json; `metric` is the registered name of what computed it."""
    row = {"metric": metric, **asdict(value)}
    del row["per_image"], row["replicates"], row["curves"]
    # JSON has no infinity; such a value carries its explanation in `reason`.
    return {key: None if isinstance(entry, float) and not math.isfinite(entry) else entry for key, entry in row.items()}


class RunStore:
    """One run's directory. Create it through `open`, which checks that it belongs to this configuration and locks it."""

    def __init__(self, directory: Path):
        self.directory = directory

    @classmethod
    def at(cls, out: Path, identity: RunIdentity) -> RunStore:
        return cls(out / identity.suite / identity.task / identity.method / identity.hash)

    @contextmanager
    def writing(self, identity: RunIdentity, fresh: bool, part: str | None = None) -> Iterator[None]:
        """Holds the directory, or one part of it (see `vfmbench.running.sharding`), for one process.

        Raises UserError if it cannot be written, is in use by another process, or was made by another configuration.
        """
        for ancestor in self.directory.parents:
            if os.path.exists(ancestor / "config.yaml") and os.path.exists(ancestor / "samples"):
                raise UserError(f"--out: {ancestor} is itself a run directory; give the folder above the suites' folders.")
        with locked_directory(self.directory, part):
            (self.directory / "samples").mkdir(exist_ok=True)
            if fresh:
                self._clear()
            self._check(identity)
            yield

    def _clear(self) -> None:
        for path in [*self.directory.glob("samples/*"), *self.directory.glob("parts/*/*"), *self.directory.glob("*.*")]:
            if path.is_file() and path.name != ".lock":
                path.unlink()

    def _check(self, identity: RunIdentity) -> None:
        path = self.directory / "config.yaml"
        wanted = identity.model_dump(mode="json")
        if path.exists():
            try:
                content = yaml.safe_load(path.read_text())
                found, version = content["identity"], content["schema_version"]
            except (yaml.YAMLError, KeyError, TypeError):
                raise UserError(f"{path} is not a run's configuration; use --fresh to start over.") from None
            if version != SCHEMA_VERSION:
                raise UserError(
                    f"{self.directory} was stored by another version of vfmbench (layout {version}, this one writes "
                    f"{SCHEMA_VERSION}); choose another --out, or use --fresh to start over."
                )
            changed = sorted(key for key in wanted if found.get(key) != wanted[key])
            if changed:
                raise UserError(
                    f"{self.directory} was made by another configuration (it differs in {', '.join(changed)}); "
                    "choose another --out, or use --fresh to start over."
                )

    def write_config(self, identity: RunIdentity) -> None:
        content = {"schema_version": SCHEMA_VERSION, "hash": identity.hash, "identity": identity.model_dump(mode="json")}
        replace_file(self.directory / "config.yaml", yaml.safe_dump(content, sort_keys=False).encode())

    def config(self) -> dict[str, Any]:
        return yaml.safe_load((self.directory / "config.yaml").read_text())

    def write_provenance(self, facts: Mapping[str, Any]) -> None:
        self._write_json("provenance.json", facts)

    def provenance(self) -> dict[str, Any]:
        path = self.directory / "provenance.json"
        return json.loads(path.read_text()) if path.exists() else {}

    def write_part(self, part: str, facts: Mapping[str, Any]) -> None:
        """What a part's process says about itself, beside the other parts'."""
        self._write_json(f"{part}/part.json", facts)

    def part(self, part: str) -> dict[str, Any]:
        path = self.directory / part / "part.json"
        return json.loads(path.read_text()) if path.exists() else {}

    def write_shard(self, shard: Shard) -> None:
        tensors = {name: getattr(shard, name) for name in (*_SHARD_TENSORS, *_OPTIONAL_TENSORS)}
        tensors = {name: tensor for name, tensor in tensors.items() if tensor is not None}
        header = {"cost": json.dumps(shard.cost), "measurement_hash": json.dumps(shard.measurement_hash)}
        content = save({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, header)
        replace_file(self._shard_path(shard.index), content)

    def _shard_path(self, index: Tensor) -> Path:
        return self.directory / "samples" / f"shard-{int(index[0]):07d}-{int(index[-1]):07d}.safetensors"

    def shards(self) -> list[Shard]:
        """All finished shards in order of their images."""
        result = []
        for tensors, header in self._read_shards(_SHARD_TENSORS, _OPTIONAL_TENSORS):
            hashes, cost = json.loads(header["measurement_hash"]), json.loads(header["cost"])
            result.append(Shard(**tensors, measurement_hash=hashes, cost=cost))
        return result

    def finished(self) -> set[int]:
        """Positions of the images whose samples are stored."""
        return {index for tensors, _ in self._read_shards(("index",)) for index in tensors["index"].tolist()}

    def _read_shards(
        self, names: Sequence[str], optional: Sequence[str] = ()
    ) -> Iterator[tuple[dict[str, Tensor], dict[str, str]]]:
        """The named tensors and the header of each shard. One that cannot be read is set aside and computed again."""
        for path in sorted(self.directory.glob("samples/shard-*.safetensors")):
            try:
                with safe_open(path, framework="pt") as file:
                    present = [*names, *(name for name in optional if name in file.keys())]  # noqa: SIM118 - not a mapping
                    tensors, header = {name: file.get_tensor(name) for name in present}, file.metadata()
            except (SafetensorError, OSError):
                path.rename(path.with_suffix(".unreadable"))
                continue
            yield tensors, header

    def compile_tables(self, identity: RunIdentity) -> pd.DataFrame:
        """Writes records.parquet and measurements.json from the shards and returns the records.

        A planned image that no shard holds could not be read: its rows are `failed`, with label -1 and without numbers.

        Raises:
            UserError: there are no shards.
        """
        shards = self.shards()
        if not shards:
            raise UserError(
                f"None of the {identity.num_images} images could be read; {self.directory / 'dataset.json'} says why."
            )
        stored = {index for shard in shards for index in shard.index.tolist()}
        failed = [
            {"index": index, "sample": sample, "label": -1, "seed": identity.seed, "status": Status.FAILED.value}
            for index in range(identity.num_images)
            for sample in range(identity.samples)
            if index not in stored
        ]
        tables = [shard.records(identity.seed) for shard in shards]
        records = pd.concat([*tables, pd.DataFrame(failed)] if failed else tables, ignore_index=True)
        self._write_table("records.parquet", records)
        hashes = {
            index: text for shard in shards for index, text in zip(shard.index.tolist(), shard.measurement_hash, strict=True)
        }
        self._write_json("measurements.json", {str(index): hashes[index] for index in sorted(hashes)})
        return records

    def write_dataset(self, identity: RunIdentity, dataset: Dataset) -> None:
        """dataset.json: the split's hash, the planned images' files in order, and those that could not be decoded."""
        content = {
            "sha256": dataset.sha256,
            "split": identity.split,
            "files": list(dataset.files[: identity.num_images]),
            "errors": {"count": len(dataset.errors), "messages": [dataset.errors[key] for key in sorted(dataset.errors)]},
        }
        self._write_json("dataset.json", content)

    def evaluable(self) -> list[int]:
        """Positions of the images whose samples are stored and all done, in order: what metrics are computed from."""
        found = self._read_shards(("index", "residual"))
        done = [tensors["index"][tensors["residual"].isfinite().all(1)] for tensors, _ in found]
        return sorted(torch.cat(done).tolist()) if done else []

    def scored(self) -> list[int]:
        """Positions of the images that the stored metrics are of; none if there are no metrics."""
        name = "metrics_per_image.parquet"
        return self.read_table(name)["index"].tolist() if (self.directory / name).exists() else []

    def write_metrics(self, values: Mapping[str, list[MetricValue]], index: list[int]) -> None:
        """metrics.json, metrics_per_image.parquet (a column per metric that is a mean over images), metrics_replicates.parquet
        (a column per statistic of the whole set, its bootstrap replicates) and metrics_curves.parquet (a column per metric with
        a curve, a list of numbers for each image).

        Args:
            values: by the name of the metric that gave them.
            index: position of each image they were computed from. What other metrics stored earlier stays in place if it is of
                the same images, and is dropped if not.
        """
        keep = self.scored() == index
        kept = [row for row in self.metrics() if row["metric"] not in values] if keep else []
        rows = [metric_row(metric, value) for metric, several in values.items() for value in several]
        flat = [value for several in values.values() for value in several]
        per_image = {value.name: value.per_image.numpy() for value in flat if value.per_image is not None}
        # A metric of the first images only has no values for the others.
        per_image = {
            name: np.pad(column, (0, len(index) - len(column)), constant_values=np.nan) for name, column in per_image.items()
        }
        replicates = {value.name: value.replicates.numpy() for value in flat if value.replicates is not None}
        curves = {value.name: list(value.curves.numpy()) for value in flat if value.curves is not None}
        tables = {
            "metrics_curves.parquet": pd.DataFrame(curves),
            "metrics_per_image.parquet": pd.DataFrame({"index": index, **per_image}),
            "metrics_replicates.parquet": pd.DataFrame(replicates),
        }
        names = {row["name"] for row in kept}
        for file, table in tables.items():
            if keep and (self.directory / file).exists():
                earlier = self.read_table(file)
                table = pd.concat([table, earlier[[name for name in earlier if name in names]]], axis=1)
            self._write_table(file, table)
        self._write_json("metrics.json", {"schema_version": SCHEMA_VERSION, "metrics": kept + rows})

    def read_table(self, name: str) -> pd.DataFrame:
        return pd.read_parquet(self.directory / name)

    def _write_table(self, name: str, table: pd.DataFrame) -> None:
        replace_file(self.directory / name, lambda path: table.to_parquet(path, index=False))

    def metrics(self) -> list[dict[str, Any]]:
        path = self.directory / "metrics.json"
        return json.loads(path.read_text())["metrics"] if path.exists() else []

    def _write_json(self, name: str, content: Any) -> None:
        replace_file(self.directory / name, json.dumps(content, indent=1, default=str).encode())
