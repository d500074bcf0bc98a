"""What a job may use of a cluster: a profile by name, and on top of it what a sweep file says for single methods."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field

from vfmbench.errors import UserError, unknown_name
from vfmbench.options import Options, validate


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
    if name.endswith((".yaml", ".yml")):
        path = Path(name)
        if not path.is_file():
            raise UserError(f"profile: there is no file {name}.")
        text = path.read_text()
    else:
        folder = files("vfmbench.slurm") / "profiles"
        known = sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))
        if name not in known:
            raise unknown_name("profile", name, [*known, "FILE.yaml"])
        text = (folder / f"{name}.yaml").read_text()
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"The profile {name} is not YAML: {error}.") from None
    if not isinstance(content, dict):
        raise UserError(f"The profile {name} is not a mapping.")
    validate(Resources, content, f"profile {name}: ")
    return content


def resources_of(profile: Mapping[str, Any], classes: Mapping[str, Mapping[str, Any]], name: str) -> JobResources:
    """The profile with the sweep's `default` and those of the method or stage `name` on top."""
    return validate(JobResources, {**profile, **classes.get("default", {}), **classes.get(name, {})}, "resources.")
