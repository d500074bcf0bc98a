"""What has become of a sweep's runs: states, progress, failures and metrics, read from files and from Slurm."""

from __future__ import annotations

import csv
import io
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vfmbench.errors import Status, UserError
from vfmbench.files import is_held, replace_file
from vfmbench.launching import cluster
from vfmbench.launching.record import FIRST_COLUMNS, SweepRecord
from vfmbench.results.paths import RunPaths
from vfmbench.results.run_directory import RunStore

QUEUED, RUNNING, TRAINING = "queued", "running", "training"
"""States of a run beside those of `Status`."""

_AFTER_SETTINGS = ("status", "progress", "node", "seconds", "note", "hash", "directory", "weights")
# A run of several parts is what the first of these says that any of its parts is in.
_WORST_FIRST = (Status.FAILED, TRAINING, RUNNING, QUEUED, Status.INTERRUPTED, Status.MISSING, Status.SKIPPED, Status.DONE)

Row = dict[str, Any]


def rows(record: SweepRecord) -> list[Row]:
    """A row for each run, in the order of the sweep file: grid values (training options as `train.*`), status, progress (images
    stored of images planned), node, seconds that its job took so far, note (the last line of a failure), hash, directory,
    weights, and `<metric>`, `<metric>_low`, `<metric>_high`, `<metric>_direction` (an arrow) of each metric of a finished run.

    Raises UserError if the sweep was never started.
    """
    found: dict[str, Row] = {}
    for job, seen in _jobs(record):
        for position, run in enumerate(job["runs"]):
            row = _row(job, run, position, seen)
            key = row["directory"] if job["part"] else f"{job['id']}/{position}"
            found[key] = _combined(found[key], row) if key in found else row
    return list(found.values())


def _jobs(record: SweepRecord) -> Iterator[tuple[dict[str, Any], _Job]]:
    """The jobs of the plan, each with what is known of it."""
    submitted = record.submitted()
    slurm = cluster.states([entry["slurm"] for entry in submitted.values()])
    for job in record.plan():
        entry = submitted.get(job["id"], {})
        yield job, _Job(record.job_state(job["id"]), slurm.get(entry.get("slurm", "")), entry)


class _Job:
    """What is known of a job: its own word, Slurm's, and the operating system's."""

    def __init__(self, own: Mapping[str, Any], slurm: cluster.SlurmState | None, entry: Mapping[str, Any]):
        self.own, self.slurm = own, slurm
        self._log = Path(entry["log"]) if "log" in entry else None
        # A file of an earlier start says nothing about a job that was submitted again since.
        self._current = not entry or own.get("slurm") == entry.get("slurm")

    @property
    def state(self) -> str:
        """One of `Status` or of this module's states; `missing` for a job that was never started."""
        own = self.own.get("state") if self._current else None
        if self.slurm is not None and self.slurm.live:
            return own if self.slurm.live == RUNNING and own == TRAINING else self.slurm.live
        if own in (TRAINING, RUNNING):
            return own if self.slurm is None and self._alive() else Status.FAILED
        if own is None and self.slurm is not None:
            return Status.INTERRUPTED if self.slurm.state == "CANCELLED" else Status.FAILED
        return own or Status.MISSING

    def _alive(self) -> bool:
        """Whether the job's process is there; believed of other machines."""
        if self.own["node"] != socket.gethostname():
            return True
        try:
            os.kill(self.own["process"], 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            return True
        return True

    @property
    def problem(self) -> str:
        """Why the job ended before it was done, in one line."""
        if self._current and "error" in self.own:
            return self.own["error"]
        ended = self.slurm.state if self.slurm is not None else "its process is gone"
        if self.state == Status.INTERRUPTED:
            return ended if self.slurm is not None else ""
        return ": ".join(filter(None, [ended, self._last_line()]))

    def _last_line(self) -> str:
        if self._log is None or not self._log.exists():
            return ""
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else ""


def _row(job: Mapping[str, Any], run: Mapping[str, Any], position: int, seen: _Job) -> Row:
    reported = seen.own["runs"][position] if seen.own else {}
    directory = reported.get("directory") or run["directory"]
    status, note = _state(run, reported, directory, seen)
    training = job["training"] or {"settings": {}, "directory": ""}
    return {
        **run["settings"],
        **{f"train.{key}": value for key, value in training["settings"].items()},
        "status": str(status),
        "progress": _progress(run, directory, status),
        "node": seen.own.get("node", "") if seen.slurm is None else seen.slurm.node,
        "seconds": round(seen.own["seconds"], 1) if "seconds" in seen.own else "",
        "note": note,
        "hash": "" if directory is None else Path(directory).name,
        "directory": directory or "",
        "weights": training["directory"],
        **(_metrics(directory) if status == Status.DONE else {}),
    }


def _state(run: Mapping[str, Any], reported: Mapping[str, Any], directory: str | None, seen: _Job) -> tuple[str, str]:
    """Status and note of a run."""
    stored = {} if directory is None else RunStore(Path(directory)).provenance()
    if stored.get("status") == Status.DONE:
        return Status.DONE, stored.get("note", "")
    state = seen.state
    if state in (QUEUED, RUNNING, TRAINING):
        # Later runs of the same job wait for their turn.
        return (state if state != RUNNING or reported else QUEUED), ""
    if reported.get("status") in (Status.FAILED, Status.MISSING, Status.SKIPPED):
        return reported["status"], reported["note"]
    if state in (Status.FAILED, Status.INTERRUPTED):
        return state, seen.problem
    if state == Status.DONE:  # one part of several
        return Status.INTERRUPTED, reported.get("note", "")
    if run["status"] in (Status.SKIPPED, Status.MISSING):
        return run["status"], run["note"]
    return stored.get("status", Status.MISSING), stored.get("error", "")


def _combined(first: Row, second: Row) -> Row:
    """The row of a run from those of two of its parts."""
    worst, other = sorted((first, second), key=lambda row: _WORST_FIRST.index(row["status"]))
    nodes = dict.fromkeys(node for row in (first, second) for node in row["node"].split(" ") if node)
    seconds = sum(row["seconds"] or 0 for row in (first, second))
    return {**worst, "node": " ".join(nodes), "seconds": seconds, "note": worst["note"] or other["note"]}


def _progress(run: Mapping[str, Any], directory: str | None, status: str) -> str:
    if status == Status.SKIPPED or not run["images"]:
        return ""
    if status == Status.DONE:
        return f"{run['images']}/{run['images']}"
    stored = 0 if directory is None else RunPaths(Path(directory)).stored_images()
    return f"{stored}/{run['images']}"


def _metrics(directory: str | None) -> dict[str, float | str]:
    columns: dict[str, float | str] = {}
    for row in [] if directory is None else RunStore(Path(directory)).readable_metrics():
        for suffix, number in (("", row.value), ("_low", row.low), ("_high", row.high)):
            if number is not None:
                columns[row.name + suffix] = number
        if row.value is not None and row.direction is not None:
            columns[f"{row.name}_direction"] = str(row.direction)
    return columns


def folder_rows(folder: Path) -> list[Row]:
    """A row for each run directory below a folder, in order of their paths.

    Raises UserError if the folder does not exist or there are none.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is neither a sweep file nor a folder.")
    found = []
    for paths in RunPaths.below(folder):
        directory = paths.directory
        stored = RunStore(directory).provenance()
        status = RUNNING if is_held(directory) else stored.get("status", Status.INTERRUPTED)
        suite, task, method = directory.resolve().parts[-4:-1]
        found.append(
            {
                **{"suite": suite, "task": task, "method": method},
                "status": str(status),
                "progress": str(paths.stored_images()),
                "note": stored.get("error", "") if status == Status.FAILED else stored.get("note", ""),
                "hash": directory.name,
            }
        )
    if not found:
        raise UserError(f"There are no runs in {folder}.")
    return found


def settings_columns(table: Sequence[Row]) -> list[str]:
    """Columns of grid values: suite, task, method, seed, other keys of runs, then `train.*`, each group by name."""
    names = {key for row in table for key in list(row)[: list(row).index("status")]} - {*FIRST_COLUMNS}
    return [*FIRST_COLUMNS, *sorted(names, key=lambda name: (name.startswith("train."), name))]


def write_csv(record: SweepRecord, table: Sequence[Row]) -> None:
    """Writes the rows; columns are those of grid values, then what is known of the run, then metrics by name."""
    before = [*settings_columns(table), *_AFTER_SETTINGS]
    metrics = sorted({key for row in table for key in row} - {*before})
    text = io.StringIO()
    writer = csv.DictWriter(text, [*before, *metrics], restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    replace_file(record.csv, text.getvalue().encode())


def to_retry(record: SweepRecord) -> set[str]:
    """Ids of the jobs that failed or were interrupted and do not go on by themselves."""
    return {job["id"] for job, seen in _jobs(record) if seen.state in (Status.FAILED, Status.INTERRUPTED)}
