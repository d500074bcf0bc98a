"""Tasks that a user defines in a YAML file of their own.

Example::

    name: light_blur            # optional; the file's name without its suffix if omitted
    task: gaussian_deblur       # one of the suite's or the registered tasks
    options:                    # optional; any of that task's options
      kernel_size: 9
      std: 1.5
      noise_std: 0.02
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from vfmbench.domains import Shape
from vfmbench.errors import UserError, unknown_name
from vfmbench.interfaces import Task
from vfmbench.options import FolderName, Options, validate
from vfmbench.yaml_lines import read_yaml


class TaskDefinition(Options):
    """Schema of a task file."""

    name: FolderName
    task: str | None = Field(None, description="one of the suite's or the registered tasks")
    options: dict[str, Any] | None = Field(None, description="any of that task's options")


def load_task_file(
    path: Path | str,
    image_shape: Shape,
    overrides: Mapping[str, Any],
    kinds: Mapping[str, type[Task]],
    defaults: Mapping[str, Mapping[str, Any]],
) -> Task:
    """Builds the task that a YAML file describes.

    Args:
        path: the file.
        image_shape: (C, H, W) of the images it will measure.
        overrides: options that replace the file's.
        kinds: the tasks that `task` may name.
        defaults: by task name, options that the file's replace.

    Raises:
        UserError: a file that cannot be read or is no such mapping, an unknown or repeated key, a wrong value, or options that
            do not suit the images. The message names the key, the nearest allowed one, the file and the line; if an override
            is wrong, it names that and not the file.
    """
    file = read_yaml(Path(path), "task file")
    definition = file.validate(TaskDefinition, {"name": file.path.stem})
    if definition.task is None:
        raise file.error(f"task is required, one of {', '.join(sorted(kinds))}.")
    if definition.task not in kinds:
        raise file.located(unknown_name("task", definition.task, kinds), "task")
    kind = kinds[definition.task]
    options = {**defaults.get(definition.task, {}), **(definition.options or {})}
    try:
        validate(kind.Options, options, "options.")
    except UserError as error:
        raise file.located(error) from None
    validated = validate(kind.Options, {**options, **overrides}, "task.")
    try:
        return kind(image_shape, validated, definition.name, condition=definition.task)
    except UserError as error:
        option = (error.key or "").removeprefix("task.")
        raise error if option in overrides else file.located(error, f"options.{option}") from None
