"""What `status` says of a run, from what its job, Slurm and the run directory say."""

import csv
import errno
import json
import os
import socket
import stat

import pytest

from vfmbench.errors import UserError
from vfmbench.launching import cluster, status, worker
from vfmbench.launching.cluster import SlurmState
from vfmbench.launching.sweep import failed_only, merge_parts
from vfmbench.launching.worker import JobState, perform
from vfmbench.results.paths import RunPaths
from vfmbench.results.schema import MetricRow, MetricSpec, metrics_json

TEXT = """\
fixed: {num_images: 4, samples: 2, metrics: [psnr], batch_size: 4}
grid: {method: [pinv], task: [denoise], seed: [0, 1]}
"""
SPLIT = TEXT + "resources: {pinv: {shards: 2}}\n"


@pytest.fixture
def slurm(monkeypatch):
    """Slurm's answers, by job id."""
    answers = {}
    monkeypatch.setattr(cluster, "states", lambda ids: {job: answers[job] for job in ids if job in answers})
    return answers


@pytest.fixture
def started(sweep_of, slurm):
    """A sweep whose plan is written and whose jobs were given to Slurm as 7_0, 7_1, ..."""

    def build(text=TEXT, submitted=True):
        sweep = sweep_of(text)
        sweep.record.write_plan(sweep.jobs)
        log = sweep.record.folder / "log.txt"
        log.write_text("loading\nslurmstepd: error: out of memory\n")
        if submitted:
            entries = {job.id: {"slurm": f"7_{row}", "log": str(log)} for row, job in enumerate(sweep.jobs)}
            sweep.record.write_submitted(entries)
        return sweep

    return build


def own_word(sweep, job, state, slurm="7_0", **facts):
    content = {"state": state, "slurm": slurm, "node": "n1", "process": 1, "seconds": 2.5, "runs": [{}], **facts}
    path = sweep.record.folder / "jobs" / f"{job.id}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content))


def first(sweep):
    row = status.rows(sweep.record)[0]
    return row["status"], row["note"]


@pytest.mark.parametrize(
    ("own", "answer", "expected"),
    [
        (None, None, ("missing", "")),
        (None, SlurmState("queued", "PENDING", ""), ("queued", "")),
        (None, SlurmState("running", "RUNNING", "n1"), ("queued", "")),
        ("running", SlurmState("running", "RUNNING", "n1"), ("running", "")),
        ("training", SlurmState("running", "RUNNING", "n1"), ("training", "")),
        ("running", SlurmState("queued", "REQUEUED", ""), ("queued", "")),
        ("running", SlurmState("", "TIMEOUT", "n1"), ("failed", "TIMEOUT: slurmstepd: error: out of memory")),
        (None, SlurmState("", "NODE_FAIL", "n1"), ("failed", "NODE_FAIL: slurmstepd: error: out of memory")),
        (None, SlurmState("", "CANCELLED", ""), ("interrupted", "CANCELLED")),
        ("interrupted", SlurmState("", "CANCELLED", "n1"), ("interrupted", "CANCELLED")),
        ("running", SlurmState("running", "COMPLETING", "n1"), ("running", "")),
    ],
)
def test_of_a_job_in_slurm(started, slurm, own, answer, expected):
    sweep = started()
    if own:
        own_word(sweep, sweep.jobs[0], own, runs=[{"status": "running"}])
    if answer:
        slurm["7_0"] = answer
    assert first(sweep) == expected


def test_a_failure_is_told_in_the_jobs_own_words(started, slurm):
    sweep = started()
    slurm["7_0"] = SlurmState("", "FAILED", "n1")
    own_word(sweep, sweep.jobs[0], "failed", error="ValueError: 7", runs=[{"status": "failed", "note": "ValueError: 7"}])
    assert first(sweep) == ("failed", "ValueError: 7")
    assert [job.id for job in failed_only(sweep).chosen] == [sweep.jobs[0].id]


def test_what_a_job_said_before_it_was_submitted_again_does_not_count(started, slurm):
    sweep = started()
    own_word(sweep, sweep.jobs[0], "failed", slurm="3_0", error="old", runs=[{}])
    slurm["7_0"] = SlurmState("queued", "PENDING", "")
    assert first(sweep) == ("queued", "")
    assert failed_only(sweep).chosen == []


@pytest.mark.parametrize(("process", "expected"), [(os.getpid(), "running"), (2**22 + 1, "failed")])
def test_a_process_of_this_machine_that_is_gone_has_failed(started, process, expected):
    sweep = started(submitted=False)
    here = {"node": socket.gethostname(), "process": process, "runs": [{"status": "running"}]}
    own_word(sweep, sweep.jobs[0], "running", slurm=None, **here)
    assert first(sweep)[0] == expected


def test_table_of_a_sweep_that_is_partly_done(started, quiet):
    sweep = started(SPLIT, submitted=False)
    parts = [job for job in sweep.jobs if job.runs[0].config.seed == 0]
    assert perform(parts[0], sweep.record.folder, quiet)
    rows = status.rows(sweep.record)
    assert [(row["seed"], row["status"], row["progress"]) for row in rows] == [(0, "interrupted", "2/4"), (1, "missing", "0/4")]
    assert perform(parts[1], sweep.record.folder, quiet)
    rows = status.rows(sweep.record)
    assert [(row["status"], row["progress"]) for row in rows] == [("done", "4/4"), ("missing", "0/4")]
    status.write_csv(sweep.record, rows)
    lines = list(csv.reader(sweep.record.csv.open()))
    assert lines[0][:8] == ["suite", "task", "method", "seed", "status", "progress", "node", "seconds"]
    assert lines[0][12:] == sorted(lines[0][12:])
    assert float(lines[1][lines[0].index("psnr")]) > 10
    assert lines[2][lines[0].index("psnr")] == ""


def test_merge_parts_finishes_what_was_killed(started, sweep_of, quiet, monkeypatch):
    sweep = started(SPLIT, submitted=False)
    from vfmbench.running import sharding

    with monkeypatch.context() as patch:
        patch.setattr(sharding, "execute", lambda plan: (_ for _ in ()).throw(RuntimeError("killed")))
        for job in sweep.jobs[:2]:
            perform(job, sweep.record.folder, quiet)
    again = sweep_of(SPLIT)
    assert [job.part.number for job in again.chosen if job.runs[0].config.seed == 0] == [0]
    merge_parts(again, quiet)
    assert first(again) == ("done", "")


def test_a_full_disk_is_reported(started, quiet, monkeypatch, capsys):
    sweep = started(submitted=False)
    from vfmbench.results import run_directory as store

    def full(path, write):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(store, "replace_file", full)
        assert not perform(sweep.jobs[0], sweep.record.folder, quiet)
    assert first(sweep) == ("failed", "OSError: [Errno 28] No space left on device")
    monkeypatch.setattr(worker, "replace_file", full)
    JobState(sweep.record.folder, sweep.jobs[1]).update("running")
    assert "No space left on device" in capsys.readouterr().err


def test_a_folder_of_runs(started, quiet):
    sweep = started(submitted=False)
    perform(sweep.jobs[0], sweep.record.folder, quiet)
    [row] = status.folder_rows(sweep.out / "runs")
    assert (row["method"], row["status"], row["progress"]) == ("pinv", "done", "4")
    with pytest.raises(UserError, match="There are no runs"):
        status.folder_rows(sweep.record.folder)


def test_a_sweep_that_was_never_started(sweep_of):
    with pytest.raises(UserError, match="never started"):
        status.rows(sweep_of(TEXT).record)


def test_every_run_of_many_has_a_row(sweep_of):
    sweep = sweep_of(TEXT.replace("[0, 1]", str([*range(50)])))
    sweep.record.write_plan(sweep.jobs)
    names = [f"m{k}" for k in range(30)]
    metrics = [MetricRow(name=name, metric="m", value=1.0, low=0.0, high=2.0, spec=MetricSpec(name=name)) for name in names]
    for job in sweep.jobs:
        own_word(sweep, job, "done", slurm=None)
        job.runs[0].directory.mkdir(parents=True)
        RunPaths(job.runs[0].directory).provenance.write_text(json.dumps({"status": "done"}))
        RunPaths(job.runs[0].directory).metrics.write_bytes(metrics_json(metrics))
    rows = status.rows(sweep.record)
    assert [row["seed"] for row in rows] == [*range(50)]
    assert all(row["status"] == "done" and row["m29_high"] == 2.0 for row in rows)


def test_slurms_programs_are_understood(tmp_path, monkeypatch):
    answers = {
        "squeue": "7_0|RUNNING|n1\n7_1|PENDING|\n8|COMPLETING|n2\n",
        "sacct": "7_2|CANCELLED by 0|None assigned|0\n7_3|OUT_OF_MEMORY|n1|12\n7_0|RUNNING|n1|3\n",
        "sbatch": "",
        "srun": "",
    }
    for name, answer in answers.items():
        program = tmp_path / name
        program.write_text(f"#!/bin/sh\ncat <<'EOT'\n{answer}EOT\n")
        program.chmod(program.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    found = cluster.states(["7_0", "7_1", "7_2", "7_3", "9"])
    assert {job: (state.live, state.state) for job, state in found.items()} == {
        "7_0": ("running", "RUNNING"),
        "7_1": ("queued", "PENDING"),
        "7_2": ("", "CANCELLED"),
        "7_3": ("", "OUT_OF_MEMORY"),
    }
    assert found["7_3"].seconds == 12
