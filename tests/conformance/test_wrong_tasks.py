"""Tasks that are wrong on purpose: each is found out by the check that is there for it."""

from dataclasses import replace

import pytest
import torch

from vfmbench.conformance.tasks import examine
from vfmbench.registry import load_suite
from vfmbench.tasks.operators import Identity
from vfmbench.tasks.problems import Denoise, ProblemOptions


@pytest.fixture(scope="module")
def suite():
    return load_suite("digits")


def found(task_class, suite):
    task = task_class(suite.image_shape, ProblemOptions())
    return {finding.statement: finding.problem for finding in examine(suite, task)}


def test_a_right_one_passes_every_check(suite):
    assert set(found(Denoise, suite).values()) == {""}


def wrong_operator(**maps):
    """A task whose operator has other maps than the identity; each gets the operator and its argument."""
    operator = type("Wrong", (Identity,), {f"_{name}": map for name, map in maps.items()})

    class Task(Denoise):
        def _operator(self, noise, rows):
            return operator(rows, self.image_shape)

    return Task


def wrong_measurement(change):
    """A task whose measurements are changed."""

    class Task(Denoise):
        def measure(self, images, label, index, seed):
            return change(super().measure(images, label, index, seed))

    return Task


class GlobalNoise(Denoise):
    def measure(self, images, label, index, seed):
        found = super().measure(images, label, index, seed)
        return replace(found, y=images + found.noise_std * torch.randn_like(images))


class NoiseByRow(Denoise):
    """The noise of the row, wherever its image is in the split."""

    def measure(self, images, label, index, seed):
        found = super().measure(images, label, torch.arange(len(images)), seed)
        return replace(found, index=index)


class OneSeed(Denoise):
    def measure(self, images, label, index, seed):
        return super().measure(images, label, index, "always")


class OneNoise(Denoise):
    def measure(self, images, label, index, seed):
        found = super().measure(images, label, torch.zeros_like(index), seed)
        return replace(found, index=index)


class OperatorOfTheBatch(Denoise):
    def _operator(self, noise, rows):
        return type("Wrong", (Identity,), {"_forward": lambda self, x: x * rows})(rows, self.image_shape)


SHAPE, REPEAT, BATCH = (
    "a measurement is as the vocabulary says",
    "the same images and seed give the same measurement",
    "a measurement does not depend on its batch",
)
OTHER, LEVEL = "noise is another one for each image and seed", "the noise is as large as noise_std says"
MASK, ADJOINT = "the mask of observed entries fits", "the adjoint is the transpose"
INVERSE, PICTURE, REPEATED = "the pseudo-inverse inverts", "the observation can be seen as an image", "operators repeat"


@pytest.mark.parametrize(
    ("wrong", "statement", "words"),
    [
        (wrong_measurement(lambda m: replace(m, y=m.y.double())), SHAPE, "y is torch.float64"),
        (wrong_measurement(lambda m: replace(m, y=m.y[:, 0])), SHAPE, "y has the shape [64, 8, 8], not [64, 1, 8, 8]"),
        (wrong_measurement(lambda m: replace(m, y=m.y / 0)), SHAPE, "not finite"),
        (wrong_measurement(lambda m: replace(m, index=m.index + 1)), SHAPE, "other labels or positions"),
        (type("Says", (Denoise,), {"linear": False}), SHAPE, "the task says linear=False, its operator linear=True"),
        (GlobalNoise, REPEAT, "two measurements of the same images with the same seed differ"),
        (NoiseByRow, BATCH, "made alone differs"),
        (OperatorOfTheBatch, BATCH, "made alone differs"),
        (wrong_measurement(lambda m: replace(m, y=m.y - m.y.mean(0))), BATCH, "made alone differs"),
        (OneNoise, OTHER, "one image at two positions has the same noise"),
        (OneSeed, OTHER, "two seeds give the same noise"),
        (wrong_measurement(lambda m: replace(m, noise_std=2 * m.noise_std)), LEVEL, "standard deviation 0.50"),
        (wrong_measurement(lambda m: replace(m, y=m.y - m.noise_std)), LEVEL, "mean 1.0"),
        (wrong_operator(adjoint=lambda self, y: 2 * y), ADJOINT, "<A x, y> and <x, A^T y> differ by"),
        (wrong_operator(forward=lambda self, x: x.abs()), ADJOINT, "differ by"),
        (wrong_operator(pinv=lambda self, y: 2 * y), INVERSE, "100 % away from A x"),
        (wrong_operator(to_image=lambda self, y: y[..., :4]), PICTURE, "to_image gives the shape [64, 1, 8, 4]"),
        (wrong_operator(to_image=lambda self, y: y / 0), PICTURE, "not finite"),
    ],
)
def test_a_wrong_one_is_found_out(suite, wrong, statement, words):
    problem = found(wrong, suite)[statement]
    assert words in problem, problem


def test_masks_that_do_not_fit(suite):
    def masked(observed):
        class Masked(Identity):
            pass

        Masked.observed = observed

        class Task(Denoise):
            def _operator(self, noise, rows):
                return Masked(rows, self.image_shape)

        return Task

    assert "operator.observed is torch.float32" in found(masked(torch.ones(1, 1, 8, 8)), suite)[MASK]
    assert "no observed entry" in found(masked(torch.zeros(1, 1, 8, 8, dtype=torch.bool)), suite)[MASK]


def test_an_operator_that_forgets_its_rows_when_it_is_repeated(suite):
    class Forgetful(Identity):
        _per_row = ()

        def __init__(self, rows, shape):
            super().__init__(rows, shape)
            self.gain = 1 + torch.arange(rows, dtype=torch.float64)[:, None, None, None]

        def _forward(self, x):
            return x * self.gain.repeat(len(x) // len(self.gain), 1, 1, 1)

    class Task(Denoise):
        def _operator(self, noise, rows):
            return Forgetful(rows, self.image_shape)

    assert "operator.repeat(2) differs by" in found(Task, suite)[REPEATED]


def test_a_task_that_measures_nothing(suite):
    class Fails(Denoise):
        def _operator(self, noise, rows):
            raise KeyError("kernel")

    assert list(found(Fails, suite).values()) == ["it fails with KeyError: 'kernel'"]
