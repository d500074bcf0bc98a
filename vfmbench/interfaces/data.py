"""Data sets, tasks, and what is known of the data's distribution."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar, Generic, Protocol, TypeVar

from torch import Tensor

from vfmbench.domains import IMAGES, Domain, Shape
from vfmbench.measurement import Measurement, NoiseSource
from vfmbench.options import Options as OptionsBlock

DataOptions = TypeVar("DataOptions", bound=OptionsBlock)


class Dataset(ABC):
    """One split of a data set, in a fixed order.

    >>> class Noise(Dataset):
    ...     sha256 = hashlib.sha256(b"noise").hexdigest()
    ...     def __len__(self): return 10
    ...     def load(self, index): return torch.rand(len(index), 1, 8, 8).mul(255).byte(), torch.zeros(len(index)).long()

    Attributes:
        files: name of each image, in the split's order; empty for data without names.
        errors: position -> "name: reason" of the images that `readable` could not decode so far.
    """

    files: Sequence[str] = ()
    errors: Mapping[int, str] = MappingProxyType({})

    @property
    @abstractmethod
    def sha256(self) -> str:
        """Hash over the split's images and labels (or file list), recorded with every run."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def load(self, index: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Images as the suite's domain stores them, [B,C,H,W], and labels int64 [B] at the given positions.

        Raises UserError for one that does not decode.
        """

    def readable(self, index: Sequence[int]) -> list[int]:
        """Those of the given positions whose images decode, in the order given; the others are entered into `errors`.

        Raises UserError once more images have failed than the data set's limit.
        """
        return list(index)


@dataclass(frozen=True)
class DataSource(Generic[DataOptions]):
    """A kind of data: what may be chosen of it (`--set data.key=value`), and how its splits are loaded.

    >>> class NoiseOptions(Options):
    ...     seed: int = 0
    >>> noise = DataSource(NoiseOptions, lambda options, split: MyNoise(options.seed, split))
    >>> registry.data_sources.register("noise", noise)  # a suite's file then has: data: {source: noise, seed: 3}

    Attributes:
        load: (options, split) -> the split.
        shape: (C, H, W) of images where it depends on the options; None: the suite's file says it.
    """

    Options: type[DataOptions]
    load: Callable[[DataOptions, str], Dataset]
    shape: Callable[[DataOptions], Shape] | None = None


class Task(ABC):
    """Turns images into measurements. Parameters and noise are a function of (task, seed, image index) only.

    >>> class Halve(Task):
    ...     kind = "halve"
    ...     def measure(self, images, label, index, seed): ...  # a Measurement

    Attributes:
        domain: of what it measures.
        linear: whether its operators are linear.
        Options: of its parameters.
        image_shape: (C, H, W) of what it measures.
        options: the validated parameters, as written to config.yaml.
        name: as on the command line and in paths.
        kind: family of the inverse problem, of the class; a renamed or re-parametrised task keeps it, and its random numbers.
        condition: what a noise adapter is conditioned on: two tasks of one kind at different settings are two conditions.
    """

    domain: ClassVar[Domain] = IMAGES
    linear: bool = True
    Options: ClassVar[type[OptionsBlock]] = OptionsBlock
    kind: ClassVar[str]
    options: OptionsBlock

    def __init__(self, image_shape: Shape, options: OptionsBlock, name: str | None = None, condition: str | None = None):
        self.image_shape, self.options = image_shape, options
        self.name = self.kind if name is None else name
        self.condition = self.name if condition is None else condition

    @property
    def noise(self) -> str:
        """Family of the noise: "gaussian" where y is A x plus Gaussian noise of a known deviation."""
        return "gaussian"

    @abstractmethod
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
