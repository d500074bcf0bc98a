"""Tasks that a user defines in a YAML file of their own.

Example::

    name: light_blur            # optional; the file's name without its suffix if omitted
    task: gaussian_deblur       # one of the registered problems
    options:                    # optional; any of that problem's options
      kernel_size: 9
      std: 1.5
      noise_std: 0.02
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from vfmbench.errors import UserError, unknown_name
from vfmbench.tasks.problems import ImageShape, InverseProblem

_KEYS = ("name", "task", "options")

# A name becomes a folder of the run directory.
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")


def load_task_file(
    path: Path | str,
    image_shape: ImageShape,
    overrides: Mapping[str, Any],
    problems: Mapping[str, type[InverseProblem]],
    defaults: Mapping[str, Mapping[str, Any]],
) -> InverseProblem:
    """Builds the task that a YAML file describes.

    Args:
        path: the file.
        image_shape: (C, H, W) of the images it will measure.
        overrides: options that replace the file's.
        problems: the tasks that `task` may name.
        defaults: by task name, options that the file's replace.

    Raises:
        UserError: a file that cannot be read or is no such mapping, an unknown or repeated key, a wrong value, or options that
            do not suit the images. The message names the key, the nearest allowed one, the file and the line.
    """
    path = Path(path)
    content, lines = _read(path)
    for key in content:
        if key not in _KEYS:
            raise UserError(f"{path}:{lines[key,]}: {unknown_name('key', key, _KEYS)}")
    if "task" not in content:
        raise UserError(f"{path}: key 'task' is missing; it must be one of {', '.join(sorted(problems))}.")
    problem = content["task"]
    if not isinstance(problem, str) or problem not in problems:
        raise UserError(f"{path}:{lines['task',]}: {unknown_name('task', str(problem), problems)}")
    name = content.get("name", path.stem)
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        place = f"{path}:{lines['name',]}" if "name" in content else f"{path}"
        raise UserError(f"{place}: name must consist of letters, digits, '.', '_' and '-', not {name!r}.")
    options = {} if content.get("options") is None else content["options"]
    if not isinstance(options, dict):
        raise UserError(f"{path}:{lines['options',]}: options must be a mapping of names to values, not {options!r}.")

    def where(key: str) -> str:
        return f"override of {name}" if key in overrides or ("options", key) not in lines else f"{path}:{lines['options', key]}"

    allowed = problems[problem].Options.model_fields
    merged = {**defaults.get(problem, {}), **options, **overrides}
    for key in merged:
        if key not in allowed:
            raise UserError(f"{where(key)}: {unknown_name(f'option of {problem}', key, allowed)}")
    try:
        validated = problems[problem].Options(**merged)
    except ValidationError as error:
        first = error.errors()[0]
        key = str(first["loc"][0])
        raise UserError(f"{where(key)}: option '{key}' of {problem}: {first['msg']}, not {first['input']!r}.") from None
    try:
        task = problems[problem](image_shape, validated, name)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    # The family that adapters know it by.
    task.problem = problem
    return task


def _read(path: Path) -> tuple[dict[Any, Any], dict[tuple[Any, ...], int]]:
    """The file's mapping, and the line (from 1) of every key by its path: ("task",), ("options", "std"), ..."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as a text file ({error}).") from None
    try:
        loader = yaml.SafeLoader(text)
        root = loader.get_single_node()
        lines: dict[tuple[Any, ...], int] = {}
        _collect_lines(path, root, (), lines)
        content = {} if root is None else loader.construct_document(root)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = "" if mark is None else f":{mark.line + 1}"
        raise UserError(f"{path}{line}: not valid YAML ({getattr(error, 'problem', error)}).") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: must be a mapping with the keys {', '.join(_KEYS)}.")
    return content, lines


def _collect_lines(path: Path, node: yaml.Node | None, prefix: tuple[Any, ...], lines: dict[tuple[Any, ...], int]) -> None:
    if not isinstance(node, yaml.MappingNode):
        return
    for key, value in node.value:
        at = (*prefix, key.value)
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode) or key.tag != "tag:yaml.org,2002:str":
            raise UserError(f"{path}:{line}: keys must be plain names.")
        if at in lines:
            raise UserError(f"{path}:{line}: key '{key.value}' was already given in line {lines[at]}.")
        lines[at] = line
        _collect_lines(path, value, at, lines)
