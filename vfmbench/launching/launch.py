"""Starting a sweep's jobs, here or on Slurm, and waiting for them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

from rich.console import Console

from vfmbench.errors import Status
from vfmbench.files import locked_directory
from vfmbench.launching import cluster
from vfmbench.launching.executors import run_here, run_locally, submit
from vfmbench.launching.jobs import Job
from vfmbench.launching.record import SweepRecord
from vfmbench.launching.status import rows, write_csv
from vfmbench.launching.sweep import Sweep
from vfmbench.launching.worker import ProgressBar

_POLL_SECONDS = 2.0


def chosen_executor(name: str) -> str:
    """`auto` takes Slurm where there is one. Raises MissingError for `slurm` where there is none."""
    if not cluster.chosen(name):
        return "local" if name == "auto" else name
    cluster.check_available()
    return "slurm"


def here(sweep: Sweep, executor: str, workers: int, plugins: Sequence[str], console: Console, progress: ProgressBar) -> int:
    """Runs the chosen jobs here and writes the table, after an interruption too; returns how many failed.

    Args:
        executor: `local` or `debug`.

    Raises UserError if another process is working on the same sweep.
    """
    with locked_directory(sweep.record.folder):
        jobs = _not_in_slurm(sweep, console)
        sweep.record.write_plan(sweep.jobs)
        _forget(sweep.record, jobs)
        try:
            if executor == "debug":
                return run_here(jobs, sweep.record.folder, console, progress)
            return run_locally(jobs, sweep.record.folder, workers, plugins, console)
        finally:
            write_csv(sweep.record, rows(sweep.record))


def on_slurm(sweep: Sweep, plugins: Sequence[str], console: Console) -> None:
    """Submits the chosen jobs, but for those that are queued or running already.

    Raises UserError if another process is working on the same sweep, or if Slurm refuses a job.
    """
    with locked_directory(sweep.record.folder):
        jobs = _not_in_slurm(sweep, console)
        sweep.record.write_plan(sweep.jobs)
        entries = sweep.record.submitted()

        def submitted(job: Job, slurm: str, log: Path) -> None:
            entries[job.id] = {"slurm": slurm, "log": str(log), "submitted": time.time()}

        try:
            arrays = submit(jobs, f"vfm-{sweep.name}", sweep.record.folder, plugins, submitted) if jobs else 0
        finally:
            sweep.record.write_submitted(entries)
        write_csv(sweep.record, rows(sweep.record))
    console.print(f"{len(jobs)} jobs submitted in {arrays} arrays; what becomes of them: vfmbench status", markup=False)


def _not_in_slurm(sweep: Sweep, console: Console) -> list[Job]:
    """The chosen jobs that are neither queued nor running in Slurm."""
    live = cluster.live_ids({job_id: entry["slurm"] for job_id, entry in sweep.record.submitted().items()})
    jobs = [job for job in sweep.chosen if job.id not in live]
    if len(jobs) < len(sweep.chosen):
        console.print(f"{len(sweep.chosen) - len(jobs)} jobs are queued or running in Slurm already.")
    return jobs


def _forget(record: SweepRecord, jobs: Sequence[Job]) -> None:
    """What Slurm did with jobs that now run here is no longer of interest."""
    ids = {job.id for job in jobs}
    entries = record.submitted()
    if ids & set(entries):
        record.write_submitted({job_id: entry for job_id, entry in entries.items() if job_id not in ids})


def wait(record: SweepRecord, progress: Callable[[int, int], None]) -> int:
    """Waits until none of the sweep's jobs is queued or running in Slurm, then writes the table.

    Returns the number of runs that are neither done nor skipped. An interruption leaves the jobs alone.

    Args:
        progress: called as progress(jobs that have left the queue, jobs).
    """
    ids = {job_id: entry["slurm"] for job_id, entry in record.submitted().items()}
    while live := cluster.live_ids(ids):
        progress(len(ids) - len(live), len(ids))
        time.sleep(_POLL_SECONDS)
    progress(len(ids), len(ids))
    table = rows(record)
    write_csv(record, table)
    return sum(row["status"] not in (Status.DONE, Status.SKIPPED) for row in table)


def overhead(record: SweepRecord) -> tuple[float, float] | None:
    """Median seconds that a job of the sweep waited in Slurm's queue, and that it took before and after its own work (Python's
    start, imports, submitit); None if nothing is known.
    """
    entries = record.submitted()
    known = cluster.states([entry["slurm"] for entry in entries.values()])
    waited, around = [], []
    for job_id, entry in entries.items():
        own = record.job_state(job_id)
        if own.get("state") == Status.DONE and own["slurm"] == entry["slurm"] and entry["slurm"] in known:
            around.append(max(0.0, known[entry["slurm"]].seconds - own["seconds"]))
            waited.append(max(0.0, own["begun"] - entry["submitted"]))
    return (median(waited), median(around)) if around else None
