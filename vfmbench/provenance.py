"""Where a result comes from: code version, packages, machine, command."""

from __future__ import annotations

import platform
import subprocess
import sys
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from vfmbench import threads

PACKAGES = (
    "vfmbench",
    "torch",
    "torchvision",
    "numpy",
    "scipy",
    "scikit-learn",
    "safetensors",
    "lpips",
    "torch-fidelity",
    "timm",
)


def now() -> str:
    """The time, UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


@cache
def _git(*arguments: str) -> str | None:
    """Output of git in the folder of this package; None outside a checkout or without git."""
    try:
        result = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), *arguments], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip()


def git_commit() -> str | None:
    """The checkout's commit, with "+dirty" if tracked files differ; None for an installed wheel."""
    # An installed copy may lie inside somebody else's checkout; only a tracked file makes the commit ours.
    if _git("ls-files", "--error-unmatch", Path(__file__).name) is None:
        return None
    commit = _git("rev-parse", "HEAD") or "uncommitted"
    return commit + ("+dirty" if _git("status", "--porcelain", "--untracked-files=no") else "")


def environment(device: torch.device) -> dict[str, Any]:
    """JSON-ready facts about the code, packages and machine."""

    def package_version(name: str) -> str | None:
        try:
            return version(name)
        except PackageNotFoundError:
            return None

    return {
        "command": sys.argv,
        "git_commit": git_commit(),
        "packages": {name: package_version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "threads": torch.get_num_threads(),
        "waiting": threads.in_force(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
