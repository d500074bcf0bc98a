"""What all operators share: number of rows, shapes, precision, repetition and devices."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import ClassVar, Self

import torch
from torch import Tensor

from vfmbench.errors import UserError
from vfmbench.tasks.operators.least_squares import least_squares

ImageShape = tuple[int, int, int]

# Relative gradient at which the iterative `tikhonov` stops, and its largest number of iterations.
TIKHONOV_TOLERANCE = 1e-3
_TIKHONOV_ITERATIONS = 50


class BatchedOperator:
    """Base of every operator; implements `vfmbench.interfaces.Operator`.

    A subclass defines `_forward`, `_adjoint`, `_pinv`, where T is not the identity `_to_image`, and where it has a closed form
    `_tikhonov`. Without one, `tikhonov` runs conjugate gradients, each image on its own, until the gradient of the objective is
    at most TIKHONOV_TOLERANCE times that at x = 0, or for 50 iterations, as it may where the weight is below 1e-3 |A|^2.

    The methods with an underscore receive float32 or float64 and autocast is off: half precision inputs are computed in float32
    and rounded to their own dtype at the end, because an operator that is rounded inside is no longer linear, nor its adjoint
    an adjoint.

    Args:
        rows: number of images.
        image_shape: (C, H, W) of one image.
        measurement_shape: shape of one measurement; `image_shape` if omitted.

    Raises (all maps):
        ValueError: a tensor whose shape is not [rows, *shape] or which is not floating point.
    """

    linear: bool = True
    observed: Tensor | None = None
    _per_row: ClassVar[Sequence[str]] = ()
    """Names of the attributes that hold a tensor with one row an image."""

    def __init__(self, rows: int, image_shape: ImageShape, measurement_shape: tuple[int, ...] | None = None):
        self._rows = rows
        self.image_shape = image_shape
        self.measurement_shape = image_shape if measurement_shape is None else measurement_shape

    def __len__(self) -> int:
        return self._rows

    def forward(self, x: Tensor) -> Tensor:
        return self._apply(self._forward, x, self.image_shape)

    def adjoint(self, y: Tensor) -> Tensor:
        return self._apply(self._adjoint, y, self.measurement_shape)

    def pinv(self, y: Tensor) -> Tensor:
        return self._apply(self._pinv, y, self.measurement_shape)

    def tikhonov(self, y: Tensor, weight: Tensor) -> Tensor:
        if weight.shape not in ((self._rows, 1, 1, 1), (1, 1, 1, 1)):
            raise ValueError(
                f"{type(self).__name__} needs a weight of shape {(self._rows, 1, 1, 1)} or (1, 1, 1, 1), "
                f"not {tuple(weight.shape)}."
            )
        return self._apply(lambda wide: self._tikhonov(wide, weight.to(wide)), y, self.measurement_shape)

    def to_image(self, y: Tensor) -> Tensor:
        return self._apply(self._to_image, y, self.measurement_shape)

    def repeat(self, times: int) -> Self:
        return self._copy(self._rows * times, lambda tensor: tensor.repeat_interleave(times, 0))

    def to(self, device: torch.device | str) -> Self:
        return self._copy(self._rows, lambda tensor: tensor.to(device))

    def _forward(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def _adjoint(self, y: Tensor) -> Tensor:
        raise NotImplementedError

    def _pinv(self, y: Tensor) -> Tensor:
        raise NotImplementedError

    def _tikhonov(self, y: Tensor, weight: Tensor) -> Tensor:
        return least_squares(self._forward, self._adjoint, y, TIKHONOV_TOLERANCE, _TIKHONOV_ITERATIONS, weight)

    def _to_image(self, y: Tensor) -> Tensor:
        return y

    def _copy(self, rows: int, change: Callable[[Tensor], Tensor]) -> Self:
        other = copy.copy(self)
        other._rows = rows
        for name in self._per_row:
            setattr(other, name, change(getattr(self, name)))
        return other

    def _apply(self, function: Callable[[Tensor], Tensor], tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
        if tensor.shape != (self._rows, *shape) or not tensor.is_floating_point():
            raise ValueError(
                f"{type(self).__name__} needs a floating point tensor of shape {(self._rows, *shape)}, "
                f"not {tensor.dtype} {tuple(tensor.shape)}."
            )
        wide = tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()
        with torch.autocast(tensor.device.type, enabled=False):
            return function(wide).to(tensor.dtype)


class NonlinearOperator(BatchedOperator):
    """An operator without adjoint and inverses: a method that asks for them is told so."""

    linear = False

    def adjoint(self, y: Tensor) -> Tensor:
        raise UserError(self._refusal("adjoint"))

    def pinv(self, y: Tensor) -> Tensor:
        raise UserError(self._refusal("pseudo-inverse"))

    def tikhonov(self, y: Tensor, weight: Tensor) -> Tensor:
        raise UserError(self._refusal("regularised inverse"))

    def _refusal(self, what: str) -> str:
        return (
            f"{type(self).__name__} is not linear and has no {what}; "
            "choose a method that differentiates through the forward operator, or a linear task."
        )
