"""A sweep that is ready to start: its file read, its jobs planned and chosen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from vfmbench.launching.definitions import read_sweep
from vfmbench.launching.expansion import expand
from vfmbench.launching.jobs import Job
from vfmbench.launching.record import SweepRecord
from vfmbench.launching.status import to_retry
from vfmbench.running.plan import plan
from vfmbench.running.sharding import merge, unfinished_parts


@dataclass(frozen=True)
class Sweep:
    """A sweep whose every name and option has been checked; nothing has been run or written yet.

    Attributes:
        jobs: all of the sweep.
        chosen: the jobs to start.
    """

    name: str
    jobs: list[Job]
    chosen: list[Job]
    record: SweepRecord
    out: Path


def prepare(
    path: Path,
    out: Path | None = None,
    profile: str | None = None,
    fixed: Mapping[str, Any] | None = None,
    elsewhere: bool = False,
) -> Sweep:
    """Reads a sweep file and plans its jobs; those are chosen that have something left to do.

    Args:
        out, profile: replace the file's.
        fixed: values of run keys or options for all runs.
        elsewhere: the jobs are for other machines, whose devices are not known here.

    Raises UserError with the file's line for whatever is wrong in it.
    """
    file = read_sweep(path).changed(out=out, profile=profile).fixing(fixed or {})
    definition = file.definition
    jobs = expand(file, elsewhere)
    record = SweepRecord(definition.out, definition.name)
    return Sweep(definition.name, jobs, [job for job in jobs if job.open], record, definition.out)


def failed_only(sweep: Sweep) -> Sweep:
    """The sweep with only those jobs chosen that failed or were interrupted. Raises UserError if it was never started."""
    ids = to_retry(sweep.record)
    return replace(sweep, chosen=[job for job in sweep.chosen if job.id in ids])


def merge_parts(sweep: Sweep, console: Console) -> None:
    """Finishes every run whose parts are all sampled but not merged."""
    for job in sweep.chosen:
        if job.part is not None and job.part.number == 0:
            checked = plan(job.runs[0].config)
            if not unfinished_parts(checked, job.part.count):
                status = merge(checked, job.part.count).status
                console.print(f"{job.runs[0].directory}: {status}", markup=False)
