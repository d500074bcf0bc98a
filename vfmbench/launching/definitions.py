"""Sweep files: a YAML grid over runs and, if wanted, over the training of the weights that they use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BeforeValidator, Field, ValidationError

from vfmbench.errors import UserError, unknown_name
from vfmbench.options import Options

Location = tuple[str | int, ...]


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, dict) else value


Values = Annotated[list[Any], Field(min_length=1)]
Axes = Annotated[dict[str, Values], Field(min_length=1)]


class TrainGrid(Options):
    """One training stage with every combination of the options in `grid`, on top of `fixed` and of the suite's own."""

    stage: str
    grid: dict[str, Values] = Field(default_factory=dict)
    fixed: dict[str, Any] = Field(default_factory=dict)


class SweepDefinition(Options):
    """Schema of a sweep file.

    Keys of `grid` and `fixed` are those of a run (method, task, suite, seed, num_images, ...) or what `--set` takes (vfm.steps,
    task.noise_std); several blocks are expanded one after the other.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    out: Path = Field(Path("results"), description="folder of runs/, training/ and sweeps/")
    profile: str = Field("cpu", description="a file of slurm/profiles, or the path of one")
    resources: dict[str, dict[str, Any]] = Field(
        default_factory=dict,
        description="limits that differ from the profile's, and shards: by method, `train` for jobs that train, or `default`",
    )
    fixed: dict[str, Any] = Field(default_factory=dict)
    grid: Annotated[list[Axes], BeforeValidator(_as_list), Field(min_length=1)]
    train: Annotated[list[TrainGrid], BeforeValidator(_as_list)] = Field(default_factory=list)


@dataclass(frozen=True)
class SweepFile:
    """A sweep file that was read.

    Attributes:
        lines: line number, from 1, of each key and list entry by its place, e.g. ("grid", "seed") or ("train", 0, "stage").
    """

    path: Path
    definition: SweepDefinition
    lines: dict[Location, int]

    def changed(self, **values: Any) -> SweepFile:
        """The same sweep with other values of the definition's fields; None leaves one as it is."""
        given = {key: value for key, value in values.items() if value is not None}
        return replace(self, definition=self.definition.model_copy(update=given))

    def fixing(self, values: Mapping[str, Any]) -> SweepFile:
        """The same sweep with other values in `fixed`, which also replace those of a grid that has the key."""
        grid = [{key: [values[key]] if key in values else axis for key, axis in axes.items()} for axes in self.definition.grid]
        return self.changed(fixed={**self.definition.fixed, **values}, grid=grid)

    def error(self, message: str, *place: str | int) -> UserError:
        """A UserError that begins with the file and the line of `place`, or of what is nearest above it."""
        return _error(self.path, self.lines, message, place)

    def line_of_option(self, key: str) -> Location:
        """Where a key of `fixed` or `grid` stands; the top of the file if it stands nowhere."""
        places = [place for place in self.lines if place[-1] == key and place[0] in ("fixed", "grid")]
        return places[0] if places else ()


def read_sweep(path: Path) -> SweepFile:
    """Reads and checks a sweep file.

    Raises UserError, with the line number, for a file that is not there, is not YAML, repeats a key, has an unknown key, an
    empty grid or a value of a wrong type.
    """
    try:
        text = path.read_text()
    except OSError as error:
        raise UserError(f"Cannot read the sweep file {path}: {error.strerror}.") from error
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"{path}{where}: not YAML: {getattr(error, 'problem', None) or error}.") from None
    if not isinstance(content, dict) or root is None:
        raise UserError(f"{path}: a sweep file is a mapping with at least the key 'grid'.")
    lines: dict[Location, int] = {}
    _collect_lines(path, root, (), lines)
    try:
        definition = SweepDefinition.model_validate({"name": path.stem, **content})
    except ValidationError as error:
        # A misspelt key is also a missing one: say the former.
        problems = sorted(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")
        raise _explained(path, lines, problems[0]) from None
    return SweepFile(path, definition, lines)


def _collect_lines(path: Path, node: yaml.Node, place: Location, lines: dict[Location, int]) -> None:
    """Enters the line of every key and list entry below `node`. Raises UserError for a key that stands twice in a mapping."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            inner = (*place, key.value)
            line = key.start_mark.line + 1
            if inner in lines:
                raise UserError(f"{path}, line {line}: the key {key.value!r} already stands in line {lines[inner]}.")
            lines[inner] = line
            _collect_lines(path, value, inner, lines)
    elif isinstance(node, yaml.SequenceNode):
        for position, value in enumerate(node.value):
            lines[(*place, position)] = value.start_mark.line + 1
            _collect_lines(path, value, (*place, position), lines)


def _error(path: Path, lines: dict[Location, int], message: str, place: Sequence[str | int]) -> UserError:
    for length in range(len(place), 0, -1):
        prefix = tuple(place[:length])
        # A single block may stand without the list that it is an entry of.
        for candidate in (prefix, tuple(part for part in prefix if not isinstance(part, int))):
            if candidate in lines:
                return UserError(f"{path}, line {lines[candidate]}: {message}")
    return UserError(f"{path}: {message}")


def _explained(path: Path, lines: dict[Location, int], problem: Any) -> UserError:
    place = [part for part in problem["loc"] if isinstance(part, str | int)]
    key = ".".join(str(part) for part in place if isinstance(part, str))
    if problem["type"] == "extra_forbidden":
        model = TrainGrid if place[0] == "train" else SweepDefinition
        return _error(path, lines, str(unknown_name("key", str(place[-1]), model.model_fields)), place)
    if problem["type"] == "missing":
        return _error(path, lines, f"{key} is required.", place)
    if problem["type"] == "too_short":
        return _error(path, lines, f"{key} is empty: a grid needs at least one key, and each key at least one value.", place)
    return _error(path, lines, f"{key}: {problem['msg']}, got {problem['input']!r}.", place)
