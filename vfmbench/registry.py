"""Names to factories, through Python entry points; built-in and third-party parts are found the same way."""

from __future__ import annotations

import importlib.util
import json
import pkgutil
import sys
import warnings
from abc import ABCMeta
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

from vfmbench.errors import UserError, about, unknown_name

if TYPE_CHECKING:
    import torch

    from vfmbench.interfaces import DataSource, FeatureSpace, Sampler, Suite, Task
    from vfmbench.metrics.metric import Metric
    from vfmbench.models.codec_kinds import CodecKind
    from vfmbench.training.stage import Stage
    from vfmbench.weights.converters import Converter
    from vfmbench.weights.external import ExternalPaths


T = TypeVar("T")
Given = TypeVar("Given")
Sections = Mapping[str, Mapping[str, Any]]
"""A suite's options by section: `data` and `weights`."""


class Registry(Generic[T]):
    """One entry-point group. Targets are imported when first asked for; a target that fails to import, or is of another kind
    than the group's, is a warning in `load_all` and an error in `get`.

    >>> samplers.register("mine", MySampler)
    >>> samplers.get("mine")

    Args:
        kind: what a target is called in messages.
        base: "module:name" of what targets are subclasses or instances of; imported with the first of them.
        targets: what they are: subclasses of the base, instances of it, functions that give instances, or either of a subclass
            and such a function ("factories").
        attributes: what a subclass must set, beside its abstract methods.
        advice: what ends the error for a target of another kind.
    """

    def __init__(
        self,
        kind: str,
        group: str,
        base: str,
        targets: Literal["subclasses", "instances", "factories", "functions"] = "subclasses",
        attributes: Sequence[str] = (),
        advice: str = "",
    ):
        self.kind, self.group, self.base = kind, group, base
        self._targets, self._attributes, self._advice = targets, attributes, advice or f"see {base.replace(':', '.')}."
        self._registered: dict[str, T] = {}
        self._loaded: dict[str, T] = {}

    @cached_property
    def _entry_points(self) -> dict[str, EntryPoint]:
        return {point.name: point for point in entry_points(group=self.group)}

    def register(self, name: str, target: T) -> None:
        """Adds a name for this process, for `--plugin` files. Raises UserError for a name that is taken or a wrong target."""
        if name in self.names():
            raise UserError(f"The {self.kind} name {name!r} is already registered; choose another.")
        self._registered[name] = self._checked(name, target)

    def of_plugins(self) -> list[str]:
        """Names that were registered in this process, in their order."""
        return list(self._registered)

    def names(self) -> list[str]:
        return sorted({*self._entry_points, *self._registered})

    def get(self, name: str) -> T:
        """The target of `name`. Raises UserError with the nearest names, or with what is wrong with a broken plugin."""
        if name in self._registered:
            return self._registered[name]
        if name in self._loaded:
            return self._loaded[name]
        if name not in self._entry_points:
            raise unknown_name(self.kind, name, self.names())
        point = self._entry_points[name]
        try:
            target = point.load()
        except Exception as error:
            raise UserError(f"The {self.kind} {name!r} ({point.value}) failed to import: {error}") from error
        self._loaded[name] = self._checked(name, target)
        return self._loaded[name]

    def load_all(self) -> dict[str, T]:
        """Every target that imports; the others are warned about."""
        targets = {}
        for name in self.names():
            try:
                targets[name] = self.get(name)
            except UserError as error:
                warnings.warn(str(error), stacklevel=2)
        return targets

    def instance(self, name: str, given: Given) -> Given:
        """What a factory gave. Raises UserError if it is not an instance of the base."""
        base = pkgutil.resolve_name(self.base)
        if not isinstance(given, base):
            raise UserError(f"The {self.kind} {name!r} is {_article(type(given))}, not a {base.__name__}; {self._advice}")
        return given

    def _checked(self, name: str, target: T) -> T:
        problem = self._problem(target)
        if problem:
            raise UserError(f"The {self.kind} {name!r} {problem}; {self._advice}")
        return target

    def _problem(self, target: object) -> str:
        """What keeps a target from being of this kind, as the rest of a sentence; empty if nothing does."""
        base = pkgutil.resolve_name(self.base)
        if self._targets == "instances":
            return "" if isinstance(target, base) else f"is {_article(type(target))}, not a {base.__name__}"
        if self._targets == "functions":
            return "" if callable(target) else f"is {_article(type(target))}, not a function that gives a {base.__name__}"
        if isinstance(target, type):
            if not issubclass(target, base):
                return f"is the class {target.__name__}, which is not a subclass of {base.__name__}"
            lacking = [name for name in self._attributes if not any(name in vars(parent) for parent in target.__mro__)]
            lacking += sorted(target.__abstractmethods__) if isinstance(target, ABCMeta) else []
            return f"lacks {' and '.join(lacking)}" if lacking else ""
        if self._targets == "factories" and callable(target):
            return ""
        return f"is {_article(type(target))}, not a subclass of {base.__name__}"


def _article(found: type) -> str:
    name = found.__name__
    return f"an {name}" if name[0] in "aeiouAEIOU" else f"a {name}"


samplers: Registry[type[Sampler]] = Registry("method", "vfmbench.samplers", "vfmbench.interfaces:Sampler")
tasks: Registry[type[Task]] = Registry("task", "vfmbench.tasks", "vfmbench.interfaces:Task", attributes=("kind",))
suites: Registry[Callable[[Sections], Suite]] = Registry("suite", "vfmbench.suites", "vfmbench.interfaces:Suite", "factories")
metrics: Registry[Metric] = Registry(
    "metric",
    "vfmbench.metrics",
    "vfmbench.metrics.metric:Metric",
    "instances",
    advice="decorate its function with vfmbench.metrics.metric.metric(MetricSpec(...)).",
)
stages: Registry[type[Stage]] = Registry(
    "training stage", "vfmbench.stages", "vfmbench.training.stage:Stage", attributes=("name", "Options")
)
converters: Registry[Converter[Any]] = Registry(
    "converter", "vfmbench.converters", "vfmbench.weights.converters:Converter", "instances"
)
codecs: Registry[CodecKind] = Registry("codec", "vfmbench.codecs", "vfmbench.models.codec_kinds:CodecKind", "instances")
feature_spaces: Registry[Callable[[ExternalPaths, torch.device], FeatureSpace]] = Registry(
    "feature space", "vfmbench.feature_spaces", "vfmbench.interfaces:FeatureSpace", "functions"
)
data_sources: Registry[DataSource[Any]] = Registry(
    "data source", "vfmbench.data_sources", "vfmbench.interfaces:DataSource", "instances"
)
figures: Registry[Callable[[Sequence[Path], Path | None], Path]] = Registry(
    "figure", "vfmbench.figures", "pathlib:Path", "functions"
)
suite_files: Registry[Callable[[Path, Sections], Suite]] = Registry(
    "reader of suite files", "vfmbench.suite_files", "vfmbench.interfaces:Suite", "functions"
)


_suites_built: dict[tuple[Callable[[Sections], Suite] | Path, str], Suite] = {}


def load_suite(name: str, options: Sections | None = None) -> Suite:
    """A suite by its name or its YAML file, with the sections `data` and `weights` of a run's options, built once a process.

    Equal options give the same object, so that data and weights are read and hashed once, however many runs they are for. What
    has changed on the disk since a split was first asked for is not seen, unless `forget_suites` is called.

    Raises UserError for an unknown name or option.
    """
    sections = {key: dict((options or {}).get(key, {})) for key in ("data", "weights")}
    with about("suite"):
        file = Path(name).resolve() if name.endswith((".yaml", ".yml")) else None
        factory = suites.get(name) if file is None else partial(suite_files.get("yaml"), file)
        key = file or factory, json.dumps(sections, sort_keys=True, default=str)
        if key not in _suites_built:
            _suites_built[key] = suites.instance(name, factory(sections))
        return _suites_built[key]


def forget_suites() -> None:
    """Has suites built anew: for a process that changes data or environment variables while it runs."""
    _suites_built.clear()


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
