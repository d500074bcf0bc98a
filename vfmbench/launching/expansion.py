"""From a sweep file to jobs: every combination checked as far as it can be before anything runs."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from vfmbench.config import RUN_SECTIONS, RunConfig
from vfmbench.errors import MissingError, Status, UserError, unknown_name
from vfmbench.interfaces import Suite
from vfmbench.launching.definitions import SweepFile, TrainGrid
from vfmbench.launching.jobs import Job, PlannedRun, SuiteCache, Training, digest
from vfmbench.launching.resources import JobResources, read_profile, resources_of
from vfmbench.options import dump, validate
from vfmbench.registry import samplers, stages
from vfmbench.running.plan import Plan, plan
from vfmbench.running.sharding import Part, positions, unfinished_parts

RUN_KEYS = (
    "suite", "task", "method", "seed", "split", "num_images", "samples", "preset", "metrics", "device", "batch_size",
)  # fmt: skip
"""Keys of a sweep's grid that are not options of a section."""

TRAINING_RESOURCES = "train"
"""Name in a sweep file's `resources` of those of jobs that train."""


def expand(sweep: SweepFile) -> list[Job]:
    """All jobs of a sweep, in the order of its file; equal runs occur once.

    Raises UserError, with the file and the line, for an unknown name, key or value.
    """
    return _Expansion(sweep).jobs()


class _Expansion:
    """One sweep file on its way to jobs."""

    def __init__(self, sweep: SweepFile):
        self._sweep, self._definition, self._suites = sweep, sweep.definition, SuiteCache()
        self._trained: dict[str, list[Training]] = {}
        try:
            self._profile = read_profile(self._definition.profile)
        except UserError as error:
            raise sweep.error(str(error), "profile") from None

    def jobs(self) -> list[Job]:
        runs = self._runs()
        self._check_stages(runs)
        self._check_resources()
        plain: list[Job] = []
        trained: dict[str, Job] = {}
        needed = {block.stage for block in self._definition.train}
        for run in runs:
            if needed.isdisjoint(samplers.get(run.config.method).weights):
                plain += self._plain_jobs(run)
                continue
            # The run is checked with the weights that there are, long before its own are trained.
            known = self._planned(run)[0]
            for training in self._trainings_of(run):
                job = trained.setdefault(str(training.directory), Job(training, (), self._resources(TRAINING_RESOURCES)))
                own = self._on_trained(known, training)
                # Two training blocks may meet in one combination.
                if own not in job.runs:
                    trained[str(training.directory)] = replace(job, runs=(*job.runs, own))
        if needed and not trained:
            raise self._sweep.error(f"no method of the grid reads the weights {', '.join(sorted(needed))}.", "train")
        jobs = [*plain, *trained.values()]
        return [replace(job, label=label) for job, label in zip(jobs, _labels(jobs), strict=True)]

    def _plain_jobs(self, run: PlannedRun) -> list[Job]:
        """One job for the run, or one for each of its parts."""
        method = run.config.method
        resources = self._resources(method)
        found, checked = self._planned(run)
        if resources.shards == 1 or checked is None:
            return [Job(None, (found,), resources)]
        parts = [Part(number, resources.shards) for number in range(resources.shards)]
        try:
            positions(checked, parts[0])
        except UserError as error:
            place = method if "shards" in self._definition.resources.get(method, {}) else "default"
            raise self._sweep.error(str(error), "resources", place, "shards") from None
        # Where only the tables and metrics are missing, the first job makes them.
        waiting = unfinished_parts(checked, len(parts)) or [0]
        return [Job(None, (found,), resources, part, part.number not in waiting) for part in parts]

    def _resources(self, name: str) -> JobResources:
        return resources_of(self._profile, self._definition.resources, name)

    def _check_resources(self) -> None:
        known = ["default", TRAINING_RESOURCES, *samplers.names()]
        for name, values in self._definition.resources.items():
            if name not in known:
                raise self._sweep.error(str(unknown_name("resources", name, known)), "resources", name)
            try:
                chosen = self._resources(name)
            except UserError as error:
                key = next((key for key in values if f"resources.{key}" in str(error)), None)
                raise self._sweep.error(str(error), "resources", name, *((key,) if key else ())) from None
            if name == TRAINING_RESOURCES and chosen.shards > 1:
                raise self._sweep.error("a job that trains has no shards.", "resources", name)

    def _runs(self) -> list[PlannedRun]:
        found: dict[str, PlannedRun] = {}
        fixed = self._definition.fixed
        for position, axes in enumerate(self._definition.grid):
            for key in (*fixed, *axes):
                self._check_key(key, *(("grid", position, key) if key in axes else ("fixed", key)))
            for settings in _combinations(self._with_defaults(axes)):
                chosen = {**fixed, **settings}
                other = {key for key in chosen if _section(key) not in (None, *RUN_SECTIONS, chosen["method"])}
                config = self._config({key: value for key, value in chosen.items() if key not in other})
                shown = {key: value for key, value in settings.items() if key not in other}
                found.setdefault(digest(config.model_dump(mode="json")), PlannedRun(config, shown))
        return list(found.values())

    def _check_key(self, key: str, *place: str | int) -> None:
        section = _section(key)
        if section is None and key not in RUN_KEYS:
            error = unknown_name("key", key, [*RUN_KEYS, *(f"{name}.*" for name in RUN_SECTIONS)])
            raise self._sweep.error(str(error), *place)
        if section is not None and section not in RUN_SECTIONS and section not in samplers.names():
            raise self._sweep.error(str(unknown_name("section", section, [*RUN_SECTIONS, *samplers.names()])), *place)

    def _with_defaults(self, axes: Mapping[str, Sequence[Any]]) -> Mapping[str, Sequence[Any]]:
        """The axes, with the suite's own tasks and methods where the file names none, as in `vfmbench compare`."""
        fixed = self._definition.fixed
        missing = [key for key in ("task", "method") if key not in axes and key not in fixed]
        if not missing:
            return axes
        names = axes.get("suite") or [fixed.get("suite", "digits")]
        if len(names) > 1:
            raise self._sweep.error(f"with several suites, the grid must name {' and '.join(missing)}.", "grid")
        suite = self._suites.get(names[0], {})
        defaults = {"task": list(suite.task_names), "method": list(suite.methods) or samplers.names()}
        return {**{key: defaults[key] for key in missing}, **axes}

    def _config(self, chosen: Mapping[str, Any]) -> RunConfig:
        options: dict[str, dict[str, Any]] = {}
        for key, value in chosen.items():
            section, _, name = key.partition(".")
            if name:
                options.setdefault(section if section in RUN_SECTIONS else "method", {})[name] = value
        plain = {key: value for key, value in chosen.items() if _section(key) is None}
        try:
            samplers.get(chosen["method"])
            return validate(RunConfig, {**plain, "options": options, "out": self._definition.out / "runs"})
        except UserError as error:
            raise self._located(error, chosen) from None

    def _located(self, error: UserError, chosen: Mapping[str, Any]) -> UserError:
        """The error with the line of the option that it names."""
        message = str(error)
        for key, value in chosen.items():
            section, dot, name = key.partition(".")
            named = key if not dot or section in RUN_SECTIONS else f"method.{name}"
            if f"'{named}'" in message or f"{named}:" in message or (isinstance(value, str) and repr(value) in message):
                return self._sweep.error(message, *self._sweep.line_of_option(key))
        return self._sweep.error(message)

    def _planned(self, run: PlannedRun) -> tuple[PlannedRun, Plan | None]:
        """The run with its directory and what is stored of it, and its plan if it can run at all.

        Raises UserError for what no training could put right.
        """
        try:
            checked = plan(run.config, self._suites.get(run.config.suite, run.config.options))
            verdict = checked.verdict
        except MissingError as error:
            return replace(run, status=Status.MISSING, note=str(error)), None
        except UserError as error:
            raise self._located(error, {**self._definition.fixed, **run.settings}) from None
        identity, directory = checked.identity, checked.store.directory
        found = replace(run, directory=directory, images=identity.num_images, samples=identity.samples)
        if not verdict.supported:
            return replace(found, status=Status.SKIPPED, note=verdict.note), None
        return replace(found, status=_stored_status(checked)), checked

    def _check_stages(self, runs: Sequence[PlannedRun]) -> None:
        """Raises UserError for a training stage that a suite of the runs does not have."""
        for name in dict.fromkeys(run.config.suite for run in runs) if self._definition.train else ():
            known = self._suites.get(name, {}).training
            for position, block in enumerate(self._definition.train):
                if block.stage not in known:
                    error = unknown_name(f"training stage of the suite {name}", block.stage, known)
                    raise self._sweep.error(str(error), "train", position, "stage")

    def _trainings_of(self, run: PlannedRun) -> Iterator[Training]:
        """The trainings of all blocks that make weights for the run."""
        sections = {key: dict(run.config.options.get(key, {})) for key in ("data", "weights")}
        suite = self._suites.get(run.config.suite, sections)
        for position, block in enumerate(self._definition.train):
            if block.stage in samplers.get(run.config.method).weights:
                key = digest([run.config.suite, sections, position])
                if key not in self._trained:
                    self._trained[key] = list(self._trainings(position, block, run.config.suite, sections, suite))
                yield from self._trained[key]

    def _trainings(
        self, position: int, block: TrainGrid, suite_name: str, sections: Mapping[str, Any], suite: Suite
    ) -> Iterator[Training]:
        """One training for each combination of the block."""
        own = dict(suite.training[block.stage])
        stage_class = stages.get(own.pop("objective", block.stage))
        same_stage = [other for other in self._definition.train if other.stage == block.stage]
        shown = {key for other in same_stage for key in (*other.grid, *other.fixed)}
        for combination in _combinations(block.grid):
            settings = {**block.fixed, **combination}
            try:
                options = validate(stage_class.Options, {**own, **settings}, f"{block.stage}.")
            except UserError as error:
                key = next((key for key in settings if f"{block.stage}.{key}" in str(error)), None)
                part = "grid" if key in combination else "fixed"
                raise self._sweep.error(str(error), "train", position, *((part, key) if key else ())) from None
            what = {
                "suite": suite.name,
                "data": suite.data_options,
                "stage": block.stage,
                "objective": f"{stage_class.__module__}.{stage_class.__qualname__}",
                "options": dump(options),
                "training data": suite.dataset("train").sha256,
                "weights": {name: suite.weights.sha256(name) for name in stage_class.needed(suite)},
            }
            folder = self._definition.out / "training" / suite.name / f"{block.stage}-{digest(what)}"
            resolved = {key: value for key, value in dump(options).items() if key in shown}
            yield Training(suite_name, sections, block.stage, settings, resolved, folder, options.steps)

    def _on_trained(self, run: PlannedRun, training: Training) -> PlannedRun:
        """The run on the weights of a training, with its directory if they are there."""
        weights = {**run.config.options.get("weights", {}), "path": str(training.directory)}
        config = run.config.model_copy(update={"options": {**run.config.options, "weights": weights}})
        changed = PlannedRun(config, run.settings, images=run.images, samples=run.samples)
        if not training.finished:
            return changed
        try:
            suite = self._suites.get(run.config.suite, run.config.options).with_weights(training.directory)
            checked = plan(config, suite)
        except MissingError:  # the other weights are put beside the trained ones when the job runs
            return changed
        return replace(changed, directory=checked.store.directory, status=_stored_status(checked))


def _stored_status(checked: Plan) -> Status | None:
    """What the run's directory says; None if it was never begun, or lacks metrics that are wanted now."""
    status = checked.store.provenance().get("status")
    if status == Status.DONE and not {row["metric"] for row in checked.store.metrics()} >= set(checked.metric_names):
        return None
    return None if status is None else Status(status)


def _section(key: str) -> str | None:
    """`vfm.steps` -> `vfm`; None for a key without a section."""
    return key.partition(".")[0] if "." in key else None


def _combinations(axes: Mapping[str, Sequence[Any]]) -> Iterator[dict[str, Any]]:
    for values in itertools.product(*axes.values()):
        yield dict(zip(axes, values, strict=True))


def _labels(jobs: Sequence[Job]) -> list[str]:
    """A short name for each job: what its runs do, and the values in which it differs from others."""

    def values(job: Job) -> dict[str, Any]:
        return dict(job.runs[0].settings if job.training is None else job.training.settings)

    described = [values(job) for job in jobs]
    keys = dict.fromkeys(key for entry in described for key in entry)
    varying = [key for key in keys if len({json.dumps(entry.get(key), default=str) for entry in described}) > 1]
    result = []
    for job, entry in zip(jobs, described, strict=True):
        first = job.runs[0].config
        head = f"{first.method}/{first.task}" if job.training is None else f"train {job.training.stage}"
        own = [f"{key}={entry[key]}" for key in varying if key in entry and key not in ("method", "task")]
        part = [] if job.part is None else [f"part {job.part.number + 1}/{job.part.count}"]
        result.append(" ".join([head, *own, *part]))
    return result
