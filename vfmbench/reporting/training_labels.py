"""Headings of runs that differ in how their networks were trained."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vfmbench.errors import MissingError
from vfmbench.results.stored import StoredRun, labels
from vfmbench.weights.manifest import Manifest

_PATH = "weights.path="
_MOST_OPTIONS = 3


def training_labels(runs: Sequence[StoredRun]) -> list[str]:
    """A heading for each run as `labels` gives it, and the training options in which the runs of its method differ.

    Options are compared among the runs of which they are known; where many differ, the heading has none of them.
    """
    plain = labels(runs)
    options = {run.hash: training_options(run) for run in runs}
    result = []
    for run, heading in zip(runs, plain, strict=True):
        own = options[run.hash]
        others = [options[other.hash] for other in runs if other.identity.method == run.identity.method]
        differing = [key for key, value in own.items() if any(key in other and other[key] != value for other in others)]
        # The options say what a hash could only tell apart.
        parts = [heading.partition(" #")[0], *(f"{key}={own[key]}" for key in differing)]
        result.append(", ".join(parts) if 0 < len(differing) <= _MOST_OPTIONS else heading)
    return [name if result.count(name) == 1 else heading for name, heading in zip(result, plain, strict=True)]


def training_options(run: StoredRun) -> dict[str, Any]:
    """The numbers and words that the method's own weights were trained with; empty where their manifest is not found."""
    weights = run.identity.weights_sha256
    if not weights:
        return {}
    # The others are what the method's own were trained from.
    name, sha256 = next(iter(weights.items()))
    for directory in _directories(run):
        try:
            entry = Manifest(directory).entry(name)
        except MissingError:
            continue
        if entry["sha256"] == sha256:
            options: Mapping[str, Any] = entry.get("training", {}).get("options", {})
            return {key: value for key, value in options.items() if not isinstance(value, Mapping | list)}
    return {}


def _directories(run: StoredRun) -> Iterator[Path]:
    """Where the run's weights may lie: where its command lines say, and beside `runs`, where `train` and `sweep` put them."""
    for session in run.store.provenance().get("sessions", []):
        yield from (Path(word.removeprefix(_PATH)) for word in session.get("command", []) if word.startswith(_PATH))
    # <out>/runs/<suite>/<task>/<method>/<hash>
    above = run.store.directory.resolve().parents
    if len(above) > 4:
        trained = above[4] / "training" / run.identity.suite
        yield trained
        yield from sorted(path for path in trained.glob("*") if path.is_dir())
