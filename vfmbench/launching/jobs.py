"""What a sweep consists of: runs, the trainings of their weights, and jobs, each the work of one process."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vfmbench.config import RunConfig
from vfmbench.errors import Status
from vfmbench.interfaces import Suite
from vfmbench.launching.resources import JobResources
from vfmbench.registry import load_suite
from vfmbench.running.sharding import Part
from vfmbench.weights.manifest import MANIFEST


@dataclass(frozen=True)
class Training:
    """Weights that are trained before the runs of a job.

    Attributes:
        options: what replaces the stage's options of the suite.
        settings: resolved values of every key that some training block of the sweep names.
        directory: where the weights go; its name ends in a hash of the resolved options and of what the stage starts from.
        steps: optimiser steps, for the estimate of time.
    """

    suite: str
    sections: Mapping[str, Mapping[str, Any]]
    stage: str
    options: Mapping[str, Any]
    settings: Mapping[str, Any]
    directory: Path
    steps: int

    def build_suite(self) -> Suite:
        """The suite that the stage belongs to, on the weights that it starts from."""
        return load_suite(self.suite, self.sections)

    @property
    def finished(self) -> bool:
        """Whether its weights are stored; they are only written after the last step."""
        manifest = self.directory / MANIFEST
        return manifest.exists() and self.stage in json.loads(manifest.read_text())


@dataclass(frozen=True)
class PlannedRun:
    """One run of a sweep.

    Attributes:
        settings: values of the grid's keys.
        block: position of the block of the sweep's `grid` that it is from.
        directory: None as long as its weights are not trained.
        status: as stored; `skipped` or `missing` for one that cannot run, with the reason in `note`.
        images, samples: planned images and posterior samples of each; 0 if not known yet.
    """

    config: RunConfig
    settings: Mapping[str, Any]
    directory: Path | None = None
    status: Status | None = None
    note: str = ""
    images: int = 0
    samples: int = 0
    block: int = field(compare=False, default=0)

    @property
    def open(self) -> bool:
        """Whether there is something left to do."""
        return self.status is None or self.status in (Status.FAILED, Status.INTERRUPTED)


@dataclass(frozen=True)
class Job:
    """What one process does: train, if needed, then the runs one after the other; or one part of a run.

    Attributes:
        part: which part of its only run; None for whole runs.
        part_done: whether there is nothing left of the part, though perhaps of the run.
    """

    training: Training | None
    runs: tuple[PlannedRun, ...]
    resources: JobResources
    part: Part | None = None
    part_done: bool = field(compare=False, default=False)
    label: str = field(compare=False, default="")

    @property
    def id(self) -> str:
        """Ten hexadecimal digits that depend on what the job does, not on its place in the sweep."""
        what = {
            "training": None if self.training is None else str(self.training.directory),
            # An option that is added to runs one day, and has its default, makes no other job.
            "runs": [run.config.model_dump(mode="json", exclude_defaults=True) for run in self.runs],
            "part": None if self.part is None else self.part.folder,
        }
        return digest(what, 10)

    @property
    def open(self) -> bool:
        return any(run.open for run in self.runs) and not self.part_done


def digest(what: object, digits: int = 12) -> str:
    text = json.dumps(what, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:digits]
