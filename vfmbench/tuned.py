"""Files of tuned options: `vfmbench tune` writes one for a suite, `--preset tuned` and `--preset FILE.yaml` read it.

The evidence for a choice, every trial of its grid, goes to a second file, which no run reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml
from pydantic import BaseModel, Field

from vfmbench.errors import MissingError, UserError
from vfmbench.files import exclusive, file_to_write, replace_file
from vfmbench.yaml_lines import read_yaml

if TYPE_CHECKING:
    from vfmbench.interfaces import MethodGrid, Suite, Task


class TunedEntry(BaseModel):
    """What was chosen for a method on a task.

    Attributes:
        options: None if no setting could be chosen.
        at_the_edge_of_the_grid: the options whose chosen value is the first or last of its grid.
        weights_sha256: of the weights that the trials ran with, as far as they were recorded.
    """

    options: dict[str, Any] | None
    at_the_edge_of_the_grid: list[str] = Field(default_factory=list)
    weights_sha256: dict[str, str] = Field(default_factory=dict)


class TunedFile(BaseModel):
    """Attributes: methods: entries by method and task."""

    suite: str
    methods: dict[str, dict[str, TunedEntry]]


class TrialsFile(BaseModel):
    """Attributes: methods: evidence by method and task."""

    suite: str
    methods: dict[str, dict[str, dict[str, Any]]]


class Place(NamedTuple):
    """A file that `vfmbench tune` writes to, the option that names it, and what is in it."""

    path: Path
    option: str
    schema: type[TunedFile | TrialsFile]


def tuned_file(suite: str) -> Path:
    """A suite's file that `--preset tuned` reads and `vfmbench tune` writes: part of the package, installed or checked out."""
    return Path(str(files(__package__))) / "baselines" / "tuned" / f"{suite}.yaml"


def tuned_values(path: Path, method: str, task: Task, suite: Suite, grid: MethodGrid | None) -> dict[str, Any]:
    """The options that `vfmbench tune` chose for a method on a task, from the file that it wrote.

    Args:
        grid: the method's own for this suite, for a message that says how to tune it.

    Raises UserError for a file that it did not write or that is of another suite, MissingError if it has nothing for this
    method and task.
    """
    planned = grid is not None and task.name in suite.tuning.get("tasks", ())
    command = f"vfmbench tune --suite {suite.name} --method {method} --task {task.name}"
    hint = f"run {command}" if planned else f"the suite {suite.name} plans no tuning of it, so take --preset paper or options"
    if not path.is_file():
        raise MissingError(f"Nothing is tuned for the suite {suite.name}: there is no {path.name}; {hint}.")
    file = read_yaml(path, "file of tuned options")
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
        raise MissingError(f"{path.name}: no setting of {method} on {task.name} could be chosen.")
    return dict(entry.options)


def entries_to_extend(place: Place, suite: str) -> dict[str, dict[str, Any]]:
    """What a file to write to holds so far, by method and task; none if there is no file yet.

    Raises UserError for a file of another suite, or one that `vfmbench tune` did not write.
    """
    if not place.path.exists():
        return {}
    file = read_yaml(place.path, "file of tuned options")
    if (found := file.validate(place.schema).suite) != suite:
        raise UserError(f"--{place.option}: {place.path} belongs to the suite {found!r}, not {suite!r}.", place.option)
    return dict(file.content["methods"])


def prepare(place: Place, suite: str) -> None:
    """Creates the folder. Raises UserError if the file cannot be written, or as `entries_to_extend` does."""
    with suppress(OSError):
        place.path.parent.mkdir(parents=True, exist_ok=True)
    file_to_write(place.path, place.option)
    entries_to_extend(place, suite)


def write_entry(place: Place, suite: str, method: str, task: str, entry: Mapping[str, Any]) -> None:
    """Puts the entry of a method and a task into a file that was prepared, and leaves the others as they are."""
    with exclusive(place.path):
        methods = entries_to_extend(place, suite)
        methods.setdefault(method, {})[task] = dict(entry)
        content = {"suite": suite, "methods": {name: dict(sorted(tasks.items())) for name, tasks in sorted(methods.items())}}
        text = yaml.dump(content, sort_keys=False, width=200, default_flow_style=None)
        replace_file(place.path, text.encode())
