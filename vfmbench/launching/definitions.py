"""Sweep files: a YAML grid over runs and, if wanted, over the training of the weights that they use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from vfmbench.errors import UserError
from vfmbench.options import FolderName, Options
from vfmbench.yaml_lines import YamlFile, read_yaml


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

    name: FolderName
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
        replaced: keys of the file, of `fixed` and of `grid` whose values are not the file's.
    """

    file: YamlFile
    definition: SweepDefinition
    replaced: frozenset[str] = frozenset()

    def changed(self, **values: object) -> SweepFile:
        """The same sweep with other values of the definition's fields; None leaves one as it is."""
        given = {key: value for key, value in values.items() if value is not None}
        definition = self.definition.model_copy(update=given)
        return replace(self, definition=definition, replaced=self.replaced | {*given})

    def fixing(self, values: Mapping[str, Any]) -> SweepFile:
        """The same sweep with other values in `fixed`, which also replace those of a grid that has the key."""
        grid = [{key: [values[key]] if key in values else axis for key, axis in axes.items()} for axes in self.definition.grid]
        definition = self.definition.model_copy(update={"fixed": {**self.definition.fixed, **values}, "grid": grid})
        return replace(self, definition=definition, replaced=self.replaced | {*values})

    def located(self, error: UserError, block: int, settings: Mapping[str, Any]) -> UserError:
        """An error about a run with the line of what it is about.

        Args:
            block: position of the block of `grid` that the run is from.
            settings: values of the block's keys for the run.
        """
        axes, fixed = self.definition.grid[block], self.definition.fixed
        section, _, name = (error.key or "").partition(".")
        # A method's options stand under its own name too; a section's error is about any option of it.
        own = [f"{settings.get('method', fixed.get('method'))}.{name}"] if section == "method" else []
        related = [key for key in (*axes, *fixed) if key.partition(".")[0] == section]
        for key in (error.key, *own, section, *related):
            if key in self.replaced:
                return type(error)(f"--set: {error}", key)
            if key in axes:
                return self.file.located(error, f"{self.place(block)}.{key}.{axes[key].index(settings[key])}")
            if key in fixed:
                return self.file.located(error, f"fixed.{key}")
        return self.file.located(error, self.place(block))

    def place(self, block: int) -> str:
        """Where a block of `grid` stands; a single one may stand without a list."""
        return "grid" if isinstance(self.file.content["grid"], dict) else f"grid.{block}"


def read_sweep(path: Path) -> SweepFile:
    """Reads and checks a sweep file.

    Raises UserError, with the line number, for a file that is not there, is not YAML, repeats a key, has an unknown key, an
    empty grid or a value of a wrong type.
    """
    file = read_yaml(path, "sweep file")
    return SweepFile(file, file.validate(SweepDefinition, {"name": path.stem}))
