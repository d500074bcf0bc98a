"""From a sweep file to jobs: every combination checked as far as it can be before anything runs."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from vfmbench.config import RUN_SECTIONS, RunConfig
from vfmbench.errors import MissingError, Status, UserError, about, unknown_name
from vfmbench.interfaces import Suite
from vfmbench.launching.definitions import SweepFile, TrainGrid
from vfmbench.launching.jobs import Job, PlannedRun, Training, digest
from vfmbench.launching.resources import JobResources, read_profile, resources_of
from vfmbench.metrics.compute import stale_metrics
from vfmbench.options import dump, validate
from vfmbench.registry import load_suite, samplers, stages
from vfmbench.running.plan import Plan, plan
from vfmbench.running.sharding import Part, positions, unfinished_parts

RUN_KEYS = tuple(name for name in RunConfig.model_fields if name not in ("options", "out", "fresh"))
"""Keys of a sweep's grid that are not options of a section: a run's, but for what the sweep says for all of them, and for
starting over, which would do so whenever a job resumes.
"""

TRAINING_RESOURCES = "train"
"""Name in a sweep file's `resources` of those of jobs that train."""


def expand(sweep: SweepFile, elsewhere: bool = False) -> list[Job]:
    """All jobs of a sweep, in the order of its file; equal runs occur once.

    Args:
        elsewhere: the jobs are for other machines, whose devices are not known here.

    Raises UserError, with the file and the line, for an unknown name, key or value.
    """
    return _Expansion(sweep, elsewhere).jobs()


class _Expansion:
    """One sweep file on its way to jobs."""

    def __init__(self, sweep: SweepFile, elsewhere: bool):
        self._sweep, self._file, self._definition, self._elsewhere = sweep, sweep.file, sweep.definition, elsewhere
        self._trained: dict[str, list[Training]] = {}
        try:
            self._profile = read_profile(self._definition.profile)
        except UserError as error:
            raise error if "profile" in sweep.replaced else sweep.file.located(error, "profile") from None

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
            raise self._file.error(f"no method of the grid reads the weights {', '.join(sorted(needed))}.", "train")
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
            raise self._file.located(error, f"resources.{place}.shards") from None
        # Where only the tables and metrics are missing, the first job makes them.
        waiting = unfinished_parts(checked, len(parts)) or [0]
        return [Job(None, (found,), resources, part, part.number not in waiting) for part in parts]

    def _resources(self, name: str) -> JobResources:
        return resources_of(self._profile, self._definition.resources, name)

    def _check_resources(self) -> None:
        known = ["default", TRAINING_RESOURCES, *samplers.names()]
        for name in self._definition.resources:
            if name not in known:
                raise self._file.located(unknown_name("resources", name, known), f"resources.{name}")
            try:
                chosen = self._resources(name)
            except UserError as error:
                raise self._file.located(error) from None
            if name == TRAINING_RESOURCES and chosen.shards > 1:
                raise self._file.error("a job that trains has no shards.", f"resources.{name}.shards")

    def _runs(self) -> list[PlannedRun]:
        found: dict[str, PlannedRun] = {}
        fixed = self._definition.fixed
        for position, axes in enumerate(self._definition.grid):
            for key in (*fixed, *axes):
                self._check_key(key, f"{self._sweep.place(position)}.{key}" if key in axes else f"fixed.{key}")
            for settings in _combinations(self._with_defaults(position)):
                chosen = {**fixed, **settings}
                other = {key for key in chosen if _section(key) not in (None, *RUN_SECTIONS, chosen["method"])}
                try:
                    config = self._config({key: value for key, value in chosen.items() if key not in other})
                except UserError as error:
                    raise self._sweep.located(error, position, settings) from None
                shown = {key: value for key, value in settings.items() if key not in other}
                found.setdefault(digest(config.model_dump(mode="json")), PlannedRun(config, shown, block=position))
        return list(found.values())

    def _check_key(self, key: str, place: str) -> None:
        section = _section(key)
        if section is None and key not in RUN_KEYS:
            error = unknown_name("key", key, [*RUN_KEYS, *(f"{name}.*" for name in RUN_SECTIONS)], key)
        elif section is not None and section not in RUN_SECTIONS and section not in samplers.names():
            error = unknown_name("section", section, [*RUN_SECTIONS, *samplers.names()], key)
        else:
            return
        raise UserError(f"--set: {error}", key) if key in self._sweep.replaced else self._file.located(error, place)

    def _with_defaults(self, position: int) -> Mapping[str, Sequence[Any]]:
        """A block's axes, with the suite's own tasks and methods where the file names none, as in `vfmbench compare`."""
        fixed, axes = self._definition.fixed, self._definition.grid[position]
        missing = [key for key in ("task", "method") if key not in axes and key not in fixed]
        if not missing:
            return axes
        names = axes.get("suite") or [fixed.get("suite", RunConfig.model_fields["suite"].default)]
        if len(names) > 1:
            message = f"with several suites, the grid must name {' and '.join(missing)}."
            raise self._file.error(message, f"{self._sweep.place(position)}.suite")
        try:
            suite = load_suite(names[0])
        except UserError as error:
            raise self._sweep.located(error, position, {"suite": names[0]}) from None
        defaults = {"task": list(suite.task_names), "method": list(suite.defaults.methods) or samplers.names()}
        return {**{key: defaults[key] for key in missing}, **axes}

    def _config(self, chosen: Mapping[str, Any]) -> RunConfig:
        options: dict[str, dict[str, Any]] = {}
        for key, value in chosen.items():
            section, _, name = key.partition(".")
            if name:
                options.setdefault(section if section in RUN_SECTIONS else "method", {})[name] = value
        plain = {key: value for key, value in chosen.items() if _section(key) is None}
        config = validate(RunConfig, {**plain, "options": options, "out": self._definition.out / "runs"})
        with about("method"):
            samplers.get(config.method)
        return config

    def _planned(self, run: PlannedRun) -> tuple[PlannedRun, Plan | None]:
        """The run with its directory and what is stored of it, and its plan if it can run at all.

        Raises UserError for what no training could put right.
        """
        try:
            checked = plan(run.config, elsewhere=self._elsewhere)
            verdict = checked.verdict
        except MissingError as error:
            return replace(run, status=Status.MISSING, note=str(error)), None
        except UserError as error:
            raise self._sweep.located(error, run.block, run.settings) from None
        identity, directory = checked.identity, checked.store.directory
        found = replace(run, directory=directory, images=identity.num_images, samples=identity.samples)
        if not verdict.supported:
            return replace(found, status=Status.SKIPPED, note=verdict.note), None
        return replace(found, status=_stored_status(checked)), checked

    def _check_stages(self, runs: Sequence[PlannedRun]) -> None:
        """Raises UserError for a training stage that a suite of the runs does not have."""
        for name in dict.fromkeys(run.config.suite for run in runs) if self._definition.train else ():
            known = load_suite(name).training
            for position, block in enumerate(self._definition.train):
                if block.stage not in known:
                    error = unknown_name(f"training stage of the suite {name}", block.stage, known)
                    raise self._file.located(error, f"train.{position}.stage")

    def _trainings_of(self, run: PlannedRun) -> Iterator[Training]:
        """The trainings of all blocks that make weights for the run."""
        sections = {key: dict(run.config.options.get(key, {})) for key in ("data", "weights")}
        suite = load_suite(run.config.suite, sections)
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
                key = (error.key or "").partition(".")[2]
                part = "grid" if key in combination else "fixed"
                raise self._file.located(error, f"train.{position}.{part}.{key}") from None
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
            suite = load_suite(run.config.suite, run.config.options).with_weights(training.directory)
            checked = plan(config, suite, self._elsewhere)
        except MissingError:  # the other weights are put beside the trained ones when the job runs
            return changed
        return replace(changed, directory=checked.store.directory, status=_stored_status(checked))


def _stored_status(checked: Plan) -> Status | None:
    """What the run's directory says; None if it was never begun, or lacks metrics that are wanted now, in today's versions."""
    status = checked.store.provenance().get("status")
    if status == Status.DONE and stale_metrics(checked.metrics, checked.store.readable_metrics()):
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
