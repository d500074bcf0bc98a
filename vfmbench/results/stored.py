"""Finished and unfinished runs as they lie in their directories; nothing here runs a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from numpy.typing import NDArray

from vfmbench.errors import Status, UserError, unknown_name
from vfmbench.results.run_directory import RunStore
from vfmbench.results.schema import SCHEMA_VERSION, MetricRow

_METHOD_KEYS = ("method", "method_options", "plugin_sha256", "weights_sha256", "precision")
_HASH_DIGITS = 6


@dataclass(frozen=True)
class StoredRun:
    """What reports read of one run.

    Attributes:
        identity: the run's `RunIdentity` as it was written.
        hash: of the identity; the name of the run's directory.
    """

    store: RunStore
    identity: Mapping[str, Any]
    hash: str

    @classmethod
    def read(cls, store: RunStore) -> StoredRun:
        """Raises UserError if the directory's config.yaml is not a run's, or was written by another version."""
        try:
            config = store.config()
            run, version = cls(store, config["identity"], config["hash"]), config["schema_version"]
        except (yaml.YAMLError, KeyError, TypeError):
            raise UserError(f"{store.directory / 'config.yaml'} is not a run's configuration.") from None
        if version != SCHEMA_VERSION:
            raise UserError(
                f"{store.directory} was stored by another version of vfmbench (layout {version}, this one reads "
                f"{SCHEMA_VERSION})."
            )
        return run

    @property
    def status(self) -> Status:
        return Status(self.store.provenance().get("status", Status.MISSING))

    @property
    def note(self) -> str:
        facts = self.store.provenance()
        return facts.get("error") or facts.get("note", "")

    @cached_property
    def metrics(self) -> dict[str, MetricRow]:
        """Rows of metrics.json by name. Raises UnreadableMetrics."""
        return {row.name: row for row in self.store.metrics()}

    @cached_property
    def per_image(self) -> pd.DataFrame:
        """metrics_per_image.parquet by position of the image."""
        table = self._table("metrics_per_image.parquet")
        return table.set_index("index") if "index" in table else table

    @cached_property
    def replicates(self) -> pd.DataFrame:
        return self._table("metrics_replicates.parquet")

    @cached_property
    def curves(self) -> dict[str, NDArray[np.float64]]:
        """Each image's part of a metric's curve, float64 [n,k], by the metric's name."""
        table = self._table("metrics_curves.parquet")
        return {name: np.stack(table[name].tolist()) for name in table}

    def _table(self, name: str) -> pd.DataFrame:
        return self.store.read_table(name) if (self.store.directory / name).exists() else pd.DataFrame()

    @property
    def image_set(self) -> str:
        """Equal for runs that measured and sampled the same images equally often: only they are compared."""
        return yaml.safe_dump({key: value for key, value in self.identity.items() if key not in _METHOD_KEYS})


def find_runs(
    folders: Sequence[Path], tasks: Sequence[str] | None = None, methods: Sequence[str] | None = None
) -> list[StoredRun]:
    """The runs in and below the folders, in order of their paths; with `methods`, in that order of methods.

    Raises:
        UserError: a folder does not exist, there are no runs, a task or method has none, or a run lies in two places.
    """
    paths = {}
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{folder} is not a folder.")
        paths.update({path.parent.resolve(): path.parent for path in sorted(folder.rglob("config.yaml"))})
    runs = [StoredRun.read(RunStore(path)) for path in paths.values() if (path / "samples").is_dir()]
    if not runs:
        raise UserError(f"There are no runs in {', '.join(map(str, folders))}.")
    places: dict[str, Path] = {}
    for run in runs:
        if run.hash in places:
            raise UserError(
                f"The run {run.hash} lies in {places[run.hash]} and in {run.store.directory}; name only one of them."
            )
        places[run.hash] = run.store.directory
    for kind, wanted in (("task", tasks), ("method", methods)):
        stored = {run.identity[kind] for run in runs}
        for name in wanted or []:
            if name not in stored:
                raise unknown_name(f"{kind} among the stored runs", name, stored)
        runs = [run for run in runs if wanted is None or run.identity[kind] in wanted]
    if methods is not None:
        runs.sort(key=lambda run: methods.index(run.identity["method"]))
    return runs


def by_image_set(runs: Sequence[StoredRun]) -> dict[str, list[StoredRun]]:
    """Runs that may be compared with each other, by a title that tells their image set from the others."""
    groups: dict[str, list[StoredRun]] = {}
    for run in runs:
        groups.setdefault(run.image_set, []).append(run)
    titles = []
    for first in (group[0].identity for group in groups.values()):
        size = f"{first['num_images']} images x {first['samples']} samples, seed {first['seed']}"
        titles.append(f"{first['task']}, suite {first['suite']}, {first['split']} split: {size}")
    options = [{key: value for key, value in group[0].identity.items() if key not in _METHOD_KEYS} for group in groups.values()]
    return dict(zip(_told_apart(titles, options), groups.values(), strict=True))


def labels(runs: Sequence[StoredRun]) -> list[str]:
    """A column heading for each run: its method, and where it occurs more than once the options and precision that differ."""
    methods = [run.identity["method"] for run in runs]
    # The identity names no precision where it is the usual one.
    options = [{**run.identity["method_options"], "precision": run.identity.get("precision", "float32")} for run in runs]
    names = _told_apart(methods, options)
    return [
        name if names.count(name) == 1 else f"{name} #{run.hash[:_HASH_DIGITS]}" for name, run in zip(names, runs, strict=True)
    ]


def _told_apart(names: Sequence[str], options: Sequence[Mapping[str, Any]]) -> list[str]:
    """The names, each with those options in which it differs from others of the same name."""
    flat = [_flatten(entry) for entry in options]
    result = []
    for name, own in zip(names, flat, strict=True):
        same = [other for other_name, other in zip(names, flat, strict=True) if other_name == name]
        differing = [key for key in own if any(other.get(key) != own[key] for other in same)]
        result.append(" ".join([name, *(f"{key}={_short(own[key])}" for key in differing)]))
    return result


def _flatten(options: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in options.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def _short(value: Any) -> str:
    text = str(value)
    return text[:8] if len(text) == 64 else text
