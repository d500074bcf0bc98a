"""Suites of image problems: a YAML file beside this module fixes data, networks, tasks and defaults."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
import yaml
from pydantic import Field
from vfmbench.tasks import datasets

from vfmbench.config import dump, validate
from vfmbench.interfaces import Dataset, FeatureSpace, Options, Task
from vfmbench.models.codecs import IdentityCodec
from vfmbench.models.features import ClassifierFeatures
from vfmbench.models.flow import FlowModel
from vfmbench.models.metering import Meter
from vfmbench.models.sit import SiT
from vfmbench.models.weights import WeightStore
from vfmbench.registry import tasks as task_registry
from vfmbench.registry import unknown_name


class SuiteDefinition(Options):
    """Schema of a suite's YAML file."""

    name: str
    image_shape: tuple[int, int, int]
    latent_shape: tuple[int, int, int]
    num_classes: int = Field(ge=0)
    dataset: str
    feature_spaces: dict[str, str] = Field(description="feature space -> name of its weights")
    num_images: int = Field(ge=1)
    num_samples: int = Field(ge=1)
    batch_size: int = Field(ge=1, description="samples in one batch")
    tasks: dict[str, dict[str, Any]]
    training: dict[str, dict[str, Any]] = Field(default_factory=dict)


class WeightsOptions(Options):
    path: Path | None = Field(None, description="directory of other weights than the shipped ones")


class DigitsData(Options):
    """The digits ship with scikit-learn: nothing to choose."""


class ImageSuite:
    """A suite of images and embedded weights; implements `vfmbench.interfaces.Suite`."""

    def __init__(self, definition: SuiteDefinition, load: Callable[[str], Dataset], data: Options, weights: WeightsOptions):
        self._definition, self._load = definition, load
        self._data = data
        self.data_options = dump(data)
        self.name, self.num_classes = definition.name, definition.num_classes
        self.image_shape, self.latent_shape = definition.image_shape, definition.latent_shape
        self.num_images, self.num_samples = definition.num_images, definition.num_samples
        self.batch_size = definition.batch_size
        self.training = definition.training
        self.task_names = list(definition.tasks)
        self.feature_space_names = list(definition.feature_spaces)
        shipped = Path(str(files("vfmbench.assets"))) / definition.name
        if weights.path is None:
            hint = f"Reinstall vfmbench, or train the suite: vfmbench train all --suite {self.name}"
        else:
            hint = f"Train them (vfmbench train all --suite {self.name} --out {weights.path}) or leave out weights.path."
        self.weights = WeightStore(weights.path or shipped, hint)
        self._datasets: dict[str, Dataset] = {}

    def with_weights(self, path: Path) -> ImageSuite:
        """The same suite on the weights in `path`."""
        return ImageSuite(self._definition, self._load, self._data, WeightsOptions(path=path))

    def dataset(self, split: str) -> Dataset:
        if split not in self._datasets:
            self._datasets[split] = self._load(split)
        return self._datasets[split]

    def task(self, name: str, options: Mapping[str, Any]) -> Task:
        """Raises UserError for an unknown task or option, or a value that does not fit the images."""
        if name not in self._definition.tasks:
            raise unknown_name("task", name, self.task_names)
        values = dict(self._definition.tasks[name])
        task_class = task_registry.get(values.pop("problem", name))
        task = task_class(self.image_shape, validate(task_class.Options, {**values, **options}, "task."), name)
        task.problem = name
        return task

    def codec(self, device: torch.device) -> IdentityCodec:
        return IdentityCodec()

    def flow(self, device: torch.device) -> FlowModel:
        weights = self.weights.load("flow")
        network = SiT(**weights.entry["architecture"]["flow"])
        network.load_state_dict(weights.part("flow"))
        return FlowModel(network.to(device), self.latent_shape, self.num_classes or None, Meter(device))

    def feature_space(self, name: str, device: torch.device) -> FeatureSpace:
        if name not in self._definition.feature_spaces:
            raise unknown_name("feature space", name, self.feature_space_names)
        return ClassifierFeatures(name, self.weights.load(self._definition.feature_spaces[name]), device)


def digits(options: Mapping[str, Mapping[str, Any]]) -> ImageSuite:
    """The embedded default: 8x8 handwritten digits. Args: options by section, `data` and `weights`."""
    text = files(__name__).joinpath("digits.yaml").read_text()
    definition = validate(SuiteDefinition, yaml.safe_load(text), "digits.yaml: ")
    data = validate(DigitsData, options.get("data", {}), "data.")
    weights = validate(WeightsOptions, options.get("weights", {}), "weights.")
    return ImageSuite(definition, datasets.digits, data, weights)
