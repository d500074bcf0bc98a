"""What every task must hold: a measurement is a function of task, image, position and seed, and its operator is what it says.

>>> from vfmbench.conformance.tasks import examine
>>> from vfmbench.registry import load_suite
>>> suite = load_suite("digits")
>>> [finding.problem for finding in examine(suite, suite.task("denoise", {}))]
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from vfmbench.conformance.findings import Checks, Finding, Violation, difference, hold
from vfmbench.conformance.trials import Images, first_images
from vfmbench.interfaces import Suite, Task
from vfmbench.measurement import Measurement, Operator
from vfmbench.options import dump

_CPU = torch.device("cpu")

# Enough entries that the root mean square of their noise is known to a few per cent.
_ENTRIES, _FEWEST_IMAGES, _MOST_IMAGES = 4096, 8, 1024
# Of what is compared in single precision, relative to its largest entry (at least 1).
_ROUNDING = 1e-5
# Of identities that hold exactly, in double precision.
_EXACT = 1e-9
# Iterative pseudo-inverses stop early.
_PSEUDO_INVERSE = 0.05


@dataclass(frozen=True)
class TaskTrial:
    """A task at work on some images."""

    task: Task
    given: Images

    @cached_property
    def measurement(self) -> Measurement:
        return self.given.measured(self.task, range(len(self.given.index)))

    @property
    def operator(self) -> Operator:
        return self.measurement.operator

    @cached_property
    def random_images(self) -> Tensor:
        """Numbers around zero instead of images, float64, one a row."""
        return _normal(self.given.images.shape, 0, self.given.images.device)

    @cached_property
    def random_measurements(self) -> Tensor:
        return _normal((len(self.measurement), *self.operator.measurement_shape), 1, self.given.images.device)


def check_measurement(trial: TaskTrial) -> None:
    """y [B, *measurement_shape], finite, in the images' dtype and on their device, with the images' labels and positions."""
    found, images = trial.measurement, trial.given.images
    shape = (len(images), *found.operator.measurement_shape)
    if tuple(found.y.shape) != shape:
        raise Violation(f"y has the shape {list(found.y.shape)}, not {list(shape)}")
    if tuple(found.operator.image_shape) != tuple(images.shape[1:]) or len(found.operator) != len(images):
        raise Violation(
            f"its operator is for {len(found.operator)} images of {tuple(found.operator.image_shape)}, "
            f"not for {len(images)} of {tuple(images.shape[1:])}"
        )
    for dtype in (torch.float32, torch.float64):
        y = replace(trial.given, images=images.to(dtype)).measured(trial.task, [0]).y
        if (y.dtype, y.device) != (dtype, images.device):
            raise Violation(f"y is {y.dtype} on {y.device} for images that are {dtype} on {images.device}")
    if not found.y.isfinite().all() or not found.noise_std.isfinite().all() or (found.noise_std < 0).any():
        raise Violation("y or noise_std is not finite, or noise_std is negative")
    found.noise_std.expand_as(found.y)
    if not torch.equal(found.label, trial.given.label) or not torch.equal(found.index, trial.given.index):
        raise Violation("the measurement has other labels or positions than its images")
    if found.operator.linear != trial.task.linear:
        raise Violation(f"the task says linear={trial.task.linear}, its operator linear={found.operator.linear}")


def check_repeatable(trial: TaskTrial) -> None:
    """The same images, positions and seed give the same measurement; nothing comes from a global generator."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        again = trial.given.measured(trial.task, range(len(trial.measurement)))
    _same(again, trial.measurement, "two measurements of the same images with the same seed differ by {}")


def check_batch(trial: TaskTrial) -> None:
    """A row's measurement is the same alone and in another order."""
    count = len(trial.measurement)
    for rows, words in (([count - 1], "alone"), (list(reversed(range(count))), "in another order")):
        found = trial.given.measured(trial.task, rows)
        expected = trial.measurement
        sentence = f"a measurement made {words} differs by {{}} from the same one in its batch"
        _compare(found.y, expected.y[rows], _ROUNDING, sentence)
        _compare(found.noise_std.expand_as(found.y), expected.noise_std.expand_as(expected.y)[rows], _ROUNDING, sentence)
        images = trial.random_images
        _compare(
            found.operator.forward(images[rows]),
            expected.operator.forward(images)[rows],
            _ROUNDING,
            f"the operator of a measurement made {words} differs by {{}} from the same one's in its batch",
        )


def check_positions_and_seeds(trial: TaskTrial) -> None:
    """Noise, and random parameters, are other ones for each position and for each seed."""
    if not (trial.measurement.noise_std > 0).all():
        return
    given = trial.given
    same_image = replace(given, images=given.images[:1].expand_as(given.images), label=given.label[:1].expand_as(given.label))
    first = same_image.measured(trial.task, [0, 1])
    if torch.equal(first.y[0], first.y[1]):
        raise Violation("one image at two positions has the same noise; key it by the image's index")
    if torch.equal(given.measured(trial.task, [0], seed=1).y, trial.measurement.y[:1]):
        raise Violation("two seeds give the same noise")


def check_noise_level(trial: TaskTrial) -> None:
    """(y - A x) / noise_std has mean 0 and root mean square 1 where something was observed."""
    found = trial.measurement
    if not (found.noise_std > 0).all():
        return
    observed = found.observed_entries().double()
    residual = found.residual(trial.given.images).double() / found.noise_std.double() * observed
    entries = float(observed.sum())
    mean, square = float(residual.sum()) / entries, float(residual.square().sum()) / entries
    # Five standard errors, and what Poisson noise may differ from the Gaussian of its standard deviation.
    error = 5 / entries**0.5 + 0.05
    if abs(mean) > error or abs(square**0.5 - 1) > error:
        raise Violation(
            f"the noise in y has mean {mean:.2f} and standard deviation {square**0.5:.2f} in units of noise_std, not 0 and 1"
        )


def check_observed(trial: TaskTrial) -> None:
    """The mask of observed entries is boolean, of y's shape, and every measurement has some."""
    observed = trial.operator.observed
    if observed is None:
        return
    if observed.dtype != torch.bool:
        raise Violation(f"operator.observed is {observed.dtype}, not torch.bool")
    if not observed.expand_as(trial.measurement.y).flatten(1).any(1).all():
        raise Violation("a measurement has no observed entry at all")


def check_adjoint(trial: TaskTrial) -> None:
    """A linear operator satisfies <A x, y> = <x, A^T y> for each row, and A (a x + b z) = a A x + b A z."""
    if not trial.operator.linear:
        return
    x, y = trial.random_images, trial.random_measurements
    forward, adjoint = trial.operator.forward(x), trial.operator.adjoint(y)
    _compare(
        (forward * y).flatten(1).sum(1),
        (x * adjoint).flatten(1).sum(1),
        _EXACT,
        "its operator's adjoint is not its transpose: <A x, y> and <x, A^T y> differ by {}",
    )
    z = x.roll(1, 0)
    combined = trial.operator.forward(2 * x - 3 * z)
    separate = 2 * forward - 3 * trial.operator.forward(z)
    _compare(combined, separate, _EXACT, "its operator is not linear: A (2x - 3z) and 2 A x - 3 A z differ by {}")


def check_pseudo_inverse(trial: TaskTrial) -> None:
    """A A^+ A x = A x for a linear operator, up to where an iteration stops."""
    if not trial.operator.linear:
        return
    y = trial.operator.forward(trial.given.images.double())
    again = trial.operator.forward(trial.operator.pinv(y))
    error, size = (again - y).flatten(1).norm(dim=1), y.flatten(1).norm(dim=1)
    worst = float((error / size.clamp_min(1e-12)).max())
    if not worst <= _PSEUDO_INVERSE:
        raise Violation(f"its operator's pinv is no inverse on its range: A A^+ A x is {100 * worst:.0f} % away from A x")


def check_picture(trial: TaskTrial) -> None:
    """`to_image` gives an adapter [B,C,H,W] in the images' shape, finite."""
    found, wanted = trial.operator.to_image(trial.measurement.y), trial.given.images.shape
    if found.shape != wanted:
        raise Violation(f"to_image gives the shape {list(found.shape)}, not {list(wanted)}")
    if not found.isfinite().all():
        raise Violation("to_image gives values that are not finite")


def check_repeated(trial: TaskTrial) -> None:
    """`repeat` and `to` give operators that do the same to every row."""
    x = trial.random_images
    expected = trial.operator.forward(x)
    twice = trial.operator.repeat(2).forward(x.repeat_interleave(2, 0))
    _compare(twice, expected.repeat_interleave(2, 0), _EXACT, "operator.repeat(2) differs by {} from the operator")
    moved = trial.operator.to(x.device).forward(x)
    _compare(moved, expected, _EXACT, "operator.to(device) differs by {} from the operator")


TASK_CHECKS: Checks[TaskTrial] = {
    "a measurement is as the vocabulary says": check_measurement,
    "the same images and seed give the same measurement": check_repeatable,
    "a measurement does not depend on its batch": check_batch,
    "noise is another one for each image and seed": check_positions_and_seeds,
    "the noise is as large as noise_std says": check_noise_level,
    "the mask of observed entries fits": check_observed,
    "the adjoint is the transpose": check_adjoint,
    "the pseudo-inverse inverts": check_pseudo_inverse,
    "the observation can be seen as an image": check_picture,
    "operators repeat": check_repeated,
}


def examine(suite: Suite, task: Task, device: torch.device = _CPU) -> Iterator[Finding]:
    """Checks a task on the suite's validation images."""
    place = f"images of {suite.name}"
    first = first_images(suite, 1, device)
    try:
        dump(task.options)
        entries = first.measured(task, [0]).y.numel()
    except Exception as error:
        yield Finding(task.name, place, "it measures an image", f"it fails with {type(error).__name__}: {error}")
        return
    count = max(_FEWEST_IMAGES, min(_MOST_IMAGES, _ENTRIES // entries))
    yield from hold(task.name, place, TASK_CHECKS, TaskTrial(task, first_images(suite, count, device)))


def _normal(shape: tuple[int, ...], seed: int, device: torch.device) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(device)


def _same(found: Measurement, expected: Measurement, sentence: str) -> None:
    _compare(found.y, expected.y, 0.0, sentence)
    _compare(found.noise_std, expected.noise_std, 0.0, sentence)


def _compare(found: Tensor, expected: Tensor, tolerance: float, sentence: str) -> None:
    distance = difference(found, expected)
    if not distance <= tolerance * max(1.0, float(expected.nan_to_num().abs().max())):
        raise Violation(sentence.format(f"{distance:.2g}"))
