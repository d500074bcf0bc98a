"""Chooses methods' options on the validation split: a grid of ordinary runs, one objective, a choice and its evidence.

Every trial is a run that is stored like any other, so that tuning resumes where it was stopped. A trial that leaves an
image out (a diverged sample) cannot be chosen: it would win by dropping what is hard.
"""

from __future__ import annotations

import itertools
import math
import multiprocessing
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import Field

from vfmbench.config import RunConfig
from vfmbench.errors import Status, UserError, unknown_name
from vfmbench.interfaces import MethodGrid
from vfmbench.options import Options, validate
from vfmbench.registry import load_plugin, load_suite, samplers
from vfmbench.results.schema import COST
from vfmbench.running.plan import plan
from vfmbench.running.runner import run
from vfmbench.tuned import Place, TrialsFile, TunedEntry, TunedFile, prepare, write_entry


class TuningOptions(Options):
    """Section `tuning` of a suite's YAML file."""

    num_images: int = Field(64, ge=2, description="first images of the validation split")
    samples: int = Field(4, ge=2, description="posterior samples of each")
    seed: int = Field(0, ge=0)
    objective: tuple[str, ...] = Field(min_length=1, description="values whose sum of logarithms is minimised")
    metrics: tuple[str, ...] = Field(
        min_length=1, description="registered metrics to compute; must give the objective's values"
    )
    tasks: tuple[str, ...] = Field(min_length=1)
    methods: dict[str, MethodGrid] = Field(default_factory=dict, description="grids in place of the methods' own")


@dataclass
class Trial:
    """One setting of one method on one task, and its results once it has run."""

    config: RunConfig
    setting: dict[str, Any]
    grid: MethodGrid
    values: dict[str, float] = field(default_factory=dict)
    hash: str = ""
    problem: str = ""
    commit: str = ""
    weights: dict[str, str] = field(default_factory=dict)

    def score(self, objective: Sequence[str]) -> float:
        """Sum of logarithms, so that metrics on different scales weigh alike; infinite for a trial that cannot be chosen."""
        if self.problem or any(self.values.get(name, math.nan) <= 0 or name not in self.values for name in objective):
            return math.inf
        return sum(math.log(self.values[name]) for name in objective)


@dataclass(frozen=True)
class Choice:
    """What was chosen for a method on a task, and why."""

    entry: TunedEntry
    evidence: dict[str, Any]


def tune(
    suite_name: str,
    methods: Sequence[str] | None,
    tasks: Sequence[str] | None,
    options: Mapping[str, Mapping[str, Any]],
    out: Path,
    trials_out: Path,
    runs: Path,
    workers: int,
    plugins: Sequence[str] = (),
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[tuple[str, str], Choice]:
    """Tunes methods on tasks; as soon as a method and task is done, its choice goes to `out` and every trial to `trials_out`.

    Args:
        methods, tasks: None for every method with a grid for the suite, and the tasks that its `tuning` section names.
        options: sections `data` and `weights` of the suite, and `tuning`, overrides of its section.
        runs: folder of the trials' run directories.
        workers: processes, each with one thread.
        progress: called as progress(trials done, trials).

    Returns the choices written, by (method, task). Raises UserError for a suite without a `tuning` section, an unknown name, a
    value that a method refuses or a file that cannot be written, before any trial runs.
    """
    suite = load_suite(suite_name, options)
    if not suite.tuning:
        raise UserError(f"The suite {suite.name} says nothing about tuning: its YAML file has no section `tuning`.")
    tuning = validate(TuningOptions, {**suite.tuning, **options.get("tuning", {})}, "tuning.")
    grids = grids_of(suite.name, tuning)
    if not grids:
        raise UserError(f"No method has a grid for the suite {suite.name}: give some with --set tuning.methods=...")
    methods = _known("method", methods, grids)
    tasks = _known("task", tasks, tuning.tasks)
    groups = {
        (method, task): trials_of(suite_name, method, grids[method], task, tuning, options, runs)
        for task in tasks
        for method in methods
    }
    trials = [trial for group in groups.values() for trial in group]
    if out.resolve() == trials_out.resolve():
        raise UserError(f"--trials: {trials_out} is --out too; the choices and their trials are two files.", "trials")
    chosen_place, trials_place = Place(out, "out", TunedFile), Place(trials_out, "trials", TrialsFile)
    for trial in trials:
        plan(trial.config)
    for place in (chosen_place, trials_place):
        prepare(place, suite.name)
    written: dict[tuple[str, str], Choice] = {}
    for done, _ in enumerate(_run_all(trials, workers, plugins), start=1):
        progress(done, len(trials))
        for (method, task), group in groups.items():
            if (method, task) not in written and all(trial.values or trial.problem for trial in group):
                written[method, task] = choice = _choice(group, tuning)
                write_entry(trials_place, suite.name, method, task, choice.evidence)
                write_entry(chosen_place, suite.name, method, task, choice.entry.model_dump())
    return written


def grids_of(suite: str, tuning: TuningOptions) -> dict[str, MethodGrid]:
    """What is tried for each method, by its name: `tuning.methods`, else the grids that the methods themselves have."""
    if tuning.methods:
        return tuning.methods
    own = {method: sampler.grid(method, suite) for method, sampler in samplers.load_all().items()}
    return {method: grid for method, grid in own.items() if grid is not None}


def _known(key: str, names: Sequence[str] | None, allowed: Sequence[str] | Mapping[str, Any]) -> list[str]:
    for name in names or ():
        if name not in allowed:
            raise unknown_name(f"{key} to tune", name, allowed, key)
    return list(names or allowed)


def trials_of(
    suite: str,
    method: str,
    grid: MethodGrid,
    task: str,
    tuning: TuningOptions,
    options: Mapping[str, Mapping[str, Any]],
    runs: Path,
) -> list[Trial]:
    """One trial for each combination of the method's grid, not run yet; arguments as of `tune`."""
    sections = {key: dict(options[key]) for key in ("data", "weights") if options.get(key)}
    trials = []
    for combination in itertools.product(*grid.grid.values()):
        setting = dict(zip(grid.grid, combination, strict=True))
        values = {
            "method": method,
            "task": task,
            "suite": suite,
            "split": "validation",
            "options": {**sections, "method": {**grid.fixed, **setting}},
            "out": runs,
            **{name: value for name, value in tuning if name in RunConfig.model_fields},
        }
        trials.append(Trial(validate(RunConfig, values), setting, grid))
    return trials


def _run_all(trials: Sequence[Trial], workers: int, plugins: Sequence[str]) -> Iterator[Trial]:
    """Runs trials in parallel and yields each as it finishes."""
    # A forked process would inherit the parent's thread pools in an undefined state.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(workers, len(trials)), context, initializer=_start_worker, initargs=(tuple(plugins),))
    try:
        waiting: dict[Future[Any], Trial] = {pool.submit(_run_trial, trial.config): trial for trial in trials}
        for future in as_completed(waiting):
            trial = waiting[future]
            for name, value in future.result().items():
                setattr(trial, name, value)
            yield trial
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _start_worker(plugins: Sequence[str]) -> None:
    torch.set_num_threads(1)
    for path in plugins:
        load_plugin(path)


def _run_trial(config: RunConfig) -> dict[str, Any]:
    """What a trial found out, as attributes of `Trial`; `problem` says why it cannot be chosen."""
    try:
        result = run(config)
        if result.status != Status.DONE:
            return {"problem": result.note}
        store = result.results()
        rows = [row for row in store.metrics() if row.value is not None]
        left_out = [row.n for row in rows if row.metric != COST and row.n < (config.num_images or 0)]
        return {
            "values": {row.name: row.value for row in rows},
            "hash": store.config().hash,
            "problem": f"only {min(left_out)} of {config.num_images} images without a diverged sample" if left_out else "",
            # A trial may have been stored by an earlier version of the code.
            "commit": store.provenance()["sessions"][0]["git_commit"] or "",
            "weights": store.config().identity.weights_sha256,
        }
    except UserError:
        raise
    except Exception as error:  # a setting that breaks its method is one of the things that a grid finds out
        return {"problem": f"{type(error).__name__}: {error}"}


def _choice(group: Sequence[Trial], tuning: TuningOptions) -> Choice:
    """The choice for one method and task."""
    scored = [(trial.score(tuning.objective), trial) for trial in group]
    best_score, best = min(scored, key=lambda pair: pair[0])
    eligible = not math.isinf(best_score)
    psnr_best = max(
        (trial for trial in group if not trial.problem), key=lambda trial: trial.values.get("psnr", -math.inf), default=best
    )
    grid = best.grid.grid
    entry = TunedEntry(
        options={**best.grid.fixed, **best.setting} if eligible else None,
        at_the_edge_of_the_grid=[name for name, values in grid.items() if eligible and _at_edge(best.setting[name], values)],
        weights_sha256=next((trial.weights for trial in group if trial.weights), {}),
    )
    evidence = {
        "best_psnr": psnr_best.setting if "psnr" in psnr_best.values else None,
        "objective": "minimise " + " + ".join(f"log {name}" for name in tuning.objective),
        "protocol": {"split": "validation", "num_images": tuning.num_images, "samples": tuning.samples, "seed": tuning.seed},
        "grid": {name: list(values) for name, values in grid.items()},
        "trials": [
            {
                **trial.setting,
                "objective": None if math.isinf(score) else round(score, 4),
                **{name: float(f"{value:.5g}") for name, value in trial.values.items() if name in _shown(tuning)},
                "run": trial.hash,
                **({"problem": trial.problem} if trial.problem else {}),
            }
            for score, trial in scored
        ],
        "command": " ".join(["vfmbench", *sys.argv[1:]]),
        "git_commits": sorted({trial.commit for trial in group if trial.commit}),
    }
    return Choice(entry, evidence)


def _shown(tuning: TuningOptions) -> set[str]:
    return {*tuning.objective, "psnr", "psnr_mean", "residual", "seconds_per_sample"}


def _at_edge(value: Any, values: Sequence[Any]) -> bool:
    """Whether an ordered option of at least three values was best at its first or last one."""
    ordered = len(values) > 2 and all(isinstance(other, int | float) for other in values)
    return ordered and value in (min(values), max(values))
