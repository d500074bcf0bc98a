"""What a job does in the process that it was given, and what it leaves for `vfmbench status` to read."""

from __future__ import annotations

import json
import os
import socket
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from rich.console import Console

from vfmbench.errors import MissingError, Status
from vfmbench.files import replace_file
from vfmbench.interfaces import Suite
from vfmbench.launching.jobs import Job, Training
from vfmbench.registry import stages
from vfmbench.results.schema import COST
from vfmbench.running.plan import choose_device, plan
from vfmbench.running.runner import execute
from vfmbench.running.sampling import Progress
from vfmbench.running.sharding import execute_part
from vfmbench.training.train import train

ProgressBar = Callable[[str], AbstractContextManager[Progress]]


def silent(title: str) -> AbstractContextManager[Progress]:
    """No progress bar: for processes whose output is a log."""
    return nullcontext(lambda done, planned: None)


class JobState:
    """The file that a job writes about itself; its only writer is the process that runs the job."""

    def __init__(self, folder: Path, job: Job):
        self._path = folder / "jobs" / f"{job.id}.json"
        self._begun = time.time()
        self._content: dict[str, Any] = {
            "label": job.label,
            "node": socket.gethostname(),
            "process": os.getpid(),
            "slurm": slurm_id(),
            "begun": self._begun,
            "runs": [{} for _ in job.runs],
        }

    def update(self, state: str, **facts: object) -> None:
        """Args: state: training, running, done, failed or interrupted."""
        self._content.update(state=state, seconds=time.time() - self._begun, **facts)
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(self._path, json.dumps(self._content, indent=1, default=str).encode())
        except OSError as error:
            # A full disk must not hide what the job has to say, which then stands in its log.
            print(f"cannot write {self._path}: {error}", file=sys.stderr)

    def run(self, position: int, **facts: object) -> None:
        """Facts about the run at this position of the job."""
        self._content["runs"][position].update(facts)
        self.update("running")


def slurm_id() -> str | None:
    """How Slurm calls the job that this process belongs to, array elements as `12_3`; None outside Slurm."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")


def perform(job: Job, folder: Path, console: Console, progress: ProgressBar = silent) -> bool:
    """Trains and runs what is missing of a job; returns whether nothing failed.

    A run that fails does not keep the others of the job from running.

    Args:
        folder: of the sweep, where the job's state is written.

    Raises what the training raises; KeyboardInterrupt after everything finished so far has been stored.
    """
    state = JobState(folder, job)
    try:
        if job.training is not None:
            state.update("training")
            _train(job.training, job.runs[0].config.device, console)
        failures = [_run(position, job, state, console, progress) for position in range(len(job.runs))]
    except KeyboardInterrupt:
        state.update("interrupted")
        raise
    except Exception as error:
        state.update("failed", error=last_line(error))
        raise
    errors = [failure for failure in failures if failure]
    state.update("failed" if errors else "done", **({"error": errors[0]} if errors else {}))
    return not errors


def _run(position: int, job: Job, state: JobState, console: Console, progress: ProgressBar) -> str:
    """Does one run of a job, or its part of it; returns why it failed, or nothing."""
    config = job.runs[position].config
    title = f"{config.method} on {config.task}"
    try:
        checked = plan(config)
        state.run(position, directory=str(checked.store.directory), status="running")
        with progress(title) as update:
            result = execute(checked, update) if job.part is None else execute_part(checked, job.part, update)
    except MissingError as error:
        state.run(position, status=Status.MISSING, note=str(error))
        console.log(f"{title}: missing: {error}", markup=False)
        return str(error)
    except Exception as error:
        state.run(position, status=Status.FAILED, note=last_line(error))
        console.print(traceback.format_exc(), markup=False, highlight=False)
        return last_line(error)
    state.run(position, status=result.status, note=result.note)
    rows = result.results().metrics() if result.status == Status.DONE else []
    shown = [f"{row.name} {row.value:.4g}" for row in rows if row.metric != COST and row.value is not None]
    console.log(f"{title}: {result.status} {result.note or '  '.join(shown)}", markup=False)
    return ""


def last_line(error: BaseException) -> str:
    """How a traceback would end: the error's type and message in one line."""
    return traceback.format_exception_only(error)[-1].strip()


def _train(training: Training, device: str, console: Console) -> None:
    suite = training.build_suite()
    overrides: Mapping[str, Mapping[str, Any]] = {training.stage: training.options}
    train(training.stage, suite, overrides, training.directory, choose_device(device), False, console)
    put_other_weights(suite, training)


def put_other_weights(suite: Suite, training: Training) -> None:
    """Puts the suite's other weights beside the trained ones, so that the folder serves as `weights.path`.

    Weights that were themselves trained from the stage stay away: they belong to the suite's own weights of the stage.
    """
    trained = suite.with_weights(training.directory).weights
    for name in suite.training:
        if training.stage in _origins(suite, name):
            continue
        sha256 = _stored_hash(suite.weights, name)
        if sha256 is not None and _stored_hash(trained, name) != sha256:
            trained.copy(name, suite.weights)


def _origins(suite: Suite, name: str) -> set[str]:
    """The stage itself and all whose weights it is trained from, directly or not."""
    stage = stages.get(suite.training[name].get("objective", name))
    return {name}.union(*(_origins(suite, need) for need in stage.needed(suite)))


def _stored_hash(store: Any, name: str) -> str | None:
    try:
        return store.sha256(name)
    except MissingError:
        return None
