"""Files of tuned options: `vfmbench tune` writes one for a suite, `--preset tuned` and `--preset FILE.yaml` read it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import BaseModel, Field

from vfmbench.errors import MissingError, UserError
from vfmbench.files import exclusive, replace_file
from vfmbench.yaml_lines import read_yaml

if TYPE_CHECKING:
    from vfmbench.interfaces import Suite, Task

_KIND = "file of tuned options"


class TunedEntry(BaseModel):
    """What was chosen for a method on a task; in the file, the evidence stands beside it.

    Attributes:
        options: None if no setting could be chosen.
        weights_sha256: of the weights that the trials ran with, as far as they were recorded.
    """

    options: dict[str, Any] | None
    weights_sha256: dict[str, str] = Field(default_factory=dict)


class TunedFile(BaseModel):
    """Attributes: methods: entries by method and task."""

    suite: str
    methods: dict[str, dict[str, TunedEntry]]


def tuned_values(path: Path, method: str, task: Task, suite: Suite) -> dict[str, Any]:
    """The options that `vfmbench tune` chose for a method on a task, from the file that it wrote.

    Raises UserError for a file that it did not write or that is of another suite, MissingError if it has nothing for this
    method and task.
    """
    planned = method in suite.tuning.get("methods", {}) and task.name in suite.tuning.get("tasks", ())
    command = f"vfmbench tune --suite {suite.name} --method {method} --task {task.name}"
    hint = f"run {command}" if planned else f"the suite {suite.name} plans no tuning of it, so take --preset paper or options"
    if not path.is_file():
        raise MissingError(f"Nothing is tuned for the suite {suite.name}: there is no {path.name}; {hint}.")
    file = read_yaml(path, _KIND)
    tuned = file.validate(TunedFile)
    if tuned.suite != suite.name:
        raise file.error(f"it was tuned for the suite {tuned.suite!r}, not {suite.name!r}.", "suite")
    tasks = tuned.methods.get(method, {})
    entry = tasks.get(task.name) or tasks.get(task.kind)
    if entry is None:
        raise MissingError(f"{path.name} has no tuned {method} for {task.name}; {hint}.")
    if suite.prior is not None and any(suite.weights.sha256(key) != value for key, value in entry.weights_sha256.items()):
        raise MissingError(
            f"{path.name} was tuned for other data of the suite {suite.name}; tune with your data.* options and "
            "--out FILE.yaml, then take --preset FILE.yaml."
        )
    if entry.options is None:
        raise MissingError(f"{path.name}: no setting of {method} on {task.name} could be chosen; see its trials there.")
    return dict(entry.options)


def tuned_methods(path: Path, suite: str) -> dict[str, dict[str, Any]]:
    """What a file to write to holds so far: entries with their evidence, by method and task; none if there is no file yet.

    Raises UserError for a file of another suite, or one that `vfmbench tune` did not write.
    """
    if not path.exists():
        return {}
    file = read_yaml(path, _KIND)
    if (found := file.validate(TunedFile).suite) != suite:
        raise UserError(f"--out: {path} belongs to the suite {found!r}, not {suite!r}.", "out")
    return dict(file.content["methods"])


def write_tuned(path: Path, suite: str, method: str, task: str, entry: Mapping[str, Any]) -> None:
    """Puts the entry of a method and a task into the file of a suite and leaves the others as they are.

    Args:
        entry: the fields of `TunedEntry`, and the evidence.

    Raises UserError as `tuned_methods` does.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with exclusive(path):
        methods = tuned_methods(path, suite)
        methods.setdefault(method, {})[task] = dict(entry)
        content = {"suite": suite, "methods": {name: dict(sorted(tasks.items())) for name, tasks in sorted(methods.items())}}
        text = yaml.dump(content, sort_keys=False, width=200, default_flow_style=None)
        replace_file(path, text.encode())
