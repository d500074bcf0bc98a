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

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, Self, runtime_checkable

import torch
from pydantic import BaseModel
from torch import Tensor

from vfmbench.base import Options

# Below this, rounding in float32 drowns what a regularised inverse still resolves.
_SMALLEST_WEIGHT = 1e-6


@runtime_checkable
class NoiseSource(Protocol):
    """Random numbers keyed by (seed, stream, image index, sample index, draw); see `vfmbench.randomness`."""

    def normal(self, shape: Sequence[int], draw: int) -> Tensor:
        """Standard normal numbers [rows, *shape], float32; the same (row, draw) always gives the same numbers."""

    def uniform(self, shape: Sequence[int], draw: int) -> Tensor:
        """Uniform numbers in [0, 1), [rows, *shape], float32."""


class Operator(Protocol):
    """A batched forward operator A; row b of a batch is measured with row b's own parameters (mask, kernel, ...).

    Attributes:
        linear: whether `<A x, y> = <x, adjoint(y)>` holds for all x, y.
        image_shape: (C, H, W) of one input image.
        measurement_shape: shape of one measurement.
        observed: boolean mask broadcastable to [B, *measurement_shape], True where an entry carries signal; None if all do.
            Entries outside hold pure noise, and data-fidelity terms must leave them out.
    """

    linear: bool
    image_shape: tuple[int, int, int]
    measurement_shape: tuple[int, ...]
    observed: Tensor | None

    def __len__(self) -> int:
        """Number of rows."""

    def forward(self, x: Tensor) -> Tensor:
        """A x: [B,C,H,W] -> [B, *measurement_shape]; differentiable."""

    def adjoint(self, y: Tensor) -> Tensor:
        """A^T y: [B, *measurement_shape] -> [B,C,H,W]."""

    def pinv(self, y: Tensor) -> Tensor:
        """A^+ y, exact or a least-squares solution to the tolerance that the class states: -> [B,C,H,W]."""

    def tikhonov(self, y: Tensor, weight: Tensor) -> Tensor:
        """argmin_x |A x - y|^2 + weight |x|^2, exact or to the tolerance that the class states: -> [B,C,H,W].

        `weight` is positive, [B,1,1,1] or [1,1,1,1].
        """

    def to_image(self, y: Tensor) -> Tensor:
        """T y, the observation as an image, as an adapter sees it: -> [B,C,H,W]."""

    def repeat(self, times: int) -> Self:
        """Every row `times` times in a row (as `torch.repeat_interleave`), for several samples of one measurement."""

    def to(self, device: torch.device | str) -> Self:
        """The same operator with its parameters on `device`."""


@dataclass(frozen=True)
class Measurement:
    """All a sampler ever sees of a batch of images.

    Attributes:
        y: [B, *operator.measurement_shape].
        operator: the B rows' operator.
        noise_std: standard deviation of the noise in y, broadcastable to y ([B,1,...] or y's shape).
        label: class of each image, int64 [B]; zeros where the data has no classes.
        index: position of each image in its split, int64 [B].
        problem: name of the inverse problem's family, e.g. "gaussian_deblur"; what a noise adapter is conditioned on.
    """

    y: Tensor
    operator: Operator
    noise_std: Tensor
    label: Tensor
    index: Tensor
    problem: str

    def __len__(self) -> int:
        return len(self.y)

    def repeat(self, times: int) -> Measurement:
        """Every row `times` times in a row."""
        return replace(
            self,
            y=self.y.repeat_interleave(times, 0),
            operator=self.operator.repeat(times),
            noise_std=self.noise_std.repeat_interleave(times, 0),
            label=self.label.repeat_interleave(times, 0),
            index=self.index.repeat_interleave(times, 0),
        )

    def residual(self, images: Tensor) -> Tensor:
        """A x - y, zero at entries that carry no signal: [B, *measurement_shape]."""
        difference = self.operator.forward(images) - self.y
        return difference if self.operator.observed is None else difference * self.operator.observed

    def normalised_residual(self, images: Tensor) -> Tensor:
        """Root mean square of (A x - y) / noise_std over the observed entries, [B]; about 1 for the true image."""
        squared = (self.residual(images) / self.noise_std).square()
        return (squared.flatten(1).sum(1) / self._observed().flatten(1).sum(1).clamp_min(1)).sqrt()

    def log_likelihood(self, images: Tensor) -> Tensor:
        """log p(y | x) of Gaussian noise in nats, summed over the observed entries, [B]."""
        squared = (self.residual(images) / self.noise_std).square()
        entries = -0.5 * (squared + math.log(2 * math.pi) + 2 * self.noise_std.log())
        return (entries * self._observed()).flatten(1).sum(1)

    def regularised_inverse(self, prior_std: float = 0.5) -> Tensor:
        """The posterior mean of x under the prior N(m, prior_std^2 I): ridge regression with Gaussian noise.

        It is m + argmin_d |A d - (y - A m)|^2 + w |d|^2 with w = (noise_std / prior_std)^2, see `Operator.tikhonov`.

        m is the mean of each channel over y; where pixels are missing, the mean of the observed ones weighted by the inverse
        fourth power of their distance (Shepard 1968), so that holes are filled from their surroundings; 0 where measurements
        are not images of the same channels. Noise of several levels counts with its root mean square over the observed entries,
        and w is at least 1e-6, so that a noise-free measurement has an inverse too.

        Args:
            prior_std: of each pixel around m, positive.

        Returns:
            [B,C,H,W]. Raises UserError for an operator that is not linear.
        """
        shape, observed = self.operator.image_shape, self._observed()
        mean = self.y.new_zeros(len(self), *shape)
        if self.operator.observed is not None and self.y.shape[1:] == shape:
            mean = _interpolated(self.y, observed)
        elif self.y.ndim == 4 and self.y.shape[1] == shape[0]:
            mean = self.y.mean((2, 3), keepdim=True).expand_as(mean)
        squared = (self.noise_std.square() * observed).flatten(1).sum(1) / observed.flatten(1).sum(1).clamp_min(1)
        weight = (squared / prior_std**2).clamp_min(_SMALLEST_WEIGHT)[:, None, None, None]
        return mean + self.operator.tikhonov(-self.residual(mean), weight)

    def _observed(self) -> Tensor:
        """1 where an entry of y carries signal, 0 elsewhere; in y's shape."""
        observed = self.operator.observed
        return torch.ones_like(self.y) if observed is None else observed.expand_as(self.y).to(self.y)


def _interpolated(y: Tensor, observed: Tensor) -> Tensor:
    """Inverse-distance weighting: the mean of the observed pixels with weights 1 / (1 + distance^2)^2, [B,C,H,W].

    Args:
        y, observed: [B,C,H,W]; observed is 1 or 0.
    """
    height, width = y.shape[-2:]
    # Twice the size, so that the cyclic convolution does not wrap around.
    rows, columns = (torch.fft.fftfreq(2 * n, 1 / (2 * n), dtype=y.dtype, device=y.device) for n in (height, width))
    kernel = (1 + rows[:, None].square() + columns.square()).pow(-2)
    transform = torch.fft.rfft2(kernel)
    both = torch.fft.rfft2(torch.cat([y * observed, observed], 1), s=(2 * height, 2 * width))
    total, weight = torch.fft.irfft2(both * transform, s=(2 * height, 2 * width))[..., :height, :width].chunk(2, 1)
    return total / weight.clamp_min(1e-6)


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
    linear: bool
    options: Options

    def measure(self, images: Tensor, label: Tensor, index: Tensor, seed: int | str) -> Measurement:
        """Args: images [B,C,H,W] in [-1,1]; label, index int64 [B]; seed from `vfmbench.randomness.split_seed`.

        The result is on the images' device.
        """


@dataclass(frozen=True)
class Evaluations:
    """How often networks ran for one sample, each branch of classifier-free guidance counted."""

    adapter_forwards: float = 0
    network_forwards: float = 0
    network_vjps: float = 0
    decoder_forwards: float = 0
    decoder_vjps: float = 0
    encoder_forwards: float = 0
    encoder_vjps: float = 0


@dataclass(frozen=True)
class Samples:
    """Posterior samples, all [B,S,C,H,W].

    Attributes:
        images: in [-1, 1], before the shared round-and-clamp (points: of any range).
        latents: what they were decoded from.
        source: the noise at t = 1 that a deterministic map took to each of them; stored for points only.
        effective_samples: number of independent draws that the S samples of each measurement are worth, [B]; None: all S.
            Several calls for one image are taken to draw from one source: 1 / effective = 1 / S + 1 / (worth of the source).
    """

    images: Tensor
    latents: Tensor | None = None
    source: Tensor | None = None
    effective_samples: Tensor | None = None


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


class Dataset(Protocol):
    """One split of a data set, in a fixed order.

    Attributes:
        sha256: hash over the split's images and labels (or file list), recorded with every run.
        files: name of each image, in the split's order; empty for data without names.
        errors: position -> "name: reason" of the images that `readable` could not decode so far.
    """

    sha256: str
    files: Sequence[str]
    errors: dict[int, str]

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
    each training stage's options; `weights` is the `vfmbench.models.weights.WeightStore` of its networks.

    `modality` says whether the data are images or points. `methods` are those that `compare` takes by default, each with the
    suite's own options for it; empty for all. `metric_names` are what `run` computes by default; empty for all of images.

    `tuning` holds what `vfmbench tune` does by default: see `vfmbench.running.tuning.TuningOptions`.

    `posterior` gives the true posteriors of a measurement where `posterior_known`; elsewhere it raises UserError.

    A suite may have `execution` and `with_execution(execution)`, a `vfmbench.models.execution.Execution` that its networks run
    by and the same suite with another, and `for_timing()`, the same suite on random images for `vfmbench bench`.

    `flow`, `codec`, `feature_space`, `perceptual` return ready networks on `device`; a codec's passes are counted by `meter`;
    weights are checked by hash, and a missing file raises MissingError.
    """

    name: str
    modality: Literal["images", "points"]
    image_shape: tuple[int, int, int]
    latent_shape: tuple[int, int, int]
    num_classes: int
    posterior_known: bool
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

    def posterior(self, measurement: Measurement) -> ExactPosterior: ...

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


@dataclass(frozen=True)
class MetricValue:
    """One number of metrics.json.

    Attributes:
        value: None if it could not be computed; `reason` then says why.
        low, high: 95 % interval.
        n: number of images it was computed from.
        per_image: the values that `value` is the mean of, float64 [n], for paired comparisons.
        broken: `reason` is an error other than a lack of data or weights, so that the next run tries again.
        replicates: for a statistic of the whole set, its values on bootstrap resamples, float64 [R], for paired comparisons:
            every run of n images is resampled alike.
        curves: what each image adds to a curve that belongs to the metric, float64 [n,k], for figures.

    `per_image`, `replicates` and `curves` are stored as tables beside metrics.json.
    """

    name: str
    value: float | None
    low: float | None = None
    high: float | None = None
    n: int = 0
    feature_space: str | None = None
    feature_weights_sha256: str | None = None
    settings: str = ""
    reason: str | None = None
    broken: bool = False
    per_image: Tensor | None = field(default=None, compare=False, repr=False)
    replicates: Tensor | None = field(default=None, compare=False, repr=False)
    curves: Tensor | None = field(default=None, compare=False, repr=False)
