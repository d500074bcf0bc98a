"""YAML files whose mistakes are reported with their line: the reader of sweeps, profiles, tasks and tuned options."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from vfmbench.errors import UserError
from vfmbench.options import OptionsType, validate

try:
    from yaml import CSafeLoader as Loader  # ten times as fast
except ImportError:  # PyYAML was built without libyaml
    from yaml import SafeLoader as Loader


@dataclass(frozen=True)
class YamlFile:
    """A YAML file that was read, and where in it everything stands.

    >>> file = read_yaml(Path("wide_blur.yaml"), "task file")  # task: gaussian_deblur, and below it options: {std: -1}
    >>> file.content["options"]["std"], file.lines["options.std"]
    (-1, 2)
    >>> raise file.error("std must be positive.", "options.std")  # wide_blur.yaml:2: std must be positive.

    Attributes:
        content: the file's mapping.
        lines: line number, from 1, of each key and list entry by its dotted place, e.g. `options.std` or `grid.0.seed.1`.
    """

    path: Path
    content: Mapping[str, Any]
    lines: Mapping[str, int]

    def line(self, place: str) -> int | None:
        """The line of a dotted place, or of what is nearest above it; None if that is the file."""
        while place:
            # A single block may stand without the list that it is an entry of.
            for known in (place, ".".join(part for part in place.split(".") if not part.isdigit())):
                if known in self.lines:
                    return self.lines[known]
            place = place.rpartition(".")[0]
        return None

    def error(self, message: str, place: str = "") -> UserError:
        """A UserError about what stands at the place, whose message begins with the file and the line."""
        return self.located(UserError(message, place))

    def located(self, error: UserError, place: str | None = None) -> UserError:
        """The error with the file and the line of a place, else of the key that it is about."""
        place = error.key or "" if place is None else place
        line = self.line(place)
        return type(error)(f"{self.path}{'' if line is None else f':{line}'}: {error}", place)

    def validate(self, model: type[OptionsType], defaults: Mapping[str, Any] | None = None) -> OptionsType:
        """The file as an options block, on top of `defaults`. Raises UserError with the line of the first mistake."""
        try:
            return validate(model, {**(defaults or {}), **self.content})
        except UserError as error:
            raise self.located(error) from None


def read_yaml(path: Path, kind: str) -> YamlFile:
    """Reads a YAML file whose content is a mapping; an empty file is an empty one.

    Args:
        kind: what the file is, for messages, e.g. "sweep file".

    Raises UserError, with the line where there is one, for a file that cannot be read, is not YAML or no mapping, or has a key
    twice or one that is not a plain name.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not a text file"
        raise UserError(f"Cannot read the {kind} {path}: {reason}.") from None
    loader = Loader(text)
    lines: dict[str, int] = {}
    try:
        root = loader.get_single_node()
        if root is not None:
            _collect_lines(path, root, "", lines, ())
        content = {} if root is None else loader.construct_document(root)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        raise UserError(f"{path}{'' if mark is None else f':{mark.line + 1}'}: not valid YAML: {error.problem}.") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {str(error).splitlines()[0]}.") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: a {kind} must be a mapping of keys to values, not {content!r}.")
    return YamlFile(path, content, lines)


def _collect_lines(path: Path, node: yaml.Node, place: str, lines: dict[str, int], above: tuple[yaml.Node, ...]) -> None:
    """Enters the line of every key and list entry below `node`. Raises UserError for a key that is wrong or stands twice.

    Args:
        above: the nodes that `node` is inside of.
    """
    if node in above:
        raise UserError(f"{path}:{node.start_mark.line + 1}: this anchor refers to itself.")
    if isinstance(node, yaml.SequenceNode):
        for position, value in enumerate(node.value):
            inner = f"{place}.{position}".removeprefix(".")
            lines[inner] = value.start_mark.line + 1
            _collect_lines(path, value, inner, lines, (*above, node))
    if isinstance(node, yaml.MappingNode):
        own: dict[str, int] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if key.tag not in ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"):
                raise UserError(f"{path}:{line}: keys must be plain names.")
            if key.value in own:
                raise UserError(f"{path}:{line}: the key {key.value!r} already stands in line {own[key.value]}.")
            own[key.value] = line
            inner = f"{place}.{key.value}".removeprefix(".")
            lines[inner] = line
            _collect_lines(path, value, inner, lines, (*above, node))
