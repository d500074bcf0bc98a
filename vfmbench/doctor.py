"""Whether this machine is ready: what `vfmbench doctor` looks at. Nothing here uses the network."""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

from vfmbench import threads
from vfmbench.errors import Status, UserError

_GIGABYTE = 1e9
# Less than this, and storing a run or holding a batch may fail.
_LITTLE_DISK, _LITTLE_MEMORY = 1.0, 2.0
# What redirects files or forbids downloads.
_VARIABLES = (
    "VFMBENCH_OFFLINE",
    "HF_HUB_OFFLINE",
    "TORCH_HOME",
    "HF_HOME",
    "VFMBENCH_CACHE",
    "VFMBENCH_WEIGHTS_DIR",
    "CUDA_VISIBLE_DEVICES",
    *threads.VARIABLES,
)


class Health(StrEnum):
    """How a check ended. `BROKEN` keeps `run` on the default suite from working, `WARNING` something else; `NOTE` is a fact."""

    OK = "ok"
    NOTE = "note"
    WARNING = "warning"
    BROKEN = "broken"


@dataclass(frozen=True)
class Check:
    """One line of the page."""

    subject: str
    health: Health
    text: str


def examine(results: Path) -> Iterator[Check]:
    """All checks, in the order of the page.

    Args:
        results: the folder that runs would be written below; need not exist.
    """
    yield Check("Python", Health.OK, f"{platform.python_version()} on {platform.platform()}")
    yield from _guarded("packages", _packages)
    yield from _guarded("torch", _torch)
    yield _processors()
    yield _disk(results)
    yield from _guarded("plugins", _entry_points)
    yield from _guarded("shipped weights", _shipped_weights)
    yield from _guarded("trial run", _trial_run)
    yield from _guarded("external weights", _external_weights)
    yield _slurm()
    yield from _environment()


def ready(checks: list[Check]) -> bool:
    """Whether `vfmbench run` on the default suite works here."""
    return all(check.health != Health.BROKEN for check in checks)


def document(checks: list[Check]) -> dict[str, Any]:
    return {"ready": ready(checks), "checks": [asdict(check) for check in checks]}


def _guarded(subject: str, checks: Callable[[], Iterator[Check]]) -> Iterator[Check]:
    """The checks; a check that cannot even be made is a broken one, and the others are still made."""
    try:
        yield from checks()
    except Exception as error:
        yield Check(subject, Health.BROKEN, f"{type(error).__name__}: {error}")


def _packages() -> Iterator[Check]:
    """Whether vfmbench's own requirements are met; what the default suite lacks, the trial run finds out."""
    from packaging.requirements import Requirement

    versions, problems = [], []
    for requirement in map(Requirement, requires("vfmbench") or ()):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            found = version(requirement.name)
        except PackageNotFoundError:
            problems.append(f"{requirement.name} is not installed")
            continue
        versions.append(f"{requirement.name} {found}")
        if not requirement.specifier.contains(found, prereleases=True):
            problems.append(f"{requirement.name} is {found}, needed is {requirement.specifier}")
    yield Check("vfmbench", Health.OK, f"{version('vfmbench')} in {Path(__file__).parent}")
    yield Check("packages", Health.WARNING if problems else Health.OK, "; ".join(problems) or ", ".join(versions))


def _torch() -> Iterator[Check]:
    import torch

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cuda":
        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        free, total = torch.cuda.mem_get_info()
        memory = f"{free / _GIGABYTE:.0f} of {total / _GIGABYTE:.0f} GB free"
        half = "yes" if torch.cuda.is_bf16_supported(including_emulation=False) else "no"
        yield Check("CUDA", Health.OK, f"{torch.version.cuda}: {', '.join(names)}; {memory}; bfloat16: {half}")
    else:
        why = "torch is built without CUDA" if torch.version.cuda is None else "no CUDA device is visible"
        yield Check("CUDA", Health.NOTE, f"none ({why}); runs take the CPU, as the embedded suites can")
    fused = _fused_attention(device)
    yield Check("torch", Health.OK, f"{torch.__version__}, {torch.get_num_threads()} threads, fused attention: {fused}")


def _fused_attention(device: Any) -> str:
    """Whether scaled-dot-product attention has a fused kernel here, by calling it."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    query = torch.zeros(1, 2, 16, 64, dtype=dtype, device=device)
    try:
        with warnings.catch_warnings(), sdpa_kernel([SDPBackend.FLASH_ATTENTION]):
            warnings.simplefilter("ignore")
            torch.nn.functional.scaled_dot_product_attention(query, query, query)
    except RuntimeError:
        return "no"
    return "yes"


def _processors() -> Check:
    cores = threads.usable_cores()
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / _GIGABYTE
    available = _available_memory()
    health = Health.WARNING if available < _LITTLE_MEMORY else Health.OK
    return Check("machine", health, f"{cores} processor cores, {available:.0f} of {memory:.0f} GB of memory available")


def _available_memory() -> float:
    """Gigabytes, as Linux estimates them."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 / _GIGABYTE for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / _GIGABYTE


def _disk(results: Path) -> Check:
    folder = results.absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free / _GIGABYTE
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        return Check("results", Health.BROKEN, f"{results.absolute()} cannot be written")
    health = Health.WARNING if free < _LITTLE_DISK else Health.OK
    return Check("results", health, f"{results.absolute()}: {free:.0f} GB of disk free")


def _entry_points() -> Iterator[Check]:
    from vfmbench import registry

    count = 0
    for entries in (registry.samplers, registry.tasks, registry.suites, registry.metrics, registry.stages, registry.converters):
        for name in entries.names():
            try:
                entries.get(name)
                count += 1
            except UserError as error:
                yield Check("plugins", Health.WARNING, str(error))
    yield Check("plugins", Health.OK, f"{count} methods, tasks, suites, metrics, training stages and converters import")


def _shipped_weights() -> Iterator[Check]:
    from vfmbench.weights.inventory import damage, shipped_folders

    for folder in shipped_folders():
        for name, problem in damage(folder):
            if problem:
                # That the default suite needs them is found out by the trial run.
                yield Check("shipped weights", Health.WARNING, f"{folder.name}/{name}: {problem}")
    yield Check("shipped weights", Health.OK, f"verified: {', '.join(folder.name for folder in shipped_folders())}")


def _trial_run() -> Iterator[Check]:
    """One image of the default suite, from the command's own defaults to a metric."""
    from vfmbench.config import FIRST_RUN, RunConfig
    from vfmbench.options import validate
    from vfmbench.running.runner import run

    with tempfile.TemporaryDirectory() as folder:
        values = {**FIRST_RUN, "num_images": 1, "samples": 1, "metrics": ("psnr",), "out": folder}
        config = validate(RunConfig, values)
        result = run(config)
        health = Health.OK if result.status == Status.DONE else Health.BROKEN
        yield Check(
            "trial run", health, f"{config.method} on {config.task}, one image of the suite {config.suite}: {result.status}"
        )


def _external_weights() -> Iterator[Check]:
    from vfmbench.weights.external_files import ExternalPaths
    from vfmbench.weights.inventory import file_statuses

    yield Check("external weights", Health.NOTE, "for paper-scale suites and their metrics; see `vfmbench weights status`")
    statuses = file_statuses(ExternalPaths(), hashed=False)
    for status in statuses:
        if status.problem:
            yield Check(status.file.name, Health.WARNING, status.problem)
        elif status.located is None:
            yield Check(status.file.name, Health.NOTE, f"not here: {status.file.purpose}")
        else:
            yield Check(status.file.name, Health.OK, str(status.located.path))


def _slurm() -> Check:
    from vfmbench.launching.cluster import available

    text = "sbatch, srun and squeue are here" if available() else "not here; sweeps run in processes of this machine"
    return Check("Slurm", Health.NOTE, text)


def _environment() -> Iterator[Check]:
    found = [f"{name}={os.environ[name]}" for name in _VARIABLES if os.environ.get(name)]
    yield Check("variables", Health.NOTE, ", ".join(found) or "none set that vfmbench heeds")
