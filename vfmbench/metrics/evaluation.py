"""What metrics are computed from: true images or points, stored posterior samples, features of both, and exact posteriors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial

import torch
from torch import Tensor
from torch.nn.functional import normalize

from vfmbench.domains import IMAGES, POINTS, Domain
from vfmbench.errors import MissingError, UserError
from vfmbench.interfaces import ExactPosterior, FeatureSpace, PerceptualDistance
from vfmbench.metrics.reading import Answer, Reading, Rows
from vfmbench.randomness import PhiloxNoise, sample_rows

_FEATURE_BATCH = 1024
_BLOCK_VALUES = 2**20
_EXACT_SEED = 0


@dataclass(frozen=True, kw_only=True, eq=False)
class EvaluationSet:
    """True images and posterior samples of a run, as they were stored.

    What is said of images holds for points too, unless a metric calls `check_images`.

    Attributes:
        domain: whether the data are images or points.
        truth: uint8 images [N,C,H,W], or float32 points [N,d,1,1]; a tensor, or rows that are read when they are asked for.
        samples: [N,S,C,H,W], of the same type. `truth[:]` and `samples[:]` have all in memory: a metric that needs no more
            than a block of images at a time asks by `per_image`.
        label: class of each image, int64 [N], or None where the data has no classes.
        residual: root mean square of (A x - y) / noise_std of each stored sample, [N,S], or None if it was not stored.
        log_likelihood: log p(y' | sample) of a fresh observation y' of the truth, [N,S], nats, or None if not stored.
        exact: the true posteriors of the N measurements of points, or None where they are not known.
        prior: draws from the method's prior, like `samples`, column j being repetition j; None if it has none.
        feature_spaces: name -> feature space, or the reason why it is missing.
        perceptual: name -> perceptual distance, or the reason why it is missing.
        planned: number of images that the run was asked for; more than N when some of them failed.

    Raises:
        UserError: no images or samples, wrong types, or counts and sizes that do not match.
    """

    domain: Domain = IMAGES
    truth: Rows
    samples: Rows
    label: Tensor | None = None
    residual: Tensor | None = None
    log_likelihood: Tensor | None = None
    exact: ExactPosterior | None = None
    prior: Tensor | None = None
    feature_spaces: Mapping[str, FeatureSpace | str] = field(default_factory=dict)
    perceptual: Mapping[str, PerceptualDistance | str] = field(default_factory=dict)
    planned: int
    _embedded: dict[str, tuple[Answer, Answer]] = field(default_factory=dict, init=False, repr=False)
    _features: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict, init=False, repr=False)
    _exact_samples: dict[int, Tensor] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        stored = self.domain.stored_dtype
        if (self.truth.dtype, self.samples.dtype) != (stored, stored):
            raise UserError(f"metrics need {self.domain} of {stored}, not of {self.truth.dtype} and {self.samples.dtype}")
        if len(self.truth.shape) != 4 or len(self.samples.shape) != 5 or self.samples.shape.numel() == 0:
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
        if self.exact is not None and len(self.exact) != len(self.truth):
            raise UserError(f"{len(self.truth)} images need as many exact posteriors, not {len(self.exact)}")
        if self.prior is not None and (self.prior.shape, self.prior.dtype) != (self.samples.shape, self.samples.dtype):
            raise UserError(f"prior samples {list(self.prior.shape)} do not match samples {list(self.samples.shape)}")
        if self.planned < len(self.truth):
            raise UserError(f"{len(self.truth)} images, but only {self.planned} were planned")

    def __len__(self) -> int:
        """Number of images, N."""
        return len(self.truth)

    @property
    def num_samples(self) -> int:
        """Samples of each image, S."""
        return self.samples.shape[1]

    def check_images(self, what: str) -> None:
        """Raises UserError, which says that `what` needs images, where the data are points."""
        IMAGES.check(self.domain, what)

    @property
    def truth_unit(self) -> Tensor:
        """All true images in [0, 1], float64 [N,C,H,W], in memory. Raises UserError for points, as the next two do."""
        return self._unit(self.truth[:].double())

    @property
    def samples_unit(self) -> Tensor:
        """All samples in [0, 1], float64 [N,S,C,H,W]."""
        return self._unit(self.samples[:].double())

    @property
    def mean_unit(self) -> Tensor:
        """Mean of each image's samples in [0, 1], float64 [N,C,H,W]; not rounded to 8 bits again."""
        # Sums of 8-bit levels are exact, so that the mean of equal samples is the sample itself.
        return self._unit(self.samples[:].double().mean(1))

    def _unit(self, levels: Tensor) -> Tensor:
        self.check_images("the range [0, 1]")
        return levels / 255

    @cached_property
    def _reading(self) -> Reading:
        return Reading(self.truth, self.samples)

    def per_image(self, function: Callable[..., Tensor], size: int | None = None, others: Sequence[Rows] = ()) -> Answer:
        """Asks for `function(truth [b,C,H,W], samples [b,S,C,H,W], *others [b,...])` -> [b,...] of blocks of images.

        The first answer that is taken reads all that was asked before, in one pass and a block at a time.

        Args:
            size: images in a block; None for as many as are small enough to hold as floats.
            others: with a row for each image.
        """
        return self._reading.ask(function, self.block_size(_BLOCK_VALUES) if size is None else size, others)

    def block_size(self, values: int) -> int:
        """How many images have at most so many stored numbers in their samples; at least one."""
        return max(1, values // self.samples.shape[1:].numel())

    def read(self) -> None:
        """Reads what was asked. Raises what reading raises; without it, answers read when they are taken."""
        self._reading.read()

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

    def ask_features(self, name: str) -> None:
        """Has the next reading compute the features of a space; nothing where it is missing or the data are points."""
        space = self.feature_spaces[name]
        if name in self._embedded or isinstance(space, str) or self.domain is not IMAGES:
            return
        embed = partial(self._embed, space)
        self._embedded[name] = (
            self._reading.ask_truth(embed, _FEATURE_BATCH),
            self._reading.ask_samples(embed, _FEATURE_BATCH),
        )

    def features(self, name: str, *, normalised: bool = False) -> tuple[Tensor, Tensor]:
        """Features of truth [N,d] and samples [N,S,d], float32; computed once per space.

        Args:
            normalised: divide each feature vector by its Euclidean norm.

        Raises:
            MissingError: the space is missing.
            UserError: the space returned a number that is not finite, or the data are points.
        """
        if name not in self._features:
            self.check_images("a feature space")
            space = self.space(name)
            self.ask_features(name)
            truth, samples = (answer.result() for answer in self._embedded[name])
            for features, kind in ((truth, "true image"), (samples, "sample")):
                broken = ~features.isfinite().all(1)
                if broken.any():
                    position = int(broken.nonzero()[0])
                    raise UserError(
                        f"feature space {space.name!r} gives numbers that are not finite, first for {kind} {position}"
                    )
            self._features[name] = truth, samples.unflatten(0, self.samples.shape[:2])
        truth, samples = self._features[name]
        return (normalize(truth, dim=-1), normalize(samples, dim=-1)) if normalised else (truth, samples)

    def _embed(self, space: FeatureSpace, images: Tensor) -> Tensor:
        return space.features(images).to(self.truth.device).float()

    def ask_predictions(self, name: str) -> Answer:
        """Class that the space's classifier gives each sample, int64 [N*S], an image's samples being adjacent.

        Raises:
            MissingError: the space is missing; the answer, where it has no classifier.
            UserError: the data are points.
        """
        self.check_images("a classifier")
        space = self.space(name)

        def classes(images: Tensor) -> Tensor:
            predicted = space.classify(images)
            if predicted is None:
                raise MissingError(f"feature space {name!r} has no classifier")
            return predicted.to(self.truth.device)

        return self._reading.ask_samples(classes, _FEATURE_BATCH)

    def exact_posterior(self) -> ExactPosterior:
        """Raises: MissingError if the posterior is not known or the data are images."""
        if self.exact is None or self.domain is not POINTS:
            raise MissingError("the suite's posterior is not known in closed form")
        return self.exact

    def exact_samples(self, copy: int) -> Tensor:
        """As many draws from each exact posterior as there are samples, [N,S,C,H,W]; computed once per copy.

        They depend on the position in the set and on `copy` alone, so that every method meets the same draws, and copies are
        independent of each other.

        Raises:
            MissingError: as `exact_posterior`.
        """
        if copy not in self._exact_samples:
            rows = sample_rows(torch.arange(len(self), device=self.truth.device), range(self.num_samples))
            noise = PhiloxNoise(_EXACT_SEED, f"exact_posterior/{copy}", *rows)
            self._exact_samples[copy] = self.exact_posterior().sample(self.num_samples, noise)
        return self._exact_samples[copy]

    def prior_points(self) -> Tensor:
        """Draws from the method's prior, [N,S,d].

        Raises:
            MissingError: the method has no prior samples, or the data are images.
            UserError: they are not finite.
        """
        if self.prior is None or self.domain is not POINTS:
            raise MissingError("the method has no prior samples")
        if not self.prior.isfinite().all():
            raise UserError(f"{int((~self.prior.isfinite()).flatten(2).any(2).sum())} prior samples are not finite")
        return self.prior.flatten(2)
