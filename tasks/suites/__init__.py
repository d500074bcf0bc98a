"""Suites: a YAML file beside this module fixes data, networks, tasks and defaults."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import cached_property, partial
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import torch
from pydantic import BeforeValidator, Field, InstanceOf, model_validator

from vfmbench.domains import DOMAINS, IMAGES, Domain
from vfmbench.errors import UserError, unknown_name
from vfmbench.interfaces import Dataset, ExactPrior, FeatureSpace, PerceptualDistance, Task
from vfmbench.models.codecs import AutoencoderCodec, IdentityCodec
from vfmbench.models.execution import Execution
from vfmbench.models.features import EXTERNAL_SPACES, embedded_space, external_space
from vfmbench.models.flow import FlowModel
from vfmbench.models.metering import Meter
from vfmbench.models.networks import flow_network
from vfmbench.models.patch_autoencoder import patch_autoencoder, patch_codec
from vfmbench.models.perceptual import perceptual_distance
from vfmbench.models.sd_vae import autoencoder, load_autoencoder, sd_vae_codec
from vfmbench.options import Options, dump, validate
from vfmbench.registry import tasks as task_registry
from vfmbench.tasks import datasets
from vfmbench.tasks.problems import InverseProblem
from vfmbench.tasks.suites.timing import random_images
from vfmbench.tasks.task_file import load_task_file
from vfmbench.weights.external import FILES, ExternalPaths, external_sha256, load_external
from vfmbench.weights.external_files import user_weights_folder
from vfmbench.weights.store import WeightStore
from vfmbench.yaml_lines import read_yaml

DataOptions = TypeVar("DataOptions", bound=Options)


def _domain(name: Any) -> Domain:
    if name not in DOMAINS:
        raise ValueError(f"must be one of {', '.join(DOMAINS)}")
    return DOMAINS[name]


class SuiteDefinition(Options):
    """Schema of a suite's YAML file."""

    name: str
    domain: Annotated[InstanceOf[Domain], BeforeValidator(_domain)] = IMAGES
    image_shape: tuple[int, int, int]
    latent_shape: tuple[int, int, int]
    codec: Literal["identity", "sd_vae", "trained"] = Field("identity", description="trained: the suite's own weights `codec`")
    num_classes: int = Field(ge=0)
    feature_spaces: dict[str, str] = Field(
        default_factory=dict, description="feature space -> name of its weights, the suite's own or external ones"
    )
    perceptual: list[str] = Field(default_factory=list, description="perceptual distances")
    num_images: int = Field(ge=1)
    num_samples: int = Field(ge=1)
    batch_size: int = Field(ge=1, description="samples in one batch")
    methods: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="what `compare` takes by default, and this suite's options for it; empty: all"
    )
    metrics: list[str] = Field(default_factory=list, description="what a run computes by default; empty: all")
    tasks: dict[str, dict[str, Any]]
    training: dict[str, dict[str, Any]] = Field(default_factory=dict)
    tuning: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _shape_of_the_domain(self) -> Self:
        if not self.domain.fits(self.image_shape):
            raise ValueError(f"image_shape is not one of {self.domain}")
        return self


class WeightsOptions(ExternalPaths):
    path: Path | None = Field(None, description="directory of other weights than the shipped ones")


class DigitsData(Options):
    """The digits ship with scikit-learn: nothing to choose."""


class DefinedSuite:
    """A suite as its YAML file defines it; implements `vfmbench.interfaces.Suite`.

    `load` returns a split; nothing is read before it is asked.
    """

    prior: ExactPrior | None = None
    execution = Execution()
    _for_timing = False

    def __init__(self, definition: SuiteDefinition, load: Callable[[str], Dataset], data: Options, weights: WeightsOptions):
        self._definition, self._load, self._weights = definition, load, weights
        self.data_options = dump(data)
        self.name, self.domain, self.num_classes = definition.name, definition.domain, definition.num_classes
        self.image_shape, self.latent_shape = definition.image_shape, definition.latent_shape
        self.num_images, self.num_samples = definition.num_images, definition.num_samples
        self.batch_size = definition.batch_size
        self.training, self.tuning = definition.training, definition.tuning
        self.task_names, self.methods, self.metric_names = list(definition.tasks), definition.methods, definition.metrics
        self.feature_space_names, self.perceptual_names = list(definition.feature_spaces), definition.perceptual
        codec = [definition.codec] if definition.codec in FILES else []
        networks = [*codec, *definition.feature_spaces.values(), *definition.perceptual]
        self.external_names = [name for name in networks if name in FILES]
        for name in FILES:
            if weights.path_of(name) is not None and name not in networks:
                raise UserError(f"weights.{name}: the suite {definition.name} has no use for this file.")
        self.weights = self._weight_store(weights.path)
        self._datasets: dict[str, Dataset] = {}

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
        other.weights = self._weight_store(path)
        return other

    def with_execution(self, execution: Execution) -> Self:
        """The same suite with its networks run so."""
        other = copy.copy(self)
        other.execution = execution
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

        Raises UserError for an unknown task or option, or a value that does not fit the images.
        """
        if name.endswith((".yaml", ".yml")):
            return load_task_file(name, self.image_shape, options, *self._known_tasks())
        classes, defaults = self._known_tasks()
        if name not in classes:
            raise unknown_name("task", name, classes)
        domain = classes[name].domain
        if domain is not self.domain:
            raise UserError(
                f"The task {name} is for {domain}; the suite {self.name} has {self.domain}: {', '.join(self.task_names)}."
            )
        values = {**defaults.get(name, {}), **options}
        task = classes[name](self.image_shape, validate(classes[name].Options, values, "task."), name)
        # What adapters are conditioned on: two tasks of one operator at different settings are two problems.
        task.problem = name
        return task

    def _known_tasks(self) -> tuple[dict[str, type[InverseProblem]], dict[str, dict[str, Any]]]:
        """Classes of the suite's and all registered tasks, and the options that the suite gives its own."""
        classes = task_registry.load_all()
        defaults = {}
        for name, entry in self._definition.tasks.items():
            values = dict(entry)
            classes[name] = task_registry.get(values.pop("problem", name))
            defaults[name] = values
        return classes, defaults

    def codec(self, device: torch.device, meter: Meter) -> IdentityCodec | AutoencoderCodec:
        """Raises MissingError where the codec's weights are not there."""
        if self._definition.codec == "identity":
            return IdentityCodec()
        if self._definition.codec == "trained":
            weights = self.weights.load("codec")
            encoder, decoder = patch_autoencoder(weights.entry["architecture"]["codec"])
            weights.fill(encoder, "encoder")
            weights.fill(decoder, "decoder")
            return patch_codec(encoder, decoder, device, meter, self.execution)
        if self._for_timing:
            network = autoencoder()
        else:
            network = load_autoencoder(load_external(self._definition.codec, self._weights.path_of(self._definition.codec)))
        return sd_vae_codec(network, device, meter, self.execution)

    def codec_sha256(self) -> str | None:
        """Hash of the codec's weights; None if it has none. Raises MissingError where they are not there."""
        if self._definition.codec == "identity" or self._for_timing:
            return None
        if self._definition.codec == "trained":
            return self.weights.sha256("codec")
        return self._codec_hash

    @cached_property
    def _codec_hash(self) -> str:
        # Hundreds of megabytes, and a sweep plans many runs of one suite.
        return external_sha256(self._definition.codec, self._weights.path_of(self._definition.codec))

    def flow(self, device: torch.device) -> FlowModel:
        weights = self.weights.load("flow")
        network = flow_network(self.latent_shape, weights.entry["architecture"]["flow"])
        weights.fill(network, "flow")
        network = self.execution.prepare(network.to(device))
        return FlowModel(network, self.latent_shape, self.num_classes or None, Meter(device))

    def feature_space(self, name: str, device: torch.device) -> FeatureSpace:
        if name not in self._definition.feature_spaces:
            raise unknown_name("feature space", name, self.feature_space_names)
        if name in EXTERNAL_SPACES:
            return external_space(name, self._weights, device)
        return embedded_space(name, self.weights.load(self._definition.feature_spaces[name]), device)

    def perceptual(self, name: str, device: torch.device) -> PerceptualDistance:
        if name not in self.perceptual_names:
            raise unknown_name("perceptual distance", name, self.perceptual_names)
        return perceptual_distance(name, self._weights, device)


def read_definition(name: str) -> SuiteDefinition:
    """The definition in `<name>.yaml`."""
    return read_yaml(Path(str(files(__name__))) / f"{name}.yaml", "suite file").validate(SuiteDefinition)


def _build(
    name: str,
    schema: type[DataOptions],
    load: Callable[[DataOptions, str], Dataset],
    options: Mapping[str, Mapping[str, Any]],
    shape: Callable[[DataOptions], tuple[int, int, int]] | None = None,
) -> DefinedSuite:
    """The suite of `<name>.yaml`.

    Args:
        schema: of the section `data` of `options`.
        load: (data options, split) -> the split.
        options: by section, `data` and `weights`.
        shape: (C, H, W) of images and latents where it depends on the data options; replaces the file's.
    """
    definition = read_definition(name)
    data = validate(schema, options.get("data", {}), "data.")
    weights = validate(WeightsOptions, options.get("weights", {}), "weights.")
    if shape is not None:
        definition = definition.model_copy(update={"image_shape": shape(data), "latent_shape": shape(data)})
    return DefinedSuite(definition, partial(load, data), data, weights)


def digits(options: Mapping[str, Mapping[str, Any]]) -> DefinedSuite:
    """The embedded default: 8x8 handwritten digits."""
    return _build("digits", DigitsData, lambda _, split: datasets.digits(split), options)


def folder(options: Mapping[str, Mapping[str, Any]]) -> DefinedSuite:
    """Any folder of images at any size: data.path, data.size."""
    return _build("folder", datasets.FolderOptions, datasets.folder, options, lambda data: (3, data.size, data.size))


def cifar10(options: Mapping[str, Mapping[str, Any]]) -> DefinedSuite:
    """CIFAR-10, 32x32 pixels, from data.path."""
    return _build("cifar10", datasets.Cifar10Options, datasets.cifar10, options)


def imagenet256(options: Mapping[str, Mapping[str, Any]]) -> DefinedSuite:
    """ImageNet at 256x256 pixels, from data.path; with Stable Diffusion's VAE and SiT-B/2."""
    return _build("imagenet256", datasets.ImageNetOptions, datasets.imagenet, options)


def photos64(options: Mapping[str, Mapping[str, Any]]) -> DefinedSuite:
    """64x64 patches of photographs; data.path names the training photographs and is needed for training only."""
    return _build("photos64", datasets.PatchOptions, datasets.photos64, options)
