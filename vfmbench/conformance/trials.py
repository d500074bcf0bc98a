"""What checks are made on: a few images and their measurements, and a sampler at work on them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property

import torch
from pydantic import ValidationError
from torch import Tensor

from vfmbench.conformance.findings import Violation, difference
from vfmbench.interfaces import Sampler, Suite, Task
from vfmbench.measurement import Measurement, NoiseSource, Samples
from vfmbench.options import SamplerOptions
from vfmbench.randomness import PhiloxNoise, sample_rows, split_seed

SPLIT = "validation"
_FEW_STEPS = 3

Measure = Callable[[Sequence[int]], Measurement]
"""Measures some rows of a few images, e.g. `measure([2, 0])`; the same row is always measured alike."""


@dataclass(frozen=True)
class Images:
    """True images float32 [B,C,H,W], their labels and positions int64 [B]."""

    images: Tensor
    label: Tensor
    index: Tensor

    def measured(self, task: Task, rows: Sequence[int], seed: int = 0) -> Measurement:
        chosen = list(rows)
        return task.measure(self.images[chosen], self.label[chosen], self.index[chosen], split_seed(SPLIT, seed))


def first_images(suite: Suite, count: int, device: torch.device) -> Images:
    """The first readable images of the validation split; fewer where it has no more."""
    dataset = suite.dataset(SPLIT)
    positions = dataset.readable(range(min(count, len(dataset))))
    images, label = dataset.load(positions)
    return Images(suite.domain.restore(images.to(device)), label.to(device), torch.tensor(positions, device=device))


def measure_of(suite: Suite, task: Task, count: int, device: torch.device) -> Measure:
    """Measures the suite's first images by the task."""
    images = first_images(suite, count, device)
    return lambda rows: images.measured(task, rows)


def noise_of_a_run(index: Tensor, num_samples: int) -> NoiseSource:
    """The noise that a run gives its sampler for the images `index`."""
    return PhiloxNoise(0, "sampling", *sample_rows(index, range(num_samples)))


@dataclass(frozen=True)
class Candidate:
    """A sampler's class, where it is tried, and with which options; nothing is built yet."""

    sampler_class: type[Sampler]
    suite: Suite
    task: Task
    options: SamplerOptions
    device: torch.device

    def build(self) -> Sampler:
        return self.sampler_class(self.suite, self.options, self.suite.backbone(self.device))


@dataclass(frozen=True)
class Trial:
    """A sampler at work on a few measurements.

    Attributes:
        build: makes it, with its networks; called once.
        measure: of at least `rows` images.
        noise: by the images' positions in their split and the number of samples of each.
        tolerance: what rounding may change, relative to the largest entry of the samples (at least 1).
    """

    build: Callable[[], Sampler]
    measure: Measure
    image_shape: tuple[int, ...]
    latent_shape: tuple[int, ...]
    noise: Callable[[Tensor, int], NoiseSource] = noise_of_a_run
    rows: int = 4
    num_samples: int = 2
    tolerance: float = 1e-3

    @cached_property
    def sampler(self) -> Sampler:
        return self.build()

    @property
    def all_rows(self) -> range:
        return range(self.rows)

    def draw(self, measurement: Measurement) -> Samples:
        return self.sampler.sample(measurement, self.num_samples, self.noise(measurement.index, self.num_samples))

    @cached_property
    def together(self) -> Tensor:
        """The samples of all rows in one batch, [B,S,C,H,W]."""
        return self.images(self.measure(self.all_rows))

    def images(self, measurement: Measurement) -> Tensor:
        return self.draw(measurement).images.detach()

    def compare(self, found: Tensor, expected: Tensor, sentence: str) -> None:
        """Raises Violation of the sentence, in which {} stands for the difference, where it is more than rounding."""
        distance = difference(found, expected)
        if not distance <= self.tolerance * max(1.0, float(expected.nan_to_num().abs().max())):
            raise Violation(sentence.format(f"{distance:.2g}"))


def few_steps(options: type[SamplerOptions]) -> dict[str, int]:
    """Options that make a trial short: numbers of steps, three where their defaults are more and three is allowed."""
    few = {}
    for name, field in options.model_fields.items():
        counts_steps = name == "steps" or name.endswith("_steps")
        if counts_steps and isinstance(field.default, int) and field.default > _FEW_STEPS:
            with suppress(ValidationError):
                options.model_validate({name: _FEW_STEPS})
                few[name] = _FEW_STEPS
    return few
