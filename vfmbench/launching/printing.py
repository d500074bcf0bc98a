"""A sweep's jobs before it runs and the state of its runs afterwards, as text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from vfmbench.launching.sweep import Sweep


def print_plan(sweep: Sweep, console: Console) -> None:
    """The jobs, how many there are, and how long the open ones will take."""
    from vfmbench.launching.estimates import estimate

    table = Table("job", "what", "training", "runs", "state")
    for job in sweep.jobs:
        states = Counter(run.status or "to do" for run in job.runs)
        state = ", ".join(f"{count} {name}" if len(job.runs) > 1 else str(name) for name, count in states.items())
        trained = "" if job.training is None else "done" if job.training.finished else f"{job.training.steps} steps"
        table.add_row(job.id, job.label, trained, str(len(job.runs)), state)
    console.print(table)
    for note in dict.fromkeys(f"{run.config.method}: {run.note}" for job in sweep.jobs for run in job.runs if run.note):
        console.print(note, markup=False, soft_wrap=True)
    runs = [run for job in sweep.jobs for run in job.runs]
    seconds, unknown = estimate(sweep.jobs, sweep.out)
    console.print(f"{len(sweep.jobs)} jobs with {len(runs)} runs; {len(sweep.open)} jobs have something left to do.")
    if sweep.open:
        parts = f" and {unknown} parts of which no cost is stored yet" if unknown else ""
        console.print(f"Estimated time of one process after the other: {duration(seconds)}{parts}.")


def duration(seconds: float) -> str:
    """Hours, minutes and seconds, e.g. 1:02:03."""
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def print_status(rows: Sequence[Mapping[str, Any]], console: Console) -> None:
    """A line for each run with its grid values, state and what went wrong, and the count of each state."""
    given = [key for key in dict.fromkeys(key for row in rows for key in row) if key in _settings(rows)]
    varying = [key for key in given if len({str(row.get(key, "")) for row in rows}) > 1 or key in ("task", "method")]
    table = Table(*varying, "status", "run", "note")
    for row in rows:
        values = [str(row.get(key, "")) for key in varying]
        table.add_row(*values, row["status"], row["hash"], row["note"])
    console.print(table)
    states = Counter(row["status"] for row in rows)
    console.print(f"{len(rows)} runs: " + ", ".join(f"{count} {state}" for state, count in sorted(states.items())))


def _settings(rows: Sequence[Mapping[str, Any]]) -> set[str]:
    """Keys of grid values: all that stand before `status` in some row."""
    return {key for row in rows for key in list(row)[: list(row).index("status")]}
