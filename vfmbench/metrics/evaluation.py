"""What metrics are computed from: true images, stored posterior samples, and features of both."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.nn.functional import normalize

from vfmbench.interfaces import FeatureSpace, MissingError, PerceptualDistance, UserError

_FEATURE_BATCH = 1024
_BLOCK_VALUES = 2**20


@dataclass(frozen=True, kw_only=True, eq=False)
class EvaluationSet:
    """True images and posterior samples of a run, as they were stored.

    Attributes:
        truth: uint8 [N,C,H,W].
        samples: uint8 [N,S,C,H,W].
        label: class of each image, int64 [N], or None where the data has no classes.
        residual: root mean square of (A x - y) / noise_std of each stored sample, [N,S], or None if it was not stored.
        log_likelihood: log p(y' | sample) of a fresh observation y' of the truth, [N,S], nats, or None if not stored.
        feature_spaces: name -> feature space, or the reason why it is missing.
        perceptual: name -> perceptual distance, or the reason why it is missing.
        planned: number of images that the run was asked for; more than N when some of them failed.

    Raises:
        UserError: no images or samples, wrong types, or counts and sizes that do not match.
    """

    truth: Tensor
    samples: Tensor
    label: Tensor | None = None
    residual: Tensor | None = None
    log_likelihood: Tensor | None = None
    feature_spaces: Mapping[str, FeatureSpace | str] = field(default_factory=dict)
    perceptual: Mapping[str, PerceptualDistance | str] = field(default_factory=dict)
    planned: int
    _features: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.truth.dtype != torch.uint8 or self.samples.dtype != torch.uint8:
            raise UserError(f"metrics need uint8 images, not {self.truth.dtype} and {self.samples.dtype}")
        if self.truth.ndim != 4 or self.samples.ndim != 5 or self.samples.numel() == 0:
            raise UserError(
                "metrics need true images [N,C,H,W] and samples [N,S,C,H,W], at least one of each, "
                f"not {list(self.truth.shape)} and {list(self.samples.shape)}"
            )
        if len(self.truth) != len(self.samples) or self.truth.shape[1:] != self.samples.shape[2:]:
            raise UserError(f"samples {list(self.samples.shape)} do not match true images {list(self.truth.shape)}")
        if self.label is not None and self.label.shape != self.truth.shape[:1]:
            raise UserError(f"{len(self.truth)} images need as many labels, not {list(self.label.shape)}")
        if self.residual is not None and self.residual.shape != self.samples.shape[:2]:
            raise UserError(f"residuals {list(self.residual.shape)} do not match samples {list(self.samples.shape[:2])}")
        if self.log_likelihood is not None and self.log_likelihood.shape != self.samples.shape[:2]:
            raise UserError(
                f"log-likelihoods {list(self.log_likelihood.shape)} do not match samples {list(self.samples.shape[:2])}"
            )
        if self.planned < len(self.truth):
            raise UserError(f"{len(self.truth)} images, but only {self.planned} were planned")

    def __len__(self) -> int:
        """Number of images, N."""
        return len(self.truth)

    @property
    def num_samples(self) -> int:
        """Samples of each image, S."""
        return self.samples.shape[1]

    @property
    def truth_unit(self) -> Tensor:
        """True images in [0, 1], float64 [N,C,H,W]."""
        return self.truth.double() / 255

    @property
    def samples_unit(self) -> Tensor:
        """Samples in [0, 1], float64 [N,S,C,H,W]."""
        return self.samples.double() / 255

    @property
    def mean_unit(self) -> Tensor:
        """Mean of each image's samples in [0, 1], float64 [N,C,H,W]; not rounded to 8 bits again."""
        # Sums of 8-bit levels are exact, so that the mean of equal samples is the sample itself.
        return self.samples.double().mean(1) / 255

    def over_blocks(self, function: Callable[[EvaluationSet], Tensor]) -> Tensor:
        """Concatenates `function` (images only, [b, ...]) over blocks of images small enough to hold as floats."""
        return torch.cat([function(block) for block in self._blocks()])

    def _blocks(self) -> Iterator[EvaluationSet]:
        size = max(1, _BLOCK_VALUES // self.samples[0].numel())
        for truth, samples in zip(self.truth.split(size), self.samples.split(size), strict=True):
            yield replace(self, truth=truth, samples=samples, label=None, residual=None, log_likelihood=None, feature_spaces={})

    def space(self, name: str) -> FeatureSpace:
        """Raises: MissingError with the reason if the space could not be loaded."""
        space = self.feature_spaces[name]
        if isinstance(space, str):
            raise MissingError(space)
        return space

    def perceptual_distance(self, name: str) -> PerceptualDistance:
        """Raises: MissingError with the reason if it could not be loaded."""
        distance = self.perceptual[name]
        if isinstance(distance, str):
            raise MissingError(distance)
        return distance

    def features(self, name: str, *, normalised: bool = False) -> tuple[Tensor, Tensor]:
        """Features of truth [N,d] and samples [N,S,d], float32; computed once per space.

        Args:
            normalised: divide each feature vector by its Euclidean norm.

        Raises:
            MissingError: the space is missing.
            UserError: the space returned a number that is not finite.
        """
        if name not in self._features:
            space = self.space(name)
            self._features[name] = (
                self._embed(space, self.truth, "true image"),
                self._embed(space, self.samples.flatten(0, 1), "sample").unflatten(0, self.samples.shape[:2]),
            )
        truth, samples = self._features[name]
        return (normalize(truth, dim=-1), normalize(samples, dim=-1)) if normalised else (truth, samples)

    def _embed(self, space: FeatureSpace, images: Tensor, kind: str) -> Tensor:
        batches = [space.features(batch).to(self.truth.device).float() for batch in images.split(_FEATURE_BATCH)]
        features = torch.cat(batches)
        broken = ~features.isfinite().all(1)
        if broken.any():
            position = int(broken.nonzero()[0])
            raise UserError(f"feature space {space.name!r} gives numbers that are not finite, first for {kind} {position}")
        return features

    def predictions(self, name: str) -> Tensor:
        """Class that the space's classifier gives each sample, int64 [N,S].

        Raises:
            MissingError: the space is missing, or has no classifier.
        """
        space = self.space(name)
        batches = []
        for images in self.samples.flatten(0, 1).split(_FEATURE_BATCH):
            predicted = space.classify(images)
            if predicted is None:
                raise MissingError(f"feature space {name!r} has no classifier")
            batches.append(predicted.to(self.truth.device))
        return torch.cat(batches).unflatten(0, self.samples.shape[:2])
