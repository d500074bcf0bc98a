"""Sweeps on a real Slurm: a single node that the shared script starts, or the one that SLURM_CONF names.

Skipped where there is none; with VFMBENCH_REQUIRE_SLURM=1, as in CI, that is a failure.
"""

import io
import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from vfmbench.cli import main
from vfmbench.launching import cluster, launch, status
from vfmbench.launching.sweep import failed_only, prepare
from vfmbench.registry import load_plugin
from vfmbench.results.paths import RunPaths
from vfmbench.running.runner import run

SCRIPT = Path(os.environ.get("VFMBENCH_START_SLURM", Path(__file__).parents[3] / "shared" / "slurm" / "start-slurm.sh"))
QUIET = Console(file=io.StringIO())
MINUTES = 60

# A method that sleeps in every batch and writes down which images it was given, and one that fails.
PLUGIN = """
import os, time
from pathlib import Path
from pydantic import Field
from vfmbench.interfaces import Sampler
from vfmbench.measurement import Samples
from vfmbench.options import SamplerOptions
from vfmbench.registry import samplers

class Slow(Sampler):
    class Options(SamplerOptions):
        seconds: float = 1.0
        diary: str = Field("")

    def sample(self, measurement, num_samples, noise):
        with Path(self.options.diary).open("a") as file:
            file.write(f"{os.environ.get('SLURM_RESTART_COUNT', 0)} {measurement.index.tolist()}\\n")
        time.sleep(self.options.seconds)
        images = measurement.operator.pinv(measurement.y)
        return Samples(images[:, None].expand(-1, num_samples, -1, -1, -1))

class Broken(Slow):
    def sample(self, measurement, num_samples, noise):
        raise ValueError("boom 7")

samplers.register("slow", Slow)
samplers.register("broken", Broken)
"""


def _unavailable(reason):
    if os.environ.get("VFMBENCH_REQUIRE_SLURM"):
        pytest.fail(f"VFMBENCH_REQUIRE_SLURM is set, but {reason}")
    pytest.skip(reason)


@pytest.fixture(scope="module")
def slurm():
    """The environment variables of a running Slurm are set; one that was started here is stopped in the end."""
    if os.environ.get("SLURM_CONF"):
        if not cluster.available():
            _unavailable("SLURM_CONF is set, but sbatch, srun or squeue is not on the PATH")
        yield
        return
    if not SCRIPT.exists():
        _unavailable(f"no Slurm is running (SLURM_CONF) and there is no {SCRIPT} to start one")
    if os.geteuid() != 0 and not shutil.which("slurmctld"):
        _unavailable("Slurm is not installed, and only root can install it")
    # Unix sockets allow no long paths.
    folder = tempfile.mkdtemp(prefix="vfm-slurm-", dir="/tmp")
    started = subprocess.run([str(SCRIPT), folder], capture_output=True, text=True)
    if started.returncode:
        _unavailable(f"{SCRIPT} could not start Slurm: {started.stderr.strip().splitlines()[-1]}")
    words = [line.removeprefix("export ").partition("=") for line in started.stdout.splitlines()]
    with pytest.MonkeyPatch.context() as patch:
        for name, _, value in words:
            patch.setenv(name, value.strip("'\""))
        yield
    subprocess.run([str(SCRIPT.parent / "stop-slurm.sh"), folder, "--purge"], capture_output=True)


@pytest.fixture(scope="module")
def plugin(tmp_path_factory):
    path = tmp_path_factory.mktemp("plugin") / "slow.py"
    path.write_text(PLUGIN)
    load_plugin(str(path))
    return str(path)


@pytest.fixture
def sweep_of(slurm, tmp_path):
    def build(text, minutes=MINUTES):
        path = tmp_path / "mine.yaml"
        resources = f"{{cpus: 1, memory: 1500M, minutes: {minutes}, signal_seconds: 20}}"
        path.write_text(f"out: {tmp_path}\nresources:\n  default: {resources}\n{text}")
        return prepare(path)

    return build


def slow(tmp_path, batches, seconds=1.0):
    return f"""\
fixed: {{num_images: {batches}, samples: 2, batch_size: 2, metrics: [psnr]}}
grid: {{method: [slow], task: [denoise], slow.seconds: [{seconds}], slow.diary: [{tmp_path / "diary"}]}}
"""


def states(sweep):
    return [row["status"] for row in status.rows(sweep.record)]


def until(condition, seconds=300):
    end = time.time() + seconds
    while not condition():
        assert time.time() < end, "waited in vain"
        time.sleep(0.5)


def stored(sweep):
    return len(RunPaths(sweep.jobs[0].runs[0].directory).shards())


def drawn(tmp_path):
    """Images that the slow method was given, and after how many restarts."""
    lines = (tmp_path / "diary").read_text().splitlines()
    return [(int(line.split(" ", 1)[0]), int(line.split("[")[1].rstrip("]"))) for line in lines]


def test_arrays_shards_and_a_failure(sweep_of, plugin, tmp_path):
    sweep = sweep_of(f"""\
  vfm: {{shards: 2}}
fixed: {{num_images: 6, samples: 2, batch_size: 4, metrics: [psnr, crps], slow.diary: {tmp_path / "diary"}}}
grid: {{method: [pinv, broken, vfm], task: [denoise]}}
""")
    launch.on_slurm(sweep, [plugin], QUIET)
    ids = {entry["slurm"].partition("_")[0] for entry in sweep.record.submitted().values()}
    assert (len(sweep.jobs), len(ids)) == (4, 1)
    # A second command leaves alone what is queued or running.
    launch.on_slurm(sweep, [plugin], QUIET)
    assert {entry["slurm"].partition("_")[0] for entry in sweep.record.submitted().values()} == ids
    assert launch.wait(sweep.record, lambda done, total: None) == 1
    rows = {row["method"]: row for row in status.rows(sweep.record)}
    assert {name: row["status"] for name, row in rows.items()} == {"pinv": "done", "broken": "failed", "vfm": "done"}
    assert rows["broken"]["note"] == "ValueError: boom 7"
    assert rows["pinv"]["node"]
    assert launch.overhead(sweep.record) is not None

    for job in sweep.jobs:
        if job.runs[0].config.method != "broken":
            plain = run(job.runs[0].config.model_copy(update={"out": tmp_path / "plain"})).results()
            ours = RunPaths(job.runs[0].directory)
            assert ours.directory.name == plain.directory.name
            assert [path.name for path in ours.shards()] == [path.name for path in plain.paths.shards()]
            for files in zip(ours.shards(), plain.paths.shards(), strict=True):
                own, other = map(load_file, files)
                assert all(torch.equal(other[key], tensor) for key, tensor in own.items())
            values = {row.name: row.value for row in plain.metrics() if row.metric != "cost"}
            assert values == {name: rows[job.runs[0].config.method][name] for name in values}


def test_a_preempted_job_is_requeued_and_resumes(sweep_of, plugin, tmp_path):
    sweep = sweep_of(slow(tmp_path, 12))
    launch.on_slurm(sweep, [plugin], QUIET)
    until(lambda: stored(sweep) >= 3)
    assert states(sweep) == ["running"]
    [entry] = sweep.record.submitted().values()
    subprocess.run(["scancel", "--signal", "USR2", entry["slurm"]], check=True)
    assert launch.wait(sweep.record, lambda done, total: None) == 0
    images = drawn(tmp_path)
    assert {restarts for restarts, _ in images} == {0, 1}
    # The batch that was interrupted is drawn again, nothing else.
    assert {index for _, index in images} == set(range(12))
    assert len(images) <= 13
    assert stored(sweep) == 12


def test_cancel_and_retry(sweep_of, plugin, tmp_path):
    sweep = sweep_of(slow(tmp_path, 8))
    launch.on_slurm(sweep, [plugin], QUIET)
    until(lambda: stored(sweep) >= 2)
    [entry] = sweep.record.submitted().values()
    subprocess.run(["scancel", entry["slurm"].partition("_")[0]], check=True)
    until(lambda: states(sweep) == ["interrupted"])
    again = failed_only(prepare(tmp_path / "mine.yaml"))
    assert len(again.chosen) == 1
    launch.on_slurm(again, [plugin], QUIET)
    assert launch.wait(again.record, lambda done, total: None) == 0
    assert len(drawn(tmp_path)) <= 9
    assert stored(sweep) == 8


def test_a_killed_process_is_told_apart_and_retried(sweep_of, plugin, tmp_path):
    sweep = sweep_of(slow(tmp_path, 6))
    launch.on_slurm(sweep, [plugin], QUIET)
    until(lambda: stored(sweep) >= 2)
    os.kill(sweep.record.job_state(sweep.jobs[0].id)["process"], signal.SIGKILL)
    until(lambda: states(sweep) == ["failed"])
    launch.on_slurm(failed_only(prepare(tmp_path / "mine.yaml")), [plugin], QUIET)
    assert launch.wait(sweep.record, lambda done, total: None) == 0
    assert len(drawn(tmp_path)) <= 7


@pytest.mark.slow
def test_a_time_limit_requeues_and_resumes(sweep_of, plugin, tmp_path):
    # Slurm looks at its clock every 30 s and signals up to a minute early: 40 to 100 s after the start.
    sweep = sweep_of(slow(tmp_path, 60, seconds=2), minutes=2)
    launch.on_slurm(sweep, [plugin], QUIET)
    assert launch.wait(sweep.record, lambda done, total: None) == 0
    images = drawn(tmp_path)
    restarts = max(count for count, _ in images)
    assert restarts >= 1
    assert {index for _, index in images} == set(range(60))
    assert len(images) <= 60 + restarts


def test_what_slurm_refuses_is_said_in_its_words(sweep_of, plugin, tmp_path, capsys):
    sweep_of(slow(tmp_path, 2))
    text = (tmp_path / "mine.yaml").read_text().replace("cpus: 1", "cpus: 1, partition: none")
    (tmp_path / "mine.yaml").write_text(text)
    assert main(["sweep", str(tmp_path / "mine.yaml"), "--executor", "slurm"]) == 2
    assert "Slurm refuses the job" in capsys.readouterr().err
