"""What an exact posterior takes from a measurement: y = M x + noise_std n."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from torch import Tensor

from vfmbench.errors import UserError
from vfmbench.measurement import Measurement
from vfmbench.tasks.operators.matrix import MatrixOperator


@dataclass(frozen=True)
class LinearMeasurement:
    """The rows of a measurement in float64.

    Attributes:
        matrix: M [m,d], shared by all rows.
        y: [B,m].
        noise_std: [B,1], of each row.
    """

    matrix: Tensor
    y: Tensor
    noise_std: Tensor

    @classmethod
    def of(cls, measurement: Measurement, dimension: int) -> Self:
        """Reads a measurement of points of R^dimension.

        Raises:
            UserError: an operator that is not a matrix on such points.
            ValueError: noise that is not positive or differs between the entries of one row.
        """
        operator = measurement.operator
        if not isinstance(operator, MatrixOperator) or operator.image_shape != (dimension, 1, 1):
            raise UserError(
                f"The exact posterior is known for linear observations of points in {dimension} dimensions "
                f"(first_coordinate, linear_observation), not for {measurement.condition} on {operator.image_shape}."
            )
        noise_std = measurement.noise_std.double().expand(measurement.y.shape)
        if not (noise_std > 0).all() or (noise_std != noise_std[:, :1]).any():
            raise ValueError("the exact posterior needs positive noise, of equal size in all entries of a row")
        return cls(operator.matrix.to(measurement.y.device), measurement.y.double(), noise_std[:, :1])


def flat_points(points: Tensor, dimension: int) -> Tensor:
    """Points [...,d,1,1] as float64 [...,d]. Raises ValueError for another shape."""
    if points.shape[-3:] != (dimension, 1, 1):
        raise ValueError(f"points must have shape [..., {dimension}, 1, 1], not {list(points.shape)}")
    return points.double().flatten(-3)
