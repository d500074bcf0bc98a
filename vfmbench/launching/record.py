"""The sweep's folder, `<out>/sweeps/<name>/`: `plan.json` (its jobs), `jobs/` (a file that each job writes about itself),
`submitted.json` (what was given to Slurm) and `logs/`. Nothing here runs a model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vfmbench.errors import UserError
from vfmbench.files import replace_file
from vfmbench.launching.definitions import read_sweep

if TYPE_CHECKING:  # reading needs no more than files; the import would take longer than the reading
    from vfmbench.launching.jobs import Job, PlannedRun

FIRST_COLUMNS = ("suite", "task", "method", "seed")


class SweepRecord:
    """A sweep's folder; `csv` is the table of its runs."""

    def __init__(self, out: Path, name: str):
        self.folder = out / "sweeps" / name
        self.csv = out / "sweeps" / f"{name}.csv"

    def write_plan(self, jobs: Sequence[Job]) -> None:
        """plan.json: what `vfmbench status` needs to know of the jobs."""
        self.folder.mkdir(parents=True, exist_ok=True)
        content = [
            {
                "id": job.id,
                "label": job.label,
                "training": None
                if job.training is None
                else {"directory": str(job.training.directory), "settings": dict(job.training.settings)},
                "part": None if job.part is None else [job.part.number, job.part.count],
                "runs": [_planned_run(run) for run in job.runs],
            }
            for job in jobs
        ]
        self._write("plan.json", content)

    def plan(self) -> list[dict[str, Any]]:
        """Raises UserError if the sweep was never started."""
        content = self._read("plan.json")
        if not content:
            raise UserError(f"The sweep {self.folder.name} was never started: there is no {self.folder / 'plan.json'}.")
        return content

    def job_state(self, job_id: str) -> dict[str, Any]:
        """What the job wrote about itself; empty if it never began."""
        return self._read(f"jobs/{job_id}.json") or {}

    def submitted(self) -> dict[str, dict[str, Any]]:
        """By job: its Slurm id (`slurm`) and its log file (`log`)."""
        return self._read("submitted.json") or {}

    def write_submitted(self, content: Mapping[str, Mapping[str, Any]]) -> None:
        self._write("submitted.json", content)

    def _read(self, name: str) -> Any:
        path = self.folder / name
        return json.loads(path.read_text()) if path.exists() else None

    def _write(self, name: str, content: Any) -> None:
        replace_file(self.folder / name, json.dumps(content, indent=1, default=str).encode())


def _planned_run(run: PlannedRun) -> dict[str, Any]:
    return {
        "settings": {**{key: getattr(run.config, key) for key in FIRST_COLUMNS}, **run.settings},
        "directory": None if run.directory is None else str(run.directory),
        "status": run.status,
        "note": run.note,
        "images": run.images,
    }


def record_of(path: Path, out: Path | None = None) -> SweepRecord:
    """The record of the sweep file at `path`. Raises UserError if the file is wrong."""
    definition = read_sweep(path).definition
    return SweepRecord(out or definition.out, definition.name)
