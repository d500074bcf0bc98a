"""Slurm as this program sees it: submission through submitit, states from squeue and sacct."""

from __future__ import annotations

import getpass
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from vfmbench.errors import MissingError, UserError
from vfmbench.launching.resources import Resources

Call = TypeVar("Call")

# Slurm's own default of MaxArraySize is 1001.
_LARGEST_ARRAY = 1000

_PENDING = ("PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "RESV_DEL_HOLD", "CONFIGURING")


@dataclass(frozen=True)
class SlurmState:
    """Args: live: queued, running or nothing for a job that has left the queue. state: Slurm's word for it."""

    live: str
    state: str
    node: str
    seconds: float = 0.0


def available() -> bool:
    return all(shutil.which(program) for program in ("sbatch", "srun", "squeue"))


def chosen(executor: str) -> bool:
    """Whether jobs go to Slurm; `auto` takes it where there is one."""
    return executor == "slurm" or (executor == "auto" and available())


def check_available() -> None:
    """Raises MissingError on a machine that has no Slurm or cannot reach it."""
    if not available():
        raise MissingError("This is not a Slurm machine (sbatch, srun and squeue are not found); use --executor local.")
    try:
        _run("squeue", "--noheader", "--user", getpass.getuser())
    except UserError as error:
        raise MissingError(f"{error} Use --executor local, or try again later.") from None


def submit(
    calls: Sequence[Call], function: Callable[[Call], object], resources: Resources, name: str, folder: Path
) -> list[tuple[str, Path]]:
    """Submits one array job (several if there are very many) of function(call); returns each one's Slurm id and log.

    Raises UserError with Slurm's own words if it refuses.
    """
    import submitit

    executor = submitit.SlurmExecutor(folder, max_num_timeout=resources.max_requeues)
    optional = {key: getattr(resources, key) for key in ("partition", "account", "qos")}
    executor.update_parameters(
        job_name=name,
        time=resources.minutes,
        mem=resources.memory,
        cpus_per_task=resources.cpus,
        array_parallelism=resources.array_parallelism,
        signal_delay_s=resources.signal_seconds,
        stderr_to_stdout=True,
        setup=[f"export OMP_NUM_THREADS={resources.cpus}", *resources.setup],
        additional_parameters={"requeue": True, "open-mode": "append", **resources.extra},
        **{key: value for key, value in optional.items() if value is not None},
        **({"gpus_per_node": resources.gpus} if resources.gpus else {}),
    )
    found = []
    for start in range(0, len(calls), _LARGEST_ARRAY):
        try:
            jobs = executor.map_array(function, calls[start : start + _LARGEST_ARRAY])
        except submitit.core.utils.FailedJobError as error:
            raise UserError(f"Slurm refuses the job: {str(error).strip().splitlines()[-1]}") from None
        found += [(job.job_id, Path(job.paths.stdout)) for job in jobs]
    return found


def states(ids: Sequence[str]) -> dict[str, SlurmState]:
    """The state of each job that Slurm still knows: from the queue, and for those that have left it from the accounting."""
    if not ids or not available():
        return {}
    wanted, found = set(ids), {}
    for line in _run("squeue", "--noheader", "--array", "--user", getpass.getuser(), "--format", "%i|%T|%N").splitlines():
        job, state, node = line.split("|")
        if job in wanted:
            live = "queued" if state in _PENDING else "running"
            found[job] = SlurmState(live, state, node)
    gone = sorted({job.partition("_")[0] for job in wanted - set(found)})
    if gone and shutil.which("sacct"):
        fields = "JobID,State,NodeList,ElapsedRaw"
        try:
            listed = _run("sacct", "-X", "--noheader", "--parsable2", "--format", fields, "--jobs", ",".join(gone))
        except UserError:  # no accounting: what the jobs say of themselves has to do
            listed = ""
        for line in listed.splitlines():
            job, state, node, seconds = line.split("|")
            if job in wanted and job not in found:
                found[job] = SlurmState("", state.split()[0], node, float(seconds or 0))
    return found


def live_ids(submitted: Mapping[str, str]) -> set[str]:
    """The keys of those Slurm ids that are queued or running."""
    known = states(list(submitted.values()))
    return {key for key, job in submitted.items() if job in known and known[job].live}


def _run(*command: str) -> str:
    """Output of a Slurm program. Raises UserError with its last line if it fails, once more after a moment."""
    for attempt in (0, 1):
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode == 0:
            return result.stdout
        if not attempt:
            time.sleep(1)
    last = (result.stderr.strip().splitlines() or ["no message"])[-1]
    raise UserError(f"{command[0]} failed: {last}.")
