"""How jobs run: signals, processes of this machine, a second sweep at the same time."""

import os
import signal

import pytest

from vfmbench.cli import main
from vfmbench.errors import MissingError
from vfmbench.files import BusyError, locked_directory
from vfmbench.launching import executors, launch, status
from vfmbench.launching.executors import JobCall

TEXT = """\
fixed: {num_images: 2, samples: 2, metrics: [psnr]}
grid: {method: [pinv, adjoint], task: [denoise]}
"""


@pytest.fixture(autouse=True)
def _handlers():
    earlier = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR2)}
    yield
    for number, handler in earlier.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(("number", "requeued"), [(signal.SIGTERM, []), (signal.SIGUSR2, [signal.SIGUSR2])])
def test_signals_stop_a_job_and_only_usr2_puts_it_back(sweep_of, monkeypatch, number, requeued):
    asked = []
    signal.signal(signal.SIGUSR2, lambda signum, frame: asked.append(signum))
    sweep = sweep_of(TEXT)

    def signalled(checked, update):
        os.kill(os.getpid(), number)
        raise AssertionError("went on")

    monkeypatch.setattr("vfmbench.launching.worker.execute", signalled)
    with pytest.raises(SystemExit) as caught:
        JobCall(sweep.record.folder, ())(sweep.jobs[0])
    assert caught.value.code == 75
    assert asked == requeued
    assert sweep.record.job_state(sweep.jobs[0].id)["state"] == "interrupted"


def test_processes_of_this_machine(sweep_of, quiet, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    sweep = sweep_of(TEXT)
    assert launch.here(sweep, "local", 2, (), quiet, None) == 0
    assert [row["status"] for row in status.rows(sweep.record)] == ["done", "done"]
    assert sweep_of(TEXT).chosen == []
    assert os.environ["OMP_NUM_THREADS"] == "1"


def test_a_job_that_fails_does_not_stop_the_others(sweep_of, quiet, monkeypatch):
    sweep = sweep_of(TEXT)
    real = executors.perform

    def breaks(job, *rest):
        if job.runs[0].config.method == "pinv":
            raise RuntimeError("no luck")
        return real(job, *rest)

    from vfmbench.launching.worker import silent

    monkeypatch.setattr(executors, "perform", breaks)
    assert launch.here(sweep, "debug", 1, (), quiet, silent) == 1
    assert [row["status"] for row in status.rows(sweep.record)] == ["missing", "done"]


def test_two_sweeps_on_the_same_output(sweep_of, quiet):
    sweep = sweep_of(TEXT)
    with locked_directory(sweep.record.folder), pytest.raises(BusyError, match="Another process is working on"):
        launch.here(sweep, "debug", 1, (), quiet, None)


def test_without_slurm(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert launch.chosen_executor("auto") == "local"
    with pytest.raises(MissingError, match="--executor local"):
        launch.chosen_executor("slurm")
    file = tmp_path / "mine.yaml"
    file.write_text(f"out: {tmp_path}\n{TEXT}")
    assert main(["sweep", str(file), "--executor", "slurm"]) == 3
    assert "use --executor local" in capsys.readouterr().err


def test_command_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    file = tmp_path / "mine.yaml"
    file.write_text(f"out: {tmp_path}\n{TEXT}")
    assert main(["sweep", str(file), "--dry-run"]) == 0
    assert not (tmp_path / "sweeps").exists()
    assert main(["status", str(file)]) == 2
    assert main(["sweep", str(file), "--executor", "debug"]) == 0
    assert main(["sweep", str(file), "--dry-run"]) == 0
    assert main(["status", str(file), "--retry", "failed", "--executor", "debug"]) == 0
    assert main(["status", str(file)]) == 0
    assert main(["status", str(tmp_path / "runs")]) == 0
    output = capsys.readouterr()
    assert "2 jobs with 2 runs, in 1 classes of resources; 2 jobs have something left to do." in output.out
    assert "0 jobs have something left to do." in output.out
    assert output.out.count("2 runs: 2 done") == 4
    file.write_text(f"out: {tmp_path}\n{TEXT}sead: 1\n")
    assert main(["sweep", str(file)]) == 2
    assert "mine.yaml:4: Unknown key 'sead'" in capsys.readouterr().err
