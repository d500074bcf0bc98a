"""From a sweep file to jobs: every combination checked as far as it can be before anything runs."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vfmbench.config import RUN_SECTIONS, RunConfig, dump, validate
from vfmbench.interfaces import MissingError, Status, Suite, UserError
from vfmbench.launching.definitions import SweepFile, TrainGrid
from vfmbench.registry import samplers, stages, suites, unknown_name
from vfmbench.running.runner import Plan, plan

RUN_KEYS = (
    "suite", "task", "method", "seed", "split", "num_images", "samples", "preset", "metrics", "device", "batch_size",
)  # fmt: skip
"""Keys of a sweep's grid that are not options of a section."""

_SUITE_SECTIONS = ("data", "weights")


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
        return suites.get(self.suite)(self.sections)

    @property
    def finished(self) -> bool:
        """Whether its weights are stored; they are only written after the last step."""
        manifest = self.directory / "manifest.json"
        return manifest.exists() and self.stage in json.loads(manifest.read_text())


@dataclass(frozen=True)
class PlannedRun:
    """One run of a sweep.

    Attributes:
        settings: values of the grid's keys.
        directory: None as long as its weights are not trained.
        status: as stored; `skipped` or `missing` for one that cannot run, with the reason in `note`.
        samples: images times posterior samples, for the estimate of time; 0 if not known yet.
    """

    config: RunConfig
    settings: Mapping[str, Any]
    directory: Path | None = None
    status: Status | None = None
    note: str = ""
    samples: int = 0

    @property
    def open(self) -> bool:
        """Whether there is something left to do."""
        return self.status is None or self.status in (Status.FAILED, Status.INTERRUPTED)


@dataclass(frozen=True)
class Job:
    """What one process does: train, if needed, then the runs one after the other."""

    training: Training | None
    runs: tuple[PlannedRun, ...]
    label: str = field(compare=False, default="")

    @property
    def id(self) -> str:
        """Ten hexadecimal digits that depend on what the job does, not on its place in the sweep."""
        what = {
            "training": None if self.training is None else str(self.training.directory),
            "runs": [run.config.model_dump(mode="json") for run in self.runs],
        }
        return _digest(what, 10)

    @property
    def open(self) -> bool:
        return any(run.open for run in self.runs)


def expand(sweep: SweepFile) -> list[Job]:
    """All jobs of a sweep, in the order of its file; equal runs occur once.

    Raises UserError, with the file and the line, for an unknown name, key or value.
    """
    runs = _runs(sweep)
    trained: dict[str, Job] = {}
    plain = []
    needed = {block.stage for block in sweep.definition.train}
    for run in runs:
        if not needed.intersection(samplers.get(run.config.method).weights):
            plain.append(Job(None, (_planned(sweep, run),)))
            continue
        # The run is checked with the weights that there are, long before its own are trained.
        size = _planned(sweep, run).samples
        for position, block in enumerate(sweep.definition.train):
            if block.stage in samplers.get(run.config.method).weights:
                for training in _trainings(sweep, position, block, run):
                    key = str(training.directory)
                    job = trained.setdefault(key, Job(training, ()))
                    own = _on_trained(run, training, size)
                    # Two training blocks may meet in one combination.
                    if own not in job.runs:
                        trained[key] = Job(job.training, (*job.runs, own))
    if needed and not trained:
        raise sweep.error(f"no method of the grid reads the weights {', '.join(sorted(needed))}.", "train")
    jobs = [*plain, *trained.values()]
    return [Job(job.training, job.runs, label) for job, label in zip(jobs, _labels(jobs), strict=True)]


def _runs(sweep: SweepFile) -> list[PlannedRun]:
    found: dict[str, PlannedRun] = {}
    for position, axes in enumerate(sweep.definition.grid):
        for key in (*sweep.definition.fixed, *axes):
            place = ("fixed", key) if key in sweep.definition.fixed and key not in axes else ("grid", position, key)
            _check_key(sweep, key, place)
        for settings in _combinations(_with_defaults(sweep, axes)):
            chosen = {**sweep.definition.fixed, **settings}
            other = {key for key in chosen if _section(key) not in (None, *RUN_SECTIONS, chosen["method"])}
            config = _config(sweep, {key: value for key, value in chosen.items() if key not in other})
            shown = {key: value for key, value in settings.items() if key not in other}
            found.setdefault(_digest(config.model_dump(mode="json")), PlannedRun(config, shown))
    return list(found.values())


def _check_key(sweep: SweepFile, key: str, place: tuple[str | int, ...]) -> None:
    section = _section(key)
    if section is None and key not in RUN_KEYS:
        raise sweep.error(str(unknown_name("key", key, [*RUN_KEYS, *(f"{name}.*" for name in RUN_SECTIONS)])), *place)
    if section is not None and section not in RUN_SECTIONS and section not in samplers.names():
        raise sweep.error(str(unknown_name("section", section, [*RUN_SECTIONS, *samplers.names()])), *place)


def _section(key: str) -> str | None:
    """`vfm.steps` -> `vfm`; None for a key without a section."""
    return key.partition(".")[0] if "." in key else None


def _with_defaults(sweep: SweepFile, axes: Mapping[str, Sequence[Any]]) -> Mapping[str, Sequence[Any]]:
    """The axes, with the suite's own tasks and methods where the file names none, as in `vfmbench compare`."""
    fixed = sweep.definition.fixed
    missing = [key for key in ("task", "method") if key not in axes and key not in fixed]
    if not missing:
        return axes
    names = axes.get("suite") or [fixed.get("suite", "digits")]
    if len(names) > 1:
        raise sweep.error(f"with several suites, the grid must name {' and '.join(missing)}.", "grid")
    suite = suites.get(names[0])({})
    defaults = {"task": list(suite.task_names), "method": list(suite.method_names) or samplers.names()}
    return {**{key: defaults[key] for key in missing}, **axes}


def _combinations(axes: Mapping[str, Sequence[Any]]) -> Iterator[dict[str, Any]]:
    for values in itertools.product(*axes.values()):
        yield dict(zip(axes, values, strict=True))


def _config(sweep: SweepFile, chosen: Mapping[str, Any]) -> RunConfig:
    options: dict[str, dict[str, Any]] = {}
    for key, value in chosen.items():
        section, _, name = key.partition(".")
        if name:
            options.setdefault(section if section in RUN_SECTIONS else "method", {})[name] = value
    plain = {key: value for key, value in chosen.items() if _section(key) is None}
    try:
        return validate(RunConfig, {**plain, "options": options, "out": sweep.definition.out / "runs"})
    except UserError as error:
        raise _located(sweep, error, chosen) from None


def _located(sweep: SweepFile, error: UserError, chosen: Mapping[str, Any]) -> UserError:
    """The error with the line of the option that it names."""
    for key in chosen:
        section, dot, name = key.partition(".")
        named = key if not dot or section in RUN_SECTIONS else f"method.{name}"
        if named in str(error) or str(chosen[key]) in str(error):
            return sweep.error(str(error), *sweep.line_of_option(key))
    return sweep.error(str(error))


def _planned(sweep: SweepFile, run: PlannedRun) -> PlannedRun:
    """The run with its directory and what is stored of it. Raises UserError for what no training could put right."""
    try:
        checked = plan(run.config)
        supported, reason = checked.sampler_class.supports(checked.task, checked.suite)
    except MissingError as error:
        return _changed(run, status=Status.MISSING, note=str(error))
    except UserError as error:
        chosen = {**sweep.definition.fixed, **run.settings}
        raise _located(sweep, error, chosen) from None
    found = _changed(
        run, directory=checked.store.directory, samples=checked.identity.num_images * checked.identity.samples
    )
    if not supported:
        return _changed(found, status=Status.SKIPPED, note=reason)
    return _changed(found, status=stored_status(checked))


def stored_status(checked: Plan) -> Status | None:
    """What the run's directory says; None if it was never begun, or lacks metrics that are wanted now."""
    status = checked.store.provenance().get("status")
    if status == Status.DONE and not {row["metric"] for row in checked.store.metrics()} >= set(checked.metric_names):
        return None
    return None if status is None else Status(status)


def _changed(run: PlannedRun, **changes: Any) -> PlannedRun:
    return PlannedRun(**{**run.__dict__, **changes})


def _trainings(sweep: SweepFile, position: int, block: TrainGrid, run: PlannedRun) -> Iterator[Training]:
    """One training for each combination of the block, for the suite of the run."""
    sections = {key: dict(run.config.options.get(key, {})) for key in _SUITE_SECTIONS}
    suite = suites.get(run.config.suite)(sections)
    if block.stage not in suite.training:
        error = unknown_name(f"training stage of the suite {suite.name}", block.stage, suite.training)
        raise sweep.error(str(error), "train", position, "stage")
    own = dict(suite.training[block.stage])
    stage_class = stages.get(own.pop("objective", block.stage))
    same_stage = [other for other in sweep.definition.train if other.stage == block.stage]
    shown = dict.fromkeys(key for other in same_stage for key in (*other.grid, *other.fixed))
    for combination in _combinations(block.grid):
        settings = {**block.fixed, **combination}
        try:
            options = validate(stage_class.Options, {**own, **settings}, f"{block.stage}.")
        except UserError as error:
            key = next((key for key in settings if f"{block.stage}.{key}" in str(error)), None)
            part = "grid" if key in combination else "fixed"
            raise sweep.error(str(error), "train", position, *((part, key) if key else ())) from None
        what = {
            "suite": suite.name,
            "data": suite.data_options,
            "stage": block.stage,
            "objective": f"{stage_class.__module__}.{stage_class.__qualname__}",
            "options": dump(options),
            "training data": suite.dataset("train").sha256,
            "weights": {name: suite.weights.sha256(name) for name in stage_class.needs},
        }
        folder = sweep.definition.out / "training" / suite.name / f"{block.stage}-{_digest(what)}"
        resolved = {key: value for key, value in dump(options).items() if key in shown}
        yield Training(run.config.suite, sections, block.stage, settings, resolved, folder, options.steps)


def _on_trained(run: PlannedRun, training: Training, size: int) -> PlannedRun:
    """The run on the weights of a training, with its directory if they are there."""
    weights = {**run.config.options.get("weights", {}), "path": str(training.directory)}
    config = run.config.model_copy(update={"options": {**run.config.options, "weights": weights}})
    changed = PlannedRun(config, run.settings, samples=size)
    if not training.finished:
        return changed
    try:
        checked = plan(config)
    except MissingError:  # the other weights are put beside the trained ones when the job runs
        return changed
    return _changed(changed, directory=checked.store.directory, status=stored_status(checked))


def _labels(jobs: Sequence[Job]) -> list[str]:
    """A short name for each job: what its runs do, and the values in which it differs from others."""

    def values(job: Job) -> dict[str, Any]:
        training = {} if job.training is None else job.training.settings
        return {**(job.runs[0].settings if job.training is None else {}), **training}

    described = [values(job) for job in jobs]
    varying = [
        key
        for key in dict.fromkeys(key for entry in described for key in entry)
        if len({json.dumps(entry.get(key), default=str) for entry in described}) > 1
    ]
    result = []
    for job, entry in zip(jobs, described, strict=True):
        first = job.runs[0].config
        head = f"{first.method}/{first.task}" if job.training is None else f"train {job.training.stage}"
        own = [f"{key}={entry[key]}" for key in varying if key in entry and key not in ("method", "task")]
        result.append(" ".join([head, *own]))
    return result


def _digest(what: Any, digits: int = 12) -> str:
    text = json.dumps(what, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:digits]

