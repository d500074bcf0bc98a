"""What the baselines' options are chosen from, and what was chosen: grids/SUITE.yaml and the file of `vfmbench tune`."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from vfmbench.config import is_preset_file
from vfmbench.interfaces import MethodGrid, Sampler, Suite, Task
from vfmbench.options import Options
from vfmbench.tuned import tuned_file, tuned_values
from vfmbench.yaml_lines import read_yaml


class GridFile(Options):
    """Schema of grids/SUITE.yaml."""

    methods: dict[str, MethodGrid]


def shipped_grid(method: str, suite: str) -> MethodGrid | None:
    """What grids/SUITE.yaml has for a method; None for another method or suite."""
    path = Path(str(files(__package__))) / "grids" / f"{suite}.yaml"
    return read_yaml(path, "file of grids").validate(GridFile).methods.get(method) if path.is_file() else None


def tuned_options(sampler: type[Sampler], preset: str, method: str, task: Task, suite: Suite) -> Mapping[str, Any]:
    """What `vfmbench tune` chose: from a file, or with the preset `tuned` from the suite's own; none under other presets.

    Raises MissingError where nothing has been tuned.
    """
    if not is_preset_file(preset) and preset != "tuned":
        return {}
    path = tuned_file(suite.name) if preset == "tuned" else Path(preset)
    return tuned_values(path, method, task, suite, sampler.grid(method, suite.name))
