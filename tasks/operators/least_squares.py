"""The iterative solver of operators whose inverses have no closed form."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def least_squares(
    forward: Callable[[Tensor], Tensor],
    adjoint: Callable[[Tensor], Tensor],
    y: Tensor,
    tolerance: float,
    max_iterations: int,
    weight: Tensor | None = None,
) -> Tensor:
    """argmin_x |A x - y|^2 + weight |x|^2, by conjugate gradients from zero (CGLS: Hestenes and Stiefel 1952; with a weight:
    Bjorck 1996, "Numerical methods for least squares problems", section 7.4.2). Without a weight, the solution of least norm.

    Every row goes on until |A^T (y - A x) - weight x| <= tolerance |A^T y|, and then stays as it is, whatever the others do.

    Args:
        forward: A, [B,C,H,W] -> y's shape.
        adjoint: A^T.
        y: [B,...].
        max_iterations: after which the rows that have not converged are returned as they are.
        weight: positive, broadcastable to [B,1,1,1]; None is zero.
    """
    residual = y
    gradient = adjoint(y)
    direction = gradient
    solution = torch.zeros_like(gradient)
    size = _squared_norm(gradient)
    target = tolerance**2 * size
    for _ in range(max_iterations):
        active = size > target
        if not active.any():
            break
        image = forward(direction)
        curvature = _squared_norm(image)
        if weight is not None:
            curvature = curvature + weight * _squared_norm(direction)
        step = (size / curvature).where(active, 0)
        solution = solution + step * direction
        residual = residual - step.reshape(-1, *(1,) * (y.ndim - 1)) * image
        gradient = adjoint(residual)
        if weight is not None:
            gradient = gradient - weight * solution
        new_size = _squared_norm(gradient).where(active, size)
        direction = gradient + (new_size / size).where(active, 0) * direction
        size = new_size
    return solution


def _squared_norm(tensor: Tensor) -> Tensor:
    """Of each row: [B,1,1,1]."""
    return tensor.square().flatten(1).sum(1)[:, None, None, None]
