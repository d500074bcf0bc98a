"""One run's directory: reading and writing what is in it beside the samples, and whose it is. Needs no torch.

`vfmbench.results.paths` has the layout. Records and measurements' hashes are compiled from the shards, which
`vfmbench.results.shards` reads and writes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from vfmbench.config import RunIdentity
from vfmbench.errors import UserError
from vfmbench.files import locked_directory, replace_file
from vfmbench.options import validate
from vfmbench.results.columns import Columns, read_columns, write_columns
from vfmbench.results.paths import RunPaths
from vfmbench.results.schema import SCHEMA_VERSION, MetricResult, MetricRow, UnreadableMetrics, metrics_json, read_metrics

if TYPE_CHECKING:
    import pandas as pd

    from vfmbench.interfaces import Dataset


@dataclass(frozen=True)
class StoredConfig:
    """Content of config.yaml. `hash` is the identity's when it was written, and the name of the directory."""

    hash: str
    identity: RunIdentity


class RunStore:
    """One run's directory. Whoever writes into it holds it by `writing`."""

    def __init__(self, directory: Path):
        self.paths = RunPaths(directory)

    @classmethod
    def at(cls, out: Path, identity: RunIdentity) -> RunStore:
        return cls(RunPaths.of(out, identity).directory)

    @property
    def directory(self) -> Path:
        return self.paths.directory

    @contextmanager
    def writing(self, identity: RunIdentity, fresh: bool, part: str | None = None) -> Iterator[None]:
        """Holds the directory, or one part of it (see `vfmbench.running.sharding`), for one process.

        Raises UserError if it cannot be written, is in use by another process, or was made by another configuration.
        """
        for ancestor in self.directory.parents:
            if RunPaths(ancestor).exists:
                raise UserError(f"--out: {ancestor} is itself a run directory; give the folder above the suites' folders.")
        with locked_directory(self.directory, part):
            self.paths.samples.mkdir(exist_ok=True)
            if fresh:
                for path in self.paths.written():
                    path.unlink()
            elif self.paths.config.exists():
                self._check(identity)
            yield

    def _check(self, identity: RunIdentity) -> None:
        """Raises UserError if the directory is another run's."""
        try:
            stored = self.config().identity.model_dump(mode="json")
        except UserError as error:
            raise UserError(f"{error} Choose another --out, or use --fresh to start over.") from None
        changed = sorted(key for key, value in identity.model_dump(mode="json").items() if stored.get(key) != value)
        if changed:
            raise UserError(
                f"{self.directory} was made by another configuration (it differs in {', '.join(changed)}); "
                "choose another --out, or use --fresh to start over."
            )

    def write_config(self, identity: RunIdentity) -> None:
        content = {"schema_version": SCHEMA_VERSION, "hash": identity.hash, "identity": identity.model_dump(mode="json")}
        replace_file(self.paths.config, yaml.safe_dump(content, sort_keys=False).encode())

    def config(self) -> StoredConfig:
        """Raises UserError if config.yaml is not there, is not a run's, or was written by another version."""
        path = self.paths.config
        try:
            content = yaml.safe_load(path.read_text())
            version, name, identity = content["schema_version"], content["hash"], content["identity"]
        except (OSError, yaml.YAMLError, KeyError, TypeError):
            raise UserError(f"{path} is not a run's configuration.") from None
        # Samples in another layout would be set aside as unreadable, as if they had to be drawn again.
        if version != SCHEMA_VERSION:
            raise UserError(
                f"{self.directory} was stored by another version of vfmbench (layout {version}, this one reads "
                f"{SCHEMA_VERSION})."
            )
        return StoredConfig(name, validate(RunIdentity, identity, f"{path}: identity."))

    def write_provenance(self, facts: Mapping[str, Any]) -> None:
        _write_json(self.paths.provenance, facts)

    def provenance(self) -> dict[str, Any]:
        """What `write_provenance` was given last; empty before."""
        return _read_json(self.paths.provenance)

    def write_part(self, part: str, facts: Mapping[str, Any]) -> None:
        """What a part's process says about itself, beside the other parts'."""
        _write_json(self.paths.part(part).facts, facts)

    def part(self, part: str) -> dict[str, Any]:
        return _read_json(self.paths.part(part).facts)

    def write_dataset(self, identity: RunIdentity, dataset: Dataset) -> None:
        """The split's hash, the planned images' files in order, and those that could not be decoded."""
        # Other runs of the process may have read more of it.
        errors = [dataset.errors[key] for key in sorted(dataset.errors) if key < identity.num_images]
        content = {
            "sha256": dataset.sha256,
            "split": identity.split,
            "files": list(dataset.files[: identity.num_images]),
            "errors": {"count": len(errors), "messages": errors},
        }
        _write_json(self.paths.dataset, content)

    def write_measurements(self, hashes: Mapping[int, str]) -> None:
        """Args: hashes: of each image's measurement, by the image's position."""
        _write_json(self.paths.measurements, {str(index): hashes[index] for index in sorted(hashes)})

    def measurements(self) -> dict[str, str]:
        """Hash of each image's measurement by the image's position; empty before they are compiled."""
        return _read_json(self.paths.measurements)

    def write_records(self, records: pd.DataFrame) -> None:
        replace_file(self.paths.records, lambda path: records.to_parquet(path, index=False))

    def records(self) -> pd.DataFrame:
        """A row for each image and sample."""
        import pandas as pd

        return pd.read_parquet(self.paths.records)

    def scored(self) -> list[int]:
        """Positions of the images that the stored metrics are of; none if there are no metrics."""
        columns = read_columns(self.paths.per_image)
        return columns["index"].tolist() if columns else []

    def write_metrics(self, results: Sequence[MetricResult], index: Sequence[int]) -> None:
        """Stores metrics' rows, and beside them their values for each image, their replicates and their curves.

        Args:
            results: all that one or several metrics gave.
            index: position of each image they were computed from. What other metrics stored earlier stays in place if it is of
                the same images, and is dropped if not.
        """
        keep = self.scored() == list(index)
        replaced = {result.row.metric for result in results}
        kept = [row for row in self.readable_metrics() if row.metric not in replaced] if keep else []
        per_image = {result.row.name: result.per_image for result in results if result.per_image is not None}
        # A metric of the first images only has no values for the others.
        per_image = {
            name: np.pad(column, (0, len(index) - len(column)), constant_values=np.nan) for name, column in per_image.items()
        }
        tables: dict[Path, Columns] = {
            self.paths.curves: {result.row.name: result.curves for result in results if result.curves is not None},
            self.paths.per_image: {"index": np.array(index, dtype=np.int64), **per_image},
            self.paths.replicates: {result.row.name: result.replicates for result in results if result.replicates is not None},
        }
        names = {row.name for row in kept}
        for path, columns in tables.items():
            earlier = read_columns(path) if keep else {}
            write_columns(path, {**columns, **{name: column for name, column in earlier.items() if name in names}})
        replace_file(self.paths.metrics, metrics_json([*kept, *(result.row for result in results)]))

    def metrics(self) -> list[MetricRow]:
        """Raises UnreadableMetrics."""
        return read_metrics(self.paths.metrics)

    def readable_metrics(self) -> list[MetricRow]:
        """As `metrics`, but none where they cannot be read and have to be computed again."""
        try:
            return self.metrics()
        except UnreadableMetrics:
            return []


def _write_json(path: Path, content: Any) -> None:
    replace_file(path, json.dumps(content, indent=1, default=str).encode())


def _read_json(path: Path) -> dict[str, Any]:
    """Empty if there is no such file."""
    return json.loads(path.read_text()) if path.exists() else {}
