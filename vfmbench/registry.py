"""Names to factories, through Python entry points; built-in and third-party parts are found the same way."""

from __future__ import annotations

import importlib.util
import json
import sys
import warnings
from collections.abc import Mapping
from functools import cached_property, partial
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vfmbench.errors import UserError, about, unknown_name
from vfmbench.files import file_sha256

if TYPE_CHECKING:
    from vfmbench.interfaces import Suite


class Registry:
    """One entry-point group. Targets are imported when first asked for; a target that fails to import is a warning in
    `load_all` and an error in `get`.
    """

    def __init__(self, kind: str, group: str):
        self.kind, self.group = kind, group
        self._registered: dict[str, Any] = {}
        self._loaded: dict[str, Any] = {}

    @cached_property
    def _entry_points(self) -> dict[str, EntryPoint]:
        return {point.name: point for point in entry_points(group=self.group)}

    def register(self, name: str, target: Any) -> None:
        """Adds a name for this process, for `--plugin` files. Raises UserError if the name is taken."""
        if name in self.names():
            raise UserError(f"The {self.kind} name {name!r} is already registered; choose another.")
        self._registered[name] = target

    def of_plugins(self) -> list[str]:
        """Names that were registered in this process, in their order."""
        return list(self._registered)

    def names(self) -> list[str]:
        return sorted({*self._entry_points, *self._registered})

    def get(self, name: str) -> Any:
        """The target of `name`. Raises UserError with the nearest names, or with the import error of a broken plugin."""
        if name in self._registered:
            return self._registered[name]
        if name in self._loaded:
            return self._loaded[name]
        if name not in self._entry_points:
            raise unknown_name(self.kind, name, self.names())
        point = self._entry_points[name]
        try:
            target = self._loaded[name] = point.load()
        except Exception as error:
            raise UserError(f"The {self.kind} {name!r} ({point.value}) failed to import: {error}") from error
        return target

    def load_all(self) -> dict[str, Any]:
        """Every target that imports; the others are warned about."""
        targets = {}
        for name in self.names():
            try:
                targets[name] = self.get(name)
            except UserError as error:
                warnings.warn(str(error), stacklevel=2)
        return targets


samplers = Registry("method", "vfmbench.samplers")
tasks = Registry("task", "vfmbench.tasks")
suites = Registry("suite", "vfmbench.suites")
metrics = Registry("metric", "vfmbench.metrics")
stages = Registry("training stage", "vfmbench.stages")
figures = Registry("figure", "vfmbench.figures")
converters = Registry("converter", "vfmbench.converters")
codecs = Registry("codec", "vfmbench.codecs")
feature_spaces = Registry("feature space", "vfmbench.feature_spaces")
data_sources = Registry("data source", "vfmbench.data_sources")
suite_files = Registry("reader of suite files", "vfmbench.suite_files")


_suites_built: dict[tuple[Any, str], Suite] = {}


def load_suite(name: str, options: Mapping[str, Mapping[str, Any]] | None = None) -> Suite:
    """A suite by its name or its YAML file, with the sections `data` and `weights` of a run's options, built once a process.

    Equal options give the same object, so that data and weights are read and hashed once, however many runs they are for. What
    has changed on the disk since a split was first asked for is not seen, unless `forget_suites` is called.

    Raises UserError for an unknown name or option.
    """
    sections = {key: dict((options or {}).get(key, {})) for key in ("data", "weights")}
    with about("suite"):
        source: Any = Path(name).resolve() if name.endswith((".yaml", ".yml")) else suites.get(name)
        factory = partial(suite_files.get("yaml"), source) if isinstance(source, Path) else source
        key = source, json.dumps(sections, sort_keys=True, default=str)
        if key not in _suites_built:
            _suites_built[key] = factory(sections)
        return _suites_built[key]


def forget_suites() -> None:
    """Has suites built anew: for a process that changes data or environment variables while it runs."""
    _suites_built.clear()


def foreign_source_sha256(module: str) -> str | None:
    """Hash of a module's source file; None for one of this package, whose code has a version, and where there is no file."""
    file = getattr(sys.modules.get(module), "__file__", None)
    return None if file is None or module.startswith("vfmbench.") else file_sha256(Path(file))


def load_plugin(path: str) -> None:
    """Runs a Python file that registers its parts, e.g. `vfmbench.registry.samplers.register("mine", MySampler)`.

    Raises UserError if the file is not there or raises.
    """
    file = Path(path)
    if not file.is_file():
        raise UserError(f"--plugin: there is no file {path!r}.")
    name = f"vfmbench_plugin_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise UserError(f"--plugin: {path!r} is not a Python file.")
    module = importlib.util.module_from_spec(spec)
    # Dataclasses and pydantic look a class's module up by name while it is being defined.
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"--plugin: {path!r} failed: {type(error).__name__}: {error}") from error
