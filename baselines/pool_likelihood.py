"""Gaussian log-likelihoods of many images under each measurement of a batch, all pairs of the two."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

from vfmbench.measurement import Measurement

# Numbers in one block of a computation, and pixels or entries of y up to which an operator is taken as a matrix.
_AT_ONCE = 2**22
_LARGEST_MATRIX = 256


class PoolLikelihood(Protocol):
    """log p(y|x) of B measurements, each but for a constant of its own; -inf where it is not a number."""

    def of_pool(self, pools: Tensor, which: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Blocks of measurements: their positions, int64 [R], and the log-likelihoods of all images of their pools, [R,N].

        Args:
            pools: L pools of N images, [L,N,C,H,W].
            which: the pool of each measurement, int64 [B].
        """

    def of_particles(self, images: Tensor, rows: Tensor) -> Tensor:
        """[R,K,C,H,W], K images for each of the measurements at the positions `rows` [R] -> float64 [R,K]."""


def pool_likelihood(measurement: Measurement) -> PoolLikelihood:
    """The fastest one for the measurement's operator."""
    operator = measurement.operator
    size = max(math.prod(operator.image_shape), math.prod(operator.measurement_shape))
    return MatrixLikelihood(measurement) if operator.linear and size <= _LARGEST_MATRIX else OperatorLikelihood(measurement)


class MatrixLikelihood:
    """For linear operators on few pixels, as matrices: one product measures a whole pool for a block of measurements.

    In float64: a choice from the pool must not turn into another by rounding that changes with the batch.
    """

    def __init__(self, measurement: Measurement):
        operator, batch = measurement.operator, len(measurement)
        pixels = math.prod(operator.image_shape)
        basis = torch.eye(pixels, dtype=torch.float64, device=measurement.y.device).unflatten(1, operator.image_shape)
        columns = operator.repeat(pixels).forward(basis.repeat(batch, 1, 1, 1)).flatten(1).unflatten(0, (batch, pixels))
        scale = 1 / measurement.noise_std.double().expand_as(measurement.y)
        if operator.observed is not None:
            scale = scale * operator.observed
        self._matrix = columns.mT * scale.flatten(1)[..., None]
        self._y = (measurement.y * scale).flatten(1)

    def of_pool(self, pools: Tensor, which: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        for k, images in enumerate(pools):
            points = images.flatten(1).double()
            at_once = max(1, _AT_ONCE // (len(points) * self._y.shape[1]))
            for rows in (which == k).nonzero().flatten().split(at_once):
                measured = (self._matrix[rows].flatten(0, 1) @ points.mT).unflatten(0, (len(rows), -1))
                yield rows, _log_gaussian(measured - self._y[rows][..., None], 1)

    def of_particles(self, images: Tensor, rows: Tensor) -> Tensor:
        measured = images.flatten(2).double() @ self._matrix[rows].mT
        return _log_gaussian(measured - self._y[rows][:, None], 2)


class OperatorLikelihood:
    """For any operator: measures every image for every measurement."""

    def __init__(self, measurement: Measurement):
        self._measurement = measurement

    def of_pool(self, pools: Tensor, which: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        blocks = pools.split(max(1, _AT_ONCE // (len(which) * pools[0, 0].numel())), 1)
        yield torch.arange(len(which), device=which.device), torch.cat([self._pairs(block[which]) for block in blocks], 1)

    def of_particles(self, images: Tensor, rows: Tensor) -> Tensor:
        # The rows of an operator cannot be selected, so all measurements get images.
        everywhere = images.new_zeros(len(self._measurement), *images.shape[1:])
        everywhere[rows] = images
        return self._pairs(everywhere)[rows]

    def _pairs(self, images: Tensor) -> Tensor:
        """[B,K,C,H,W] -> float64 [B,K]."""
        measurement = self._measurement.repeat(images.shape[1])
        residual = measurement.residual(images.flatten(0, 1).double()) / measurement.noise_std
        return _log_gaussian(residual.flatten(1), 1).unflatten(0, images.shape[:2])


def _log_gaussian(residual: Tensor, dim: int) -> Tensor:
    """-1/2 |r|^2 over one dimension of r, in units of the noise."""
    return torch.nan_to_num(-0.5 * residual.square().sum(dim), nan=-math.inf, neginf=-math.inf)
