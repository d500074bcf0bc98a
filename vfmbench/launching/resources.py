"""What a job may use of a cluster: a profile by name, and on top of it what a sweep file says for single methods."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from pydantic import Field

from vfmbench.errors import UserError, unknown_name
from vfmbench.options import Options, validate
from vfmbench.yaml_lines import read_yaml


class Resources(Options):
    """Limits of one job. A profile is a file of these; None leaves the choice to the cluster."""

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    gpus: int = Field(0, ge=0)
    cpus: int = Field(1, ge=1)
    memory: str = Field("4G", pattern=r"^\d+[KMGT]?$")
    minutes: int = Field(60, ge=1, description="time limit; a job that needs longer is put back into the queue and resumes")
    signal_seconds: int = Field(120, ge=1, description="how long before the limit the job is told to stop")
    max_requeues: int = Field(50, ge=0, description="how often a job may reach its time limit")
    array_parallelism: int = Field(100, ge=1, description="jobs of one array that run at the same time")
    setup: list[str] = Field(default_factory=list, description="shell commands before Python starts")
    extra: dict[str, Any] = Field(default_factory=dict, description="other options of sbatch, by their long names")


class JobResources(Resources):
    """What a sweep file may say for a method: limits that differ from the profile's, and in how many jobs a run is split."""

    shards: int = Field(1, ge=1)


def read_profile(name: str) -> dict[str, Any]:
    """The profile `name` of slurm/profiles, or that of a YAML file.

    Raises UserError if there is none, or for an unknown key or wrong value in it.
    """
    path = Path(name)
    if not name.endswith((".yaml", ".yml")):
        folder = Path(str(files("vfmbench.slurm"))) / "profiles"
        known = sorted(entry.stem for entry in folder.glob("*.yaml"))
        if name not in known:
            raise unknown_name("profile", name, [*known, "FILE.yaml"], "profile")
        path = folder / f"{name}.yaml"
    file = read_yaml(path, "profile")
    file.validate(Resources)
    return dict(file.content)


def resources_of(profile: Mapping[str, Any], classes: Mapping[str, Mapping[str, Any]], name: str) -> JobResources:
    """The profile with the sweep's `default` and those of the method or stage `name` on top.

    Raises UserError about the key of `classes` that is wrong.
    """
    own, shared = classes.get(name, {}), classes.get("default", {})
    try:
        return validate(JobResources, {**profile, **shared, **own}, "resources.")
    except UserError as error:
        key = (error.key or "").removeprefix("resources.")
        raise UserError(str(error), f"resources.{name if key in own else 'default'}.{key}") from None
