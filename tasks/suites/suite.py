"""A suite as a YAML file defines it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any, Self

import torch
from pydantic import Field

from vfmbench.domains import IMAGES, Shape
from vfmbench.errors import UserError, unknown_name
from vfmbench.interfaces import (
    Backbone,
    Codec,
    Dataset,
    FeatureSpace,
    FlowModel,
    PerceptualDistance,
    Suite,
    Task,
)
from vfmbench.models.codec_kinds import CodecKind
from vfmbench.models.compilation import prepared
from vfmbench.models.features import embedded_space
from vfmbench.models.flow import NetworkFlow
from vfmbench.models.networks import flow_network
from vfmbench.models.perceptual import perceptual_distance
from vfmbench.options import Options, dump, validate
from vfmbench.registry import codecs, feature_spaces
from vfmbench.registry import tasks as task_registry
from vfmbench.tasks.suites.definition import SuiteDefinition
from vfmbench.tasks.suites.timing import random_images
from vfmbench.tasks.task_file import load_task_file
from vfmbench.weights.external import FILES, ExternalPaths
from vfmbench.weights.external_files import user_weights_folder
from vfmbench.weights.store import WeightStore


class WeightsOptions(ExternalPaths):
    path: Path | None = Field(None, description="directory of other weights than the shipped ones")


class DefinedSuite(Suite):
    """A suite as its YAML file defines it.

    `load` returns a split; nothing is read before it is asked.
    """

    _for_timing = False

    def __init__(
        self,
        definition: SuiteDefinition,
        image_shape: Shape,
        load: Callable[[str], Dataset],
        data: Options,
        weights: WeightsOptions,
    ):
        self._definition, self._shape, self._load, self._weights = definition, image_shape, load, weights
        self.data_options = dump(data)
        self.domain, self.num_classes = definition.domain, definition.num_classes
        self.defaults, self.training, self.tuning = definition, definition.training, definition.tuning
        self.feature_space_names, self.perceptual_names = list(definition.feature_spaces), definition.perceptual
        self._codec: CodecKind = codecs.get(definition.codec)
        networks = [*self._codec.external_names, *definition.feature_spaces.values(), *definition.perceptual]
        self.external_names = [name for name in networks if name in FILES]
        for name in FILES:
            if weights.path_of(name) is not None and name not in networks:
                raise UserError(f"weights.{name}: the suite {definition.name} has no use for this file.")
        self._store = self._weight_store(weights.path)
        self._datasets: dict[str, Dataset] = {}

    @property
    def name(self) -> str:
        return self._definition.name

    @property
    def image_shape(self) -> Shape:
        return self._shape

    @property
    def latent_shape(self) -> Shape:
        return self._shape if self._definition.latent_shape is None else self._definition.latent_shape

    @property
    def task_names(self) -> Sequence[str]:
        return list(self._definition.tasks)

    @property
    def weights(self) -> WeightStore:
        return self._store

    def _weight_store(self, path: Path | None) -> WeightStore:
        """The weights in a directory, else the shipped ones, else those that the user keeps for this suite."""
        shipped = Path(str(files("vfmbench.assets"))) / self.name
        if not self.training:
            hint = f"The suite {self.name} has no networks yet; methods without any (pinv, adjoint) run."
        elif path is not None:
            hint = f"Train them (vfmbench train all --suite {self.name} --out {path}) or leave out weights.path."
        elif shipped.is_dir():
            hint = f"Reinstall vfmbench, or train the suite: vfmbench train all --suite {self.name}"
        else:
            path = user_weights_folder(self.name)
            hint = (
                f"Convert a published checkpoint (vfmbench weights convert FILE --suite {self.name}; `vfmbench weights status` "
                f"lists them), train the suite (vfmbench train all --suite {self.name} --out {path}), or name a folder with "
                "them: --set weights.path=DIR."
            )
        return WeightStore(path or shipped, hint)

    def with_weights(self, path: Path) -> Self:
        """The same suite on the weights in `path`."""
        other = copy.copy(self)
        other._store = self._weight_store(path)
        return other

    def for_timing(self) -> Self:
        """The same suite on random images and, where its codec is a network, on a random one: for timing only."""
        other = copy.copy(self)
        other._for_timing = True
        if self.domain is IMAGES:
            other._load, other._datasets = partial(random_images, self.image_shape, self.num_classes), {}
        return other

    def dataset(self, split: str) -> Dataset:
        if split not in self._datasets:
            self._datasets[split] = self._load(split)
        return self._datasets[split]

    def task(self, name: str, options: Mapping[str, Any]) -> Task:
        """A task of this suite, any other registered task with its own defaults, or the task of a YAML file.

        Raises UserError for an unknown task or option, one of another domain, or a value that does not fit the images.
        """
        classes, defaults = self._known_tasks()
        if name.endswith((".yaml", ".yml")):
            task = load_task_file(name, self.image_shape, options, classes, defaults)
            self._check_domain(task.name, type(task))
            return task
        if name not in classes:
            raise unknown_name("task", name, classes)
        self._check_domain(name, classes[name])
        values = {**defaults.get(name, {}), **options}
        return classes[name](self.image_shape, validate(classes[name].Options, values, "task."), name)

    def _check_domain(self, name: str, task_class: type[Task]) -> None:
        if task_class.domain is not self.domain:
            own = ", ".join(self.task_names)
            raise UserError(f"The task {name} is for {task_class.domain}; the suite {self.name} has {self.domain}: {own}.")

    def _known_tasks(self) -> tuple[dict[str, type[Task]], dict[str, dict[str, Any]]]:
        """Classes of the suite's and all registered tasks, and the options that the suite gives its own."""
        classes = task_registry.load_all()
        defaults = {}
        for name, entry in self._definition.tasks.items():
            values = dict(entry)
            classes[name] = task_registry.get(values.pop("kind", name))
            defaults[name] = values
        return classes, defaults

    def load_codec(self, backbone: Backbone) -> Codec:
        load = self._codec.untrained if self._for_timing else self._codec.load
        return load(self.weights, self._weights, backbone)

    def codec_sha256(self) -> str | None:
        """Hash of the codec's weights; None if it has none. Raises MissingError where they are not there."""
        return None if self._for_timing and self._codec.external_names else self._codec.sha256(self.weights, self._weights)

    def load_flow(self, backbone: Backbone) -> FlowModel:
        weights = self.weights.load("flow")
        network = flow_network(self.latent_shape, weights.entry["architecture"]["flow"])
        weights.fill(network, "flow")
        network = prepared(network.to(backbone.device), backbone.execution)
        return NetworkFlow(network, self.latent_shape, self.num_classes or None, backbone.meter)

    def feature_space(self, name: str, device: torch.device) -> FeatureSpace:
        if name not in self._definition.feature_spaces:
            raise unknown_name("feature space", name, self.feature_space_names)
        if name in feature_spaces.names():
            return feature_spaces.get(name)(self._weights, device)
        return embedded_space(name, self.weights.load(self._definition.feature_spaces[name]), device)

    def perceptual(self, name: str, device: torch.device) -> PerceptualDistance:
        if name not in self.perceptual_names:
            raise unknown_name("perceptual distance", name, self.perceptual_names)
        return perceptual_distance(name, self._weights, device)
