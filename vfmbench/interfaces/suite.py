"""Suites and the networks that they hand out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

import torch
from pydantic import Field

from vfmbench.domains import IMAGES, Domain, Shape
from vfmbench.errors import MissingError, UserError, unknown_name
from vfmbench.interfaces.data import Dataset, ExactPrior, Task
from vfmbench.interfaces.networks import Codec, FeatureSpace, FlowModel, IdentityCodec, PerceptualDistance
from vfmbench.metering import Meter
from vfmbench.options import Options
from vfmbench.precision import PLAIN, Execution
from vfmbench.weights.store import NoWeights, WeightStore


class RunDefaults(Options):
    """What a run takes if the user does not say."""

    num_images: int = Field(default=100, ge=1)
    num_samples: int = Field(default=10, ge=1, description="posterior samples of each image")
    batch_size: int = Field(default=100, ge=1, description="samples in one batch")
    methods: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="what `compare` takes, and this suite's options for it; empty: all"
    )
    metrics: tuple[str, ...] = Field(default=(), description="what a run computes; empty: all of the suite's domain")


class Suite(ABC):
    """Data, tasks and defaults, and the networks to work with, so that methods are comparable.

    A subclass has `name`, `image_shape`, `task_names`, `dataset` and `task`; a suite with a flow also `weights` and
    `load_flow`, and where latents are not the images `latent_shape`, `load_codec` and `codec_sha256`. All else has a default.

    >>> class Mine(Suite):
    ...     name, image_shape, task_names = "mine", (1, 8, 8), ("denoise",)
    ...     def dataset(self, split): return MyImages(split)
    ...     def task(self, name, options): return Denoise(self.image_shape, Denoise.Options(**options))

    Attributes:
        domain: images or points.
        num_classes: 0 for data without classes.
        prior: distribution of the data where it is known in closed form, and with it the true posteriors; else None.
        data_options: as written to config.yaml.
        defaults: what a run takes if the user does not say.
        training: each training stage's options; empty where nothing can be trained.
        tuning: how `vfmbench tune` judges, see `vfmbench.running.tuning.TuningOptions`; empty where nothing is tuned.
        feature_space_names, perceptual_names: what metrics may ask for.
        external_names: those of `vfmbench.weights`' files that it uses.
    """

    domain: Domain = IMAGES
    num_classes: int = 0
    prior: ExactPrior | None = None
    data_options: Mapping[str, Any] = MappingProxyType({})
    defaults: RunDefaults = RunDefaults()
    training: Mapping[str, Mapping[str, Any]] = MappingProxyType({})
    tuning: Mapping[str, Any] = MappingProxyType({})
    feature_space_names: Sequence[str] = ()
    perceptual_names: Sequence[str] = ()
    external_names: Sequence[str] = ()

    def __init__(self, options: Mapping[str, Mapping[str, Any]] = MappingProxyType({})):
        """Args: options: by section, `data` and `weights`; a suite that has some takes them here.

        Raises UserError for any.
        """
        for section, values in options.items():
            for key in values:
                raise UserError(f"{section}.{key}: the suite {self.name} has no such option.", f"{section}.{key}")

    @property
    @abstractmethod
    def name(self) -> str:
        """As on the command line and in paths."""

    @property
    @abstractmethod
    def image_shape(self) -> Shape:
        """(C, H, W) of one image."""

    @property
    @abstractmethod
    def task_names(self) -> Sequence[str]:
        """Its own tasks, in the order of tables."""

    @abstractmethod
    def dataset(self, split: str) -> Dataset:
        """Args: split: train, validation or test. Raises MissingError where the data are not there."""

    @abstractmethod
    def task(self, name: str, options: Mapping[str, Any]) -> Task:
        """Raises UserError for an unknown task or option, or a value that does not fit the images."""

    @property
    def latent_shape(self) -> Shape:
        """(c, h, w) of what the flow lives on."""
        return self.image_shape

    @property
    def weights(self) -> WeightStore:
        """The files of its networks."""
        return NoWeights(f"The suite {self.name} has no networks; methods without any run.")

    def load_flow(self, backbone: Backbone) -> FlowModel:
        """The flow on the backbone's device, run by its `execution` and counted by its `meter`.

        Raises MissingError where its weights are not there.
        """
        raise MissingError(f"The suite {self.name} has no flow; methods without networks run.")

    def load_codec(self, backbone: Backbone) -> Codec:
        """The codec, likewise. Raises MissingError where its weights are not there."""
        if self.latent_shape != self.image_shape:
            raise MissingError(f"The suite {self.name} has no codec; methods without networks run.")
        return IdentityCodec()

    def codec_sha256(self) -> str | None:
        """Hash of the codec's weights; None if it has none. Raises MissingError where they are not there."""
        return None

    def backbone(self, device: torch.device, execution: Execution = PLAIN) -> Backbone:
        """Its networks on a device."""
        return Backbone(self, device, execution)

    def with_weights(self, path: Path) -> Self:
        """The same suite on the weights in `path`. Raises UserError where it has no networks."""
        raise UserError(f"The suite {self.name} has no networks that other weights could be put into.")

    def for_timing(self) -> Self:
        """The same suite, to be timed only: with random data and codec where its own may be missing."""
        return self

    def feature_space(self, name: str, device: torch.device) -> FeatureSpace:
        """One of `feature_space_names`, ready on the device. Raises MissingError where its weights are not there."""
        raise unknown_name("feature space", name, self.feature_space_names)

    def perceptual(self, name: str, device: torch.device) -> PerceptualDistance:
        """One of `perceptual_names`, ready on the device. Raises MissingError where its weights are not there."""
        raise unknown_name("perceptual distance", name, self.perceptual_names)


class Backbone:
    """The networks of a suite on one device: each is read when it is first asked for, and all are counted by one meter.

    >>> backbone = suite.backbone(torch.device("cpu"))
    >>> velocity = backbone.flow.velocity(x, 0.5, label)
    >>> images = backbone.codec.decode(x - 0.5 * velocity)
    >>> backbone.meter.counts["network_forwards"]

    Attributes:
        device, execution: where and how the networks run.
        weights: the suite's files, for networks of a method's own.
        meter: counts and times the evaluations of all networks.
    """

    def __init__(self, suite: Suite, device: torch.device, execution: Execution = PLAIN, meter: Meter | None = None):
        self._suite, self.device, self.execution = suite, device, execution
        self.weights = suite.weights
        self.meter = Meter(device) if meter is None else meter

    @cached_property
    def flow(self) -> FlowModel:
        """Raises MissingError where its weights are not there."""
        return self._suite.load_flow(self)

    @cached_property
    def codec(self) -> Codec:
        """Raises MissingError where its weights are not there."""
        return self._suite.load_codec(self)

    def under(self, execution: Execution) -> Backbone:
        """The same networks, run otherwise and counted by the same meter."""
        return Backbone(self._suite, self.device, execution, self.meter)
