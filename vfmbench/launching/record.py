"""The sweep's folder, `<out>/sweeps/<name>/`: `plan.json` (its jobs), `jobs/` (a file that each job writes about itself) and
`logs/`; and from these and the run directories a row for each run, as `<out>/sweeps/<name>.csv`. Nothing here runs a model.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vfmbench.files import replace_file
from vfmbench.interfaces import Status, UserError
from vfmbench.launching.definitions import read_sweep

if TYPE_CHECKING:  # reading needs no more than files; the import would take longer than the reading
    from vfmbench.launching.jobs import Job

_FIRST_COLUMNS = ("suite", "task", "method", "seed")


def record_of(path: Path, out: Path | None = None) -> SweepRecord:
    """The record of the sweep file at `path`.

    Raises UserError if the file is wrong or the sweep was never started.
    """
    definition = read_sweep(path).definition
    record = SweepRecord(out or definition.out, definition.name)
    if not record.plan():
        raise UserError(f"The sweep {definition.name} was never started: vfmbench sweep {path}")
    return record


class SweepRecord:
    """A sweep's folder."""

    def __init__(self, out: Path, name: str):
        self.folder = out / "sweeps" / name
        self.csv = out / "sweeps" / f"{name}.csv"

    def write_plan(self, jobs: Sequence[Job]) -> None:
        """plan.json: what `rows` needs to know of the jobs."""
        self.folder.mkdir(parents=True, exist_ok=True)
        content = [
            {
                "id": job.id,
                "label": job.label,
                "training": None
                if job.training is None
                else {"directory": str(job.training.directory), "settings": dict(job.training.settings)},
                "runs": [
                    {
                        "settings": {**{key: getattr(run.config, key) for key in _FIRST_COLUMNS}, **run.settings},
                        "directory": None if run.directory is None else str(run.directory),
                        "status": run.status,
                        "note": run.note,
                    }
                    for run in job.runs
                ],
            }
            for job in jobs
        ]
        replace_file(self.folder / "plan.json", json.dumps(content, indent=1, default=str).encode())

    def plan(self) -> list[dict[str, Any]]:
        path = self.folder / "plan.json"
        return json.loads(path.read_text()) if path.exists() else []

    def job_state(self, job_id: str) -> dict[str, Any]:
        """What the job wrote about itself; empty if it never began."""
        path = self.folder / "jobs" / f"{job_id}.json"
        return json.loads(path.read_text()) if path.exists() else {}

    def rows(self) -> list[dict[str, Any]]:
        """A row for each run, in the order of the sweep file: grid values (training options as `train.*`), status, note, hash,
        directory, weights, and `<metric>`, `<metric>_low`, `<metric>_high` of each metric that the run has.
        """
        return [row for job in self.plan() for row in self._job_rows(job)]

    def _job_rows(self, job: Mapping[str, Any]) -> list[dict[str, Any]]:
        state = self.job_state(job["id"])
        training = job["training"] or {"settings": {}, "directory": None}
        rows = []
        for position, run in enumerate(job["runs"]):
            reported = state["runs"][position] if state else {}
            directory = reported.get("directory") or run["directory"]
            provenance = _read(directory, "provenance.json")
            status = provenance.get("status") or reported.get("status") or run["status"] or Status.MISSING
            if run["status"] == Status.SKIPPED:
                status = Status.SKIPPED
            note = provenance.get("error") or provenance.get("note") or reported.get("note") or run["note"]
            if state.get("state") == "failed" and not directory:
                status, note = Status.FAILED, state["error"]
            rows.append(
                {
                    **run["settings"],
                    **{f"train.{key}": value for key, value in training["settings"].items()},
                    "status": str(status),
                    "note": note,
                    "hash": "" if directory is None else Path(directory).name,
                    "directory": directory or "",
                    "weights": training["directory"] or "",
                    **(_metrics(directory) if status == Status.DONE else {}),
                }
            )
        return rows

    def write_csv(self) -> list[dict[str, Any]]:
        """Writes the rows, columns in a fixed order: suite, task, method, seed, other grid values, training options, status,
        note, hash, directory, weights, then metrics by name. Returns the rows.
        """
        rows = self.rows()
        fixed = ("status", "note", "hash", "directory", "weights")
        settings = sorted({key for job in self.plan() for run in job["runs"] for key in run["settings"]} - {*_FIRST_COLUMNS})
        trained = sorted({key for row in rows for key in row if key.startswith("train.")})
        before = [*_FIRST_COLUMNS, *settings, *trained, *fixed]
        metrics = sorted({key for row in rows for key in row} - {*before})
        text = io.StringIO()
        writer = csv.DictWriter(text, [*before, *metrics], restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        replace_file(self.csv, text.getvalue().encode())
        return rows


def _read(directory: str | None, name: str) -> dict[str, Any]:
    if directory is None:
        return {}
    path = Path(directory) / name
    return json.loads(path.read_text()) if path.exists() else {}


def _metrics(directory: str) -> dict[str, float]:
    columns = {}
    for row in _read(directory, "metrics.json").get("metrics", []):
        for suffix, key in (("", "value"), ("_low", "low"), ("_high", "high")):
            if row[key] is not None:
                columns[row["name"] + suffix] = row[key]
    return columns
