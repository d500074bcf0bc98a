"""The vocabulary of vfmbench: what a suite, task, operator, sampler, metric and feature space are to each other.

Conventions that hold everywhere:

* images are float tensors [B,C,H,W] in [-1, 1], or uint8 where the name says so;
* points (of suites whose data are vectors) are float tensors [B,d,1,1] of any range, and are stored as they are, not as uint8;
* time runs from t = 1 (noise) to t = 0 (data);
* randomness comes from a `NoiseSource`, never from a global generator, so that a result depends neither on batch size
  nor on sharding nor on order;
* a sampler sees a `Measurement` and never the true image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

import torch
from pydantic import BaseModel
from torch import Tensor

from vfmbench.domains import Domain
from vfmbench.measurement import Measurement, NoiseSource, Samples
from vfmbench.options import Options


class Task(Protocol):
    """Turns images into measurements. Parameters and noise are a function of (task, seed, image index) only.

    Attributes:
        name: as on the command line and in paths.
        problem: family of the inverse problem (a renamed or re-parametrised task keeps its family).
        linear: whether its operators are linear.
        options: the validated parameters, as written to config.yaml.
    """

    name: str
    problem: str

    @property
    def linear(self) -> bool: ...

    @property
    def options(self) -> Options: ...

    def measure(self, images: Tensor, label: Tensor, index: Tensor, seed: int | str) -> Measurement:
        """Args: images [B,C,H,W] in [-1,1]; label, index int64 [B]; seed from `vfmbench.randomness.split_seed`.

        The result is on the images' device.
        """


class ExactPosterior(Protocol):
    """The true posteriors p(x|y) of a measurement's B rows, known in closed form.

    A mode is a component of the prior (a Gaussian, a cell); the number K of modes is the same for every row.
    """

    def __len__(self) -> int:
        """Number of rows, B."""

    def sample(self, count: int, noise: NoiseSource) -> Tensor:
        """Independent draws [B,count,C,H,W]; `noise` has B * count rows, those of one measurement adjacent."""

    def log_density(self, points: Tensor) -> Tensor:
        """log p(x|y) in nats, [B,S,C,H,W] -> float64 [B,S]; -inf outside the support."""

    def mode_weights(self) -> Tensor:
        """Probability of each mode under the posterior, float64 [B,K]; rows sum to 1."""

    def mode_shares(self, points: Tensor) -> Tensor:
        """Probability that each point belongs to each mode of the prior, [B,S,C,H,W] -> float64 [B,S,K].

        Sums to 1 over the modes inside the prior's support, to 0 outside.
        """


class ExactPrior(Protocol):
    """A distribution of data whose posteriors are known in closed form."""

    def draw(self, noise: NoiseSource) -> Tensor:
        """Independent draws, one for each row of the noise: float32 [rows,C,H,W]."""

    def posterior(self, measurement: Measurement) -> ExactPosterior:
        """The posteriors of a measurement's rows. Raises UserError for a measurement under which they are not known."""


class Dataset(Protocol):
    """One split of a data set, in a fixed order.

    Attributes:
        sha256: hash over the split's images and labels (or file list), recorded with every run.
        files: name of each image, in the split's order; empty for data without names.
        errors: position -> "name: reason" of the images that `readable` could not decode so far.
    """

    @property
    def sha256(self) -> str: ...

    @property
    def files(self) -> Sequence[str]: ...

    @property
    def errors(self) -> dict[int, str]: ...

    def __len__(self) -> int: ...

    def readable(self, index: Sequence[int]) -> list[int]:
        """Those of the given positions whose images decode, in the order given; the others are entered into `errors`.

        Raises UserError once more images have failed than the data set's limit.
        """

    def load(self, index: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Images uint8 [B,C,H,W] (points: float32) and labels int64 [B] at the given positions.

        Raises UserError for one that does not decode.
        """


class FeatureSpace(Protocol):
    """An image embedding that metrics are computed in; its name stands in the metric's column, e.g. `fid@digitnet`.

    `settings` says what the features are, and opens the settings of every metric in this space.
    """

    name: str
    weights_sha256: str
    settings: str

    def features(self, images: Tensor) -> Tensor:
        """uint8 [N,C,H,W] -> float32 [N,d]."""

    def classify(self, images: Tensor) -> Tensor | None:
        """Predicted class, int64 [N], or None if the space has no classifier."""


class PerceptualDistance(Protocol):
    """A learned distance between two images; its name is the metric's. `settings` says what it is."""

    name: str
    weights_sha256: str
    settings: str

    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        """Float32 images [N,C,H,W] in [-1, 1], row by row -> float32 [N]."""


class Suite(Protocol):
    """Fixes data, codec, flow backbone, task parameters and feature spaces, so that methods are comparable.

    `num_images`, `num_samples` and `batch_size` (in samples) are what a run takes if the user does not say; `training` holds
    each training stage's options; `weights` is the `vfmbench.weights.store.WeightStore` of its networks.

    `domain` says whether the data are images or points. `methods` are those that `compare` takes by default, each with the
    suite's own options for it; empty for all. `metric_names` are what `run` computes by default; empty for all of the domain.

    `tuning` holds what `vfmbench tune` does by default: see `vfmbench.running.tuning.TuningOptions`.

    `prior` is the distribution of the data where it is known in closed form, and with it the true posteriors; else None.

    A suite may have `execution` and `with_execution(execution)`, a `vfmbench.models.execution.Execution` that its networks run
    by and the same suite with another, and `for_timing()`, the same suite on random images for `vfmbench bench`.

    `flow`, `codec`, `feature_space`, `perceptual` return ready networks on `device`; a codec's passes are counted by `meter`;
    weights are checked by hash, and a missing file raises MissingError.
    """

    name: str
    domain: Domain
    image_shape: tuple[int, int, int]
    latent_shape: tuple[int, int, int]
    num_classes: int
    prior: ExactPrior | None
    methods: Mapping[str, Mapping[str, Any]]
    metric_names: Sequence[str]
    task_names: Sequence[str]
    feature_space_names: Sequence[str]
    perceptual_names: Sequence[str]
    data_options: Mapping[str, Any]
    training: Mapping[str, Mapping[str, Any]]
    tuning: Mapping[str, Any]
    num_images: int
    num_samples: int
    batch_size: int
    weights: Any

    def dataset(self, split: str) -> Dataset: ...

    def task(self, name: str, options: Mapping[str, Any]) -> Task: ...

    def codec(self, device: torch.device, meter: Any) -> Any: ...

    def codec_sha256(self) -> str | None:
        """Hash of the codec's weights; None if it has none. Raises MissingError where they are not there."""

    def flow(self, device: torch.device) -> Any: ...

    def with_weights(self, path: Path) -> Self: ...

    def feature_space(self, name: str, device: torch.device) -> FeatureSpace: ...

    def perceptual(self, name: str, device: torch.device) -> PerceptualDistance: ...


class Sampler(Protocol):
    """Draws posterior samples. Built once a run, by `Sampler(suite, options, device)`.

    Attributes:
        Options: pydantic model of what `--set method.key=value` may change.
        weights: names of the suite's weight files that this method needs; their hashes become part of the run's identity. A
            method that needs any has the codec too; "codec" is for one that needs nothing else.
        meter: the `vfmbench.models.metering.Meter` that its networks' evaluations are counted by.

    A class may also have `preset(name, method, task, suite) -> options`, a classmethod that gives options by name, or from a
    file where the name ends in .yaml or .yml; without it, the method has its defaults under every preset.

    A sampler whose generator also draws from the prior may have `sample_prior(noise) -> images [rows,C,H,W]`: one draw for each
    row of the noise source. Suites of points judge it beside the posterior.
    """

    Options: ClassVar[type[BaseModel]]
    weights: ClassVar[Sequence[str]]
    meter: Any

    def __init__(self, suite: Suite, options: Any, device: torch.device): ...

    @classmethod
    def supports(cls, task: Task, suite: Suite) -> tuple[bool, str]:
        """Whether this method can run, and the reason if not, or a caution to show beside the result. Must not load weights."""

    def sample(self, measurement: Measurement, num_samples: int, noise: NoiseSource) -> Samples:
        """Draws `num_samples` samples for each row.

        `noise` has len(measurement) * num_samples rows, those of one measurement adjacent.
        """
