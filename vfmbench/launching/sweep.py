"""One sweep from its file to its table: the calls that the command line makes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from vfmbench.files import locked_directory
from vfmbench.launching.definitions import read_sweep
from vfmbench.launching.execution import ProgressBar
from vfmbench.launching.executors import run_here, run_locally
from vfmbench.launching.jobs import Job, expand
from vfmbench.launching.record import SweepRecord

EXECUTORS = ("auto", "local", "debug")


@dataclass(frozen=True)
class Sweep:
    """A sweep whose every name and option has been checked; nothing has been run or written yet."""

    jobs: list[Job]
    record: SweepRecord
    out: Path

    @property
    def open(self) -> list[Job]:
        """The jobs that have something left to do."""
        return [job for job in self.jobs if job.open]


def prepare(path: Path, out: Path | None = None) -> Sweep:
    """Reads a sweep file and plans its jobs. Raises UserError with the file's line for whatever is wrong in it.

    Args:
        out: replaces the file's.
    """
    file = read_sweep(path)
    if out is not None:
        file = file.moved(out)
    definition = file.definition
    return Sweep(expand(file), SweepRecord(definition.out, definition.name), definition.out)


def launch(
    sweep: Sweep, executor: str, workers: int, plugins: Sequence[str], console: Console, progress: ProgressBar
) -> int:
    """Runs the open jobs and writes the table, after an interruption too; returns how many jobs failed.

    Raises UserError if another process is working on the same sweep.
    """
    with locked_directory(sweep.record.folder):
        sweep.record.write_plan(sweep.jobs)
        try:
            if executor == "debug":
                return run_here(sweep.open, sweep.record.folder, console, progress)
            return run_locally(sweep.open, sweep.record.folder, workers, plugins, console)
        finally:
            sweep.record.write_csv()
