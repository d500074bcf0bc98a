"""The run directory: what is in it beside the samples, and whose it is.

Layout (`<out>/<suite>/<task>/<method>/<hash>/`): `config.yaml`, `provenance.json`, `samples/shard-*.safetensors`,
`dataset.json`, `measurements.json`, `records.parquet`, `metrics.json`, `metrics_per_image.parquet`, `grid.png`, `log.txt`. The
tables are compiled from the shards (`vfmbench.running.shards`). Reading and writing need no torch.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import yaml

from vfmbench.config import RunIdentity
from vfmbench.errors import UserError
from vfmbench.files import locked_directory, replace_file
from vfmbench.results.schema import SCHEMA_VERSION, MetricResult, MetricRow, UnreadableMetrics, metrics_json, read_metrics

if TYPE_CHECKING:
    from vfmbench.interfaces import Dataset

_METRICS = "metrics.json"


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
        self.write_json("provenance.json", facts)

    def provenance(self) -> dict[str, Any]:
        path = self.directory / "provenance.json"
        return json.loads(path.read_text()) if path.exists() else {}

    def write_part(self, part: str, facts: Mapping[str, Any]) -> None:
        """What a part's process says about itself, beside the other parts'."""
        self.write_json(f"{part}/part.json", facts)

    def part(self, part: str) -> dict[str, Any]:
        path = self.directory / part / "part.json"
        return json.loads(path.read_text()) if path.exists() else {}

    def write_dataset(self, identity: RunIdentity, dataset: Dataset) -> None:
        """dataset.json: the split's hash, the planned images' files in order, and those that could not be decoded."""
        # Other runs of the process may have read more of it.
        errors = [dataset.errors[key] for key in sorted(dataset.errors) if key < identity.num_images]
        content = {
            "sha256": dataset.sha256,
            "split": identity.split,
            "files": list(dataset.files[: identity.num_images]),
            "errors": {"count": len(errors), "messages": errors},
        }
        self.write_json("dataset.json", content)

    def scored(self) -> list[int]:
        """Positions of the images that the stored metrics are of; none if there are no metrics."""
        name = "metrics_per_image.parquet"
        return self.read_table(name)["index"].tolist() if (self.directory / name).exists() else []

    def write_metrics(self, results: Sequence[MetricResult], index: list[int]) -> None:
        """metrics.json, metrics_per_image.parquet (a column per metric that is a mean over images), metrics_replicates.parquet
        (a column per statistic of the whole set, its bootstrap replicates) and metrics_curves.parquet (a column per metric with
        a curve, a list of numbers for each image).

        Args:
            results: all that one or several metrics gave.
            index: position of each image they were computed from. What other metrics stored earlier stays in place if it is of
                the same images, and is dropped if not.
        """
        keep = self.scored() == index
        replaced = {result.row.metric for result in results}
        kept = [row for row in self.readable_metrics() if row.metric not in replaced] if keep else []
        per_image = {result.row.name: result.per_image for result in results if result.per_image is not None}
        # A metric of the first images only has no values for the others.
        per_image = {
            name: np.pad(column, (0, len(index) - len(column)), constant_values=np.nan) for name, column in per_image.items()
        }
        replicates = {result.row.name: result.replicates for result in results if result.replicates is not None}
        curves = {result.row.name: list(result.curves) for result in results if result.curves is not None}
        tables = {
            "metrics_curves.parquet": pd.DataFrame(curves),
            "metrics_per_image.parquet": pd.DataFrame({"index": index, **per_image}),
            "metrics_replicates.parquet": pd.DataFrame(replicates),
        }
        names = {row.name for row in kept}
        for file, table in tables.items():
            if keep and (self.directory / file).exists():
                earlier = self.read_table(file)
                table = pd.concat([table, earlier[[name for name in earlier if name in names]]], axis=1)
            self.write_table(file, table)
        replace_file(self.directory / _METRICS, metrics_json([*kept, *(result.row for result in results)]))

    def read_table(self, name: str) -> pd.DataFrame:
        return pd.read_parquet(self.directory / name)

    def write_table(self, name: str, table: pd.DataFrame) -> None:
        replace_file(self.directory / name, lambda path: table.to_parquet(path, index=False))

    def metrics(self) -> list[MetricRow]:
        """Raises UnreadableMetrics."""
        return read_metrics(self.directory / _METRICS)

    def readable_metrics(self) -> list[MetricRow]:
        """As `metrics`, but none where they cannot be read and have to be computed again."""
        try:
            return self.metrics()
        except UnreadableMetrics:
            return []

    def write_json(self, name: str, content: Any) -> None:
        replace_file(self.directory / name, json.dumps(content, indent=1, default=str).encode())
