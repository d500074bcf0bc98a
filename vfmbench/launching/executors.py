"""Where jobs run: one after the other in this process, or in a bounded number of processes of this machine."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from vfmbench.launching.execution import ProgressBar, last_line, perform
from vfmbench.launching.jobs import Job
from vfmbench.registry import load_plugin

_POLL_SECONDS = 0.5
# submitit wants a limit; nothing on one's own machine has one.
_NO_LIMIT_MINUTES = 60 * 24 * 365


def run_here(jobs: Sequence[Job], folder: Path, console: Console, progress: ProgressBar) -> int:
    """Runs jobs one after the other in this process; returns how many of them failed."""
    failed = 0
    for number, job in enumerate(jobs, start=1):
        console.log(f"[{number}/{len(jobs)}] {job.label}", markup=False)
        try:
            failed += not perform(job, folder, console, progress)
        except Exception as error:
            console.log(f"failed: {last_line(error)}", markup=False)
            failed += 1
    return failed


class RemoteJob:
    """A job as submitit pickles it: called in the process that runs it."""

    def __init__(self, job: Job, folder: Path, plugins: Sequence[str]):
        self.job, self.folder, self.plugins = job, folder, tuple(plugins)

    def __call__(self) -> None:
        """Raises RuntimeError if a run failed, so that the job's own state says so too."""
        for path in self.plugins:
            load_plugin(path)
        if not perform(self.job, self.folder, Console(file=sys.stdout, width=160)):
            raise RuntimeError("a run of this job failed; `vfmbench status` says which")


def run_locally(
    jobs: Sequence[Job], folder: Path, workers: int, plugins: Sequence[str], console: Console
) -> int:
    """Runs jobs through submitit in processes of this machine, at most `workers` at a time; returns how many of them failed.

    The processor's cores are shared out evenly; GPUs are given in turn. An interruption stops the processes too.
    """
    import submitit
    import torch

    gpus = torch.cuda.device_count()
    threads = max(1, len(os.sched_getaffinity(0)) // workers)
    waiting, failed = list(enumerate(jobs, start=1)), 0
    running: dict[int, Any] = {}
    executor = submitit.LocalExecutor(folder / "logs")
    try:
        while waiting or running:
            for slot in range(workers):
                if waiting and slot not in running:
                    number, job = waiting.pop(0)
                    executor.update_parameters(
                        timeout_min=_NO_LIMIT_MINUTES,
                        gpus_per_node=min(1, gpus),
                        visible_gpus=[slot % gpus] if gpus else (),
                        stderr_to_stdout=True,
                    )
                    with _environment(OMP_NUM_THREADS=str(threads)):
                        running[slot] = number, job, executor.submit(RemoteJob(job, folder, plugins))
            for slot, (number, job, process) in list(running.items()):
                if process.done():
                    del running[slot]
                    problem = _problem(process)
                    failed += problem is not None
                    outcome = "done" if problem is None else f"failed: {problem} (log: {process.paths.stdout})"
                    console.log(f"[{number}/{len(jobs)}] {job.label}: {outcome}", markup=False)
            time.sleep(_POLL_SECONDS)
    except KeyboardInterrupt:
        for _, _, process in running.values():
            process.cancel()
        for _, _, process in running.values():
            process._process.wait()
        raise
    return failed


def _problem(process: Any) -> str | None:
    """The last line of what went wrong in a finished process; None if nothing did."""
    try:
        error = process.exception()
    except Exception as lost:  # a process that was killed leaves no result
        error = lost
    return None if error is None else str(error).strip().splitlines()[-1]


@contextmanager
def _environment(**values: str) -> Iterator[None]:
    earlier = {key: os.environ.get(key) for key in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for key, value in earlier.items():
            if value is None:
                del os.environ[key]
            else:
                os.environ[key] = value
