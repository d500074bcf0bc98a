"""Finished and unfinished runs as they lie in their directories; nothing here runs a model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vfmbench.config import RunIdentity
from vfmbench.errors import Status, UserError, unknown_name
from vfmbench.results.columns import read_columns
from vfmbench.results.paths import RunPaths
from vfmbench.results.run_directory import RunStore
from vfmbench.results.schema import MetricRow

_OF_THE_METHOD = {"method", "method_options", "plugin_sha256", "weights_sha256", "precision"}
_HASH_DIGITS = 6

Values = NDArray[np.float64]


@dataclass(frozen=True)
class StoredRun:
    """What reports read of one run.

    >>> run = StoredRun.read(RunStore(Path("results/runs/digits/denoise/vfm/0123456789ab")))
    >>> run.metrics["psnr"].value, run.per_image["psnr"].mean()
    (21.4, 21.4)

    Attributes:
        hash: of the identity; the name of the run's directory.
    """

    store: RunStore
    identity: RunIdentity
    hash: str

    @classmethod
    def read(cls, store: RunStore) -> StoredRun:
        """Raises UserError if the directory's config.yaml is not a run's, or was written by another version."""
        config = store.config()
        return cls(store, config.identity, config.hash)

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
    def index(self) -> NDArray[np.int64]:
        """Positions [n] of the images that the metrics are of, ascending."""
        return self._per_image.get("index", np.empty(0, dtype=np.int64))

    @cached_property
    def per_image(self) -> dict[str, Values]:
        """Each image's value [n], in the order of `index`, of a metric that is a mean over images; NaN where it has none."""
        return {name: column for name, column in self._per_image.items() if name != "index"}

    @cached_property
    def _per_image(self) -> dict[str, NDArray[Any]]:
        return read_columns(self.store.paths.per_image)

    @cached_property
    def replicates(self) -> dict[str, Values]:
        """Values [R] of a statistic of the whole set on bootstrap resamples."""
        return read_columns(self.store.paths.replicates)

    @cached_property
    def curves(self) -> dict[str, Values]:
        """Each image's part [n,k] of a metric's curve."""
        return read_columns(self.store.paths.curves)

    @property
    def image_set(self) -> dict[str, Any]:
        """Equal for runs that measured and sampled the same images equally often: only they are compared."""
        return self.identity.model_dump(mode="json", exclude=_OF_THE_METHOD)


def find_runs(
    folders: Sequence[Path], tasks: Sequence[str] | None = None, methods: Sequence[str] | None = None
) -> list[StoredRun]:
    """The runs in and below the folders, in order of their paths; with `methods`, in that order of methods.

    Raises:
        UserError: a folder does not exist, there are no runs, a task or method has none, or a run lies in two places.
    """
    found = {}
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{folder} is not a folder.")
        found.update({paths.directory.resolve(): paths for paths in RunPaths.below(folder) if paths.config.exists()})
    runs = [StoredRun.read(RunStore(paths.directory)) for paths in found.values()]
    if not runs:
        raise UserError(f"There are no runs in {', '.join(map(str, folders))}.")
    places: dict[str, Path] = {}
    for run in runs:
        if run.hash in places:
            raise UserError(
                f"The run {run.hash} lies in {places[run.hash]} and in {run.store.directory}; name only one of them."
            )
        places[run.hash] = run.store.directory
    runs = _chosen(runs, "task", [run.identity.task for run in runs], tasks)
    runs = _chosen(runs, "method", [run.identity.method for run in runs], methods)
    if methods is not None:
        runs.sort(key=lambda run: methods.index(run.identity.method))
    return runs


def _chosen(runs: Sequence[StoredRun], kind: str, names: Sequence[str], wanted: Sequence[str] | None) -> list[StoredRun]:
    """The runs whose name is wanted. Raises UserError for a wanted name that no run has."""
    for name in wanted or []:
        if name not in names:
            raise unknown_name(f"{kind} among the stored runs", name, set(names))
    return [run for run, name in zip(runs, names, strict=True) if wanted is None or name in wanted]


def by_image_set(runs: Sequence[StoredRun]) -> dict[str, list[StoredRun]]:
    """Runs that may be compared with each other, by a title that tells their image set from the others."""
    groups: dict[str, list[StoredRun]] = {}
    for run in runs:
        groups.setdefault(json.dumps(run.image_set), []).append(run)
    titles = []
    for first in (group[0].identity for group in groups.values()):
        size = f"{first.num_images} images x {first.samples} samples, seed {first.seed}"
        titles.append(f"{first.task}, suite {first.suite}, {first.split} split: {size}")
    options = [group[0].image_set for group in groups.values()]
    return dict(zip(_told_apart(titles, options), groups.values(), strict=True))


def labels(runs: Sequence[StoredRun]) -> list[str]:
    """A column heading for each run: its method, and where it occurs more than once the options and precision that differ."""
    methods = [run.identity.method for run in runs]
    options = [{**run.identity.method_options, "precision": run.identity.precision} for run in runs]
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
