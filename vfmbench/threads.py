"""How many threads compute, and how they wait for each other. Must be settled before torch is imported.

Threads of OpenMP that wait at a barrier spin for milliseconds before they sleep. Beside one other busy process on a machine of
two cores, that makes small networks up to eight times slower: the thread that everybody waits for does not get the core on
which another spins. So they sleep after a short spin, and there are no more of them than this process may use cores.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

VARIABLES = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
"""Environment variables that decide; what the user has set stays as it is."""

# Iterations that a thread of libgomp spins before it sleeps: some tens of microseconds, the time of a small operation.
_SPINS = "1000"

_too_late = False


def settle() -> None:
    """Sets what the user has not set; child processes inherit it. Of no effect on a torch that has been imported already."""
    global _too_late
    _too_late = "torch" in sys.modules
    if not any(name in os.environ for name in VARIABLES[1:]):
        os.environ["OMP_WAIT_POLICY"] = "passive"
        os.environ["GOMP_SPINCOUNT"] = _SPINS
    # Affinity is respected by OpenMP itself, a container's quota is not.
    if "OMP_NUM_THREADS" not in os.environ and (quota := _quota()) is not None and quota < _affinity():
        os.environ["OMP_NUM_THREADS"] = str(max(1, int(quota)))


def in_force() -> dict[str, str]:
    """The variables that are set, and whether they came too late for the torch of this process."""
    facts = {name: os.environ[name] for name in VARIABLES if name in os.environ}
    return {**facts, "settled": "after torch was imported: of no effect"} if _too_late else facts


def usable_cores() -> int:
    """Cores that this process may keep busy: by its affinity and, in a container, by its quota."""
    quota = _quota()
    return _affinity() if quota is None else max(1, min(_affinity(), int(quota)))


def of_a_worker(workers: int) -> int:
    """Threads of each of several processes that share the cores; no more than the user asked for."""
    share = max(1, usable_cores() // workers)
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return min(share, int(asked)) if asked.isdecimal() and int(asked) > 0 else share


def _affinity() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _quota(root: Path = Path("/")) -> float | None:
    """Cores that the control group of this process may use, over both versions of control groups; None: all."""
    quotas = []
    try:
        groups = [line.split(":", 2)[1:] for line in (root / "proc/self/cgroup").read_text().splitlines()]
    except OSError:
        return None
    for controllers, path in groups:
        if not controllers:
            # A limit of any group above this one holds too.
            folder = root / "sys/fs/cgroup" / path.lstrip("/")
            for level in (folder, *folder.parents):
                quotas += _read(level / "cpu.max")
                if level == root / "sys/fs/cgroup":
                    break
        elif "cpu" in controllers.split(","):
            for level in (root / "sys/fs/cgroup/cpu" / path.lstrip("/"), root / "sys/fs/cgroup/cpu"):
                quotas += _read(level / "cpu.cfs_quota_us", level / "cpu.cfs_period_us")
    return min(quotas, default=None)


def _read(*files: Path) -> list[float]:
    """Quota over period, if the files are there and there is a quota."""
    try:
        quota, period = " ".join(file.read_text() for file in files).split()
        return [] if quota in ("max", "-1") else [int(quota) / int(period)]
    except (OSError, ValueError):
        return []
