"""A dense matrix as an operator on points of R^d."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor

from vfmbench.tasks.operators.base import BatchedOperator


class MatrixOperator(BatchedOperator):
    """y = M x for points x [B,d,1,1] and measurements y [B,m], one matrix for all rows; exact adjoint and inverses.

    `to_image` is the adjoint: an adapter sees M^T y as [B,d,1,1].

    Args:
        rows: number of points.
        matrix: M [m,d]; kept in float64.
    """

    def __init__(self, rows: int, matrix: Tensor):
        measurements, dimension = matrix.shape
        super().__init__(rows, (dimension, 1, 1), (measurements,))
        self.matrix = matrix.double()

    def to(self, device: torch.device | str) -> Self:
        other = super().to(device)
        other.matrix = self.matrix.to(device)
        return other

    def _forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.matrix.to(x).mT

    def _adjoint(self, y: Tensor) -> Tensor:
        return (y @ self.matrix.to(y)).reshape(len(y), *self.image_shape)

    def _pinv(self, y: Tensor) -> Tensor:
        return (y @ torch.linalg.pinv(self.matrix).mT.to(y)).reshape(len(y), *self.image_shape)

    def _tikhonov(self, y: Tensor, weight: Tensor) -> Tensor:
        u, s, vt = (factor.to(y) for factor in torch.linalg.svd(self.matrix, full_matrices=False))
        return (((y @ u) * s / (s.square() + weight[:, :, 0, 0])) @ vt).reshape(len(y), *self.image_shape)

    def _to_image(self, y: Tensor) -> Tensor:
        return self._adjoint(y)


def orthonormal_rows(vectors: Tensor) -> Tensor:
    """Gram-Schmidt of linearly independent rows [m,d], m <= d: the first k rows span what the first k given ones span.

    Rows of standard normals give uniformly distributed frames (Mezzadri 2007, "How to generate random matrices from the
    classical compact groups").
    """
    basis, triangle = torch.linalg.qr(vectors.mT)
    # The decomposition is unique only once the triangle's diagonal is positive, and libraries choose its signs differently.
    return (basis * triangle.diagonal().sign()).mT
