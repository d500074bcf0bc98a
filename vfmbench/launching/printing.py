"""A sweep's jobs before it runs and the state of its runs afterwards, as text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from vfmbench.launching.sweep import Sweep

_DETAILS = ("status", "progress", "node", "time", "hash", "note")


def print_plan(sweep: Sweep, console: Console) -> None:
    """The jobs, how many there are, and how long those that have something left to do will take."""
    from vfmbench.launching.estimates import estimate

    table = Table("job", "what", "training", "runs", "state")
    for job in sweep.jobs:
        states = Counter("done" if job.part_done else run.status or "to do" for run in job.runs)
        state = ", ".join(f"{count} {name}" if len(job.runs) > 1 else str(name) for name, count in states.items())
        trained = "" if job.training is None else "done" if job.training.finished else f"{job.training.steps} steps"
        table.add_row(job.id, job.label, trained, str(len(job.runs)), state)
    console.print(table)
    for note in dict.fromkeys(f"{run.config.method}: {run.note}" for job in sweep.jobs for run in job.runs if run.note):
        console.print(note, markup=False, soft_wrap=True)
    runs = {run.config.model_dump_json() for job in sweep.jobs for run in job.runs}
    classes = {job.resources.model_dump_json(exclude={"shards"}) for job in sweep.jobs}
    console.print(
        f"{len(sweep.jobs)} jobs with {len(runs)} runs, in {len(classes)} classes of resources; "
        f"{len(sweep.chosen)} jobs have something left to do."
    )
    if sweep.chosen:
        seconds, unknown = estimate(sweep.chosen, sweep.out)
        parts = f" and {unknown} parts of which no cost is stored yet" if unknown else ""
        console.print(f"Estimated time of one job after the other: {duration(seconds)}{parts}.")


def duration(seconds: float) -> str:
    """Hours, minutes and seconds, e.g. 1:02:03."""
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def print_status(rows: Sequence[Mapping[str, Any]], console: Console) -> None:
    """A line for each run with its grid values, state and what went wrong, and the count of each state."""
    given = dict.fromkeys(key for row in rows for key in list(row)[: list(row).index("status")])
    varying = [key for key in given if key in ("task", "method") or len({str(row[key]) for row in rows if key in row}) > 1]
    shown = [{**row, "time": duration(row["seconds"]) if row.get("seconds") else ""} for row in rows]
    details = [key for key in _DETAILS if any(row.get(key) for row in shown)]
    table = Table(*varying, *("run" if key == "hash" else key for key in details))
    for row in shown:
        table.add_row(*(str(row.get(key, "")) for key in (*varying, *details)))
    console.print(table, markup=False)
    states = Counter(row["status"] for row in rows)
    console.print(f"{len(rows)} runs: " + ", ".join(f"{count} {state}" for state, count in sorted(states.items())))
