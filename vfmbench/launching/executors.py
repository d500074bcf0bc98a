"""Where jobs run: one after the other in this process, in a bounded number of processes of this machine, or on a cluster."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import submitit
import torch
from rich.console import Console

from vfmbench import threads
from vfmbench.launching import cluster
from vfmbench.launching.jobs import Job, digest
from vfmbench.launching.worker import ProgressBar, last_line, perform
from vfmbench.registry import load_plugin

_POLL_SECONDS = 0.5
_INTERRUPTED = 75
# submitit wants a limit; nothing on one's own machine has one.
_NO_LIMIT_MINUTES = 60 * 24 * 365


class JobCall:
    """What submitit pickles and calls, with a job, in the process that runs it.

    SIGTERM stops the job once what it has finished is stored. SIGUSR2, which submitit has Slurm send before the time limit and
    at preemption, does so too and puts the job back into the queue, where it resumes at the first missing image or step.
    """

    def __init__(self, folder: Path, plugins: Sequence[str]):
        self.folder, self.plugins = folder, tuple(plugins)

    def __call__(self, job: Job) -> None:
        """Raises RuntimeError if a run failed, so that the job's own state says so too."""
        requeue: Any = signal.getsignal(signal.SIGUSR2)
        asked: list[int] = []

        def pause(signum: int, frame: Any) -> None:
            # The trainer only listens for SIGTERM, to end its step first.
            asked.append(signum)
            os.kill(os.getpid(), signal.SIGTERM)

        signal.signal(signal.SIGTERM, _interrupt)
        signal.signal(signal.SIGUSR2, pause)
        for path in self.plugins:
            load_plugin(path)
        try:
            done = perform(job, self.folder, Console(file=sys.stdout, width=160))
        except KeyboardInterrupt:
            if asked:
                requeue(signal.SIGUSR2, None)
            sys.exit(_INTERRUPTED)
        if not done:
            raise RuntimeError("a run of this job failed; `vfmbench status` says which")

    def checkpoint(self, job: Job) -> submitit.helpers.DelayedSubmission:
        """What submitit runs after a requeue: the same; whatever is finished lies in the job's folders."""
        return submitit.helpers.DelayedSubmission(self, job)


def _interrupt(signum: int, frame: Any) -> None:
    raise KeyboardInterrupt


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


def run_locally(jobs: Sequence[Job], folder: Path, workers: int, plugins: Sequence[str], console: Console) -> int:
    """Runs jobs through submitit in processes of this machine, at most `workers` at a time; returns how many of them failed.

    The processor's cores are shared out evenly; GPUs are given in turn. An interruption stops the processes too.
    """
    gpus = torch.cuda.device_count()
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
                    with _started_quietly(OMP_NUM_THREADS=str(threads.of_a_worker(workers))):
                        running[slot] = number, job, executor.submit(JobCall(folder, plugins), job)
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
            os.kill(int(process.job_id), signal.SIGTERM)
        while not all(process.done() for _, _, process in running.values()):
            time.sleep(_POLL_SECONDS)
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
def _started_quietly(**environment: str) -> Iterator[None]:
    """Processes started meanwhile have these environment variables and do not hear Ctrl-C, which is passed on as SIGTERM."""
    earlier = {key: os.environ.get(key) for key in environment}
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.update(environment)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        for key, value in earlier.items():
            if value is None:
                del os.environ[key]
            else:
                os.environ[key] = value


def submit(
    jobs: Sequence[Job], name: str, folder: Path, plugins: Sequence[str], submitted: Callable[[Job, str, Path], None]
) -> int:
    """Submits jobs to Slurm, one array for each class of resources; returns the number of arrays.

    Args:
        submitted: called with each job, its Slurm id and its log, as soon as its array is submitted.

    Raises UserError if Slurm refuses one; those submitted before it stay submitted.
    """
    classes: dict[str, list[Job]] = {}
    for job in jobs:
        classes.setdefault(digest(job.resources.model_dump(exclude={"shards"})), []).append(job)
    for group in classes.values():
        call, logs = JobCall(folder, plugins), folder / "logs"
        for job, (slurm, log) in zip(group, cluster.submit(group, call, group[0].resources, name, logs), strict=True):
            submitted(job, slurm, log)
    return len(classes)
