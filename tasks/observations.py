"""Observations of points as tasks: linear maps with Gaussian noise, for suites whose posteriors are known exactly."""

from __future__ import annotations

from typing import ClassVar, Generic, TypeVar

import torch
from pydantic import Field
from torch import Tensor

from vfmbench.domains import POINTS, Domain, Shape
from vfmbench.errors import UserError
from vfmbench.interfaces import Task
from vfmbench.measurement import Measurement
from vfmbench.options import Options
from vfmbench.randomness import PhiloxNoise
from vfmbench.tasks.noise import add_gaussian
from vfmbench.tasks.operators.matrix import MatrixOperator, orthonormal_rows


class ObservationOptions(Options):
    """noise_std: standard deviation of the noise in y, in the points' own units; positive, or there is no posterior density."""

    noise_std: float = Field(default=0.1, gt=0, allow_inf_nan=False)


O = TypeVar("O", bound=ObservationOptions)  # noqa: E741


class Observation(Task, Generic[O]):
    """Base of the tasks on points: y = M x + noise_std n with one matrix for all of them.

    A subclass names its `kind` and its `Options` and gives its matrix M [m,d], float64.

    Args:
        image_shape: (d, 1, 1) of the points it will measure.
        options: of the subclass's own `Options` class.
        name: as on the command line; the kind if omitted. Random numbers do not depend on it.
        condition: what adapters are conditioned on; the name if omitted.

    Raises:
        UserError: another shape than that of points, or options that contradict it.
    """

    domain: ClassVar[Domain] = POINTS
    Options: ClassVar[type[ObservationOptions]] = ObservationOptions
    options: O

    def __init__(self, image_shape: Shape, options: O, name: str | None = None, condition: str | None = None):
        super().__init__(image_shape, options, name, condition)
        if not POINTS.fits(image_shape):
            raise UserError(f"{self.name}: this task observes points, of shape (d, 1, 1), not images of shape {image_shape}.")
        self._matrix = self._build_matrix(image_shape[0])

    @torch.no_grad()
    def measure(self, images: Tensor, label: Tensor, index: Tensor, seed: int | str) -> Measurement:
        """Measures a batch; the noise depends on (kind, options, seed, index) only.

        The matrix is applied in float64, so that a measurement does not depend on how a batch was put together.

        Args:
            images: points, float32 or float64 [B,d,1,1] of any range.
            label: int64 [B].
            index: int64 [B], position of each point in its split.
            seed: the run's seed with its split, see `vfmbench.randomness.split_seed`.

        Returns:
            The measurement in the points' dtype and on their device; its operator is a `MatrixOperator`.

        Raises:
            UserError: points of another shape or dtype, or values that are not finite.
        """
        self._check(images, label, index)
        label, index = label.to(images.device), index.to(images.device)
        noise = PhiloxNoise(seed, f"measurement/{self.kind}", index)
        operator = MatrixOperator(len(images), self._matrix.to(images.device))
        y, noise_std = add_gaussian(operator.forward(images.double()), self.options.noise_std, noise)
        return Measurement(y.to(images.dtype), operator, noise_std.to(images.dtype), label, index, self.condition)

    def _build_matrix(self, dimension: int) -> Tensor:
        """M [m,d], float64, the same for all images and runs."""
        raise NotImplementedError

    def _check(self, points: Tensor, label: Tensor, index: Tensor) -> None:
        if points.shape[1:] != self.image_shape or len(points) == 0:
            wanted = ", ".join(map(str, self.image_shape))
            raise UserError(
                f"{self.name}: points must have shape [B, {wanted}] with B of at least 1, not {list(points.shape)}."
            )
        if points.dtype not in (torch.float32, torch.float64):
            raise UserError(f"{self.name}: points must be float32 or float64, not {points.dtype}.")
        if label.shape != points.shape[:1] or index.shape != points.shape[:1]:
            raise UserError(
                f"{self.name}: label and index must have one entry for each of the {len(points)} points, "
                f"not shapes {list(label.shape)} and {list(index.shape)}."
            )
        bad = ~points.isfinite().flatten(1).all(1)
        if bad.any():
            row = int(bad.nonzero()[0])
            raise UserError(f"{self.name}: points must be finite; row {row} (index {int(index[row])}) is not.")


class FirstCoordinate(Observation[ObservationOptions]):
    """y = x_1 + n, the checkerboard's task in the Variational Flow Maps paper (section 4.1)."""

    kind = "first_coordinate"

    def _build_matrix(self, dimension: int) -> Tensor:
        return torch.eye(1, dimension, dtype=torch.float64)


class LinearObservationOptions(ObservationOptions):
    """Attributes:
    observations: number m of entries of y, from 1 to the points' dimension.
    matrix_seed: which of the random matrices.
    """

    observations: int = Field(default=1, ge=1)
    matrix_seed: int = Field(default=0, ge=0)


class LinearObservation(Observation[LinearObservationOptions]):
    """y = A x + n, A [m,d] with orthonormal rows in random directions, so that all its singular values are 1.

    A matrix with fewer observations has the first rows of one with more.
    """

    kind = "linear_observation"
    Options = LinearObservationOptions

    def _build_matrix(self, dimension: int) -> Tensor:
        count = self.options.observations
        if count > dimension:
            message = f"{self.name}: observations must be from 1 to the points' dimension {dimension}, not {count}."
            raise UserError(message, "task.observations")
        noise = PhiloxNoise(self.options.matrix_seed, "linear_observation/matrix", torch.arange(count))
        return orthonormal_rows(noise.normal((dimension,), 0).double())
