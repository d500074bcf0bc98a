"""The inverse problems as tasks: each draws an operator and noise for every image of a batch (paper B.2.4).

Lengths left at None follow the image: what the paper uses at 256 pixels is scaled by the shorter side over 256 and rounded to
what the operator needs. `task.options` then holds the resolved values.

One long file on purpose: the paper's problems and their settings can be read, and compared with its table, in one place.
"""

from __future__ import annotations

import math
from typing import ClassVar, Generic, Literal, TypeVar

import torch
from pydantic import Field
from torch import Tensor

from vfmbench.domains import Shape
from vfmbench.errors import UserError
from vfmbench.interfaces import Task
from vfmbench.measurement import Measurement, NoiseSource
from vfmbench.options import Options
from vfmbench.randomness import PhiloxNoise
from vfmbench.tasks import operators
from vfmbench.tasks.motion_kernels import borodenko_kernels, traced_kernels
from vfmbench.tasks.noise import FIRST_FREE_DRAW, add_gaussian, add_poisson

# Rounding of an image on its way through files and dtypes may take it this far out of [-1, 1].
_LARGEST_VALUE = 1.001


class ProblemOptions(Options):
    """Options of every task.

    Attributes:
        noise: "gaussian", y = A x + noise_std n, or "poisson", y = 2 N / peak - 1 with N ~ Poisson(peak (A x + 1) / 2).
        noise_std: standard deviation of Gaussian noise on the [-1, 1] scale, at least 0; of no effect on Poisson noise.
        peak: expected photon count of Poisson noise at white, positive; of no effect on Gaussian noise.
    """

    noise: Literal["gaussian", "poisson"] = "gaussian"
    noise_std: float = Field(default=0.05, ge=0, allow_inf_nan=False)
    peak: float = Field(default=100.0, gt=0, allow_inf_nan=False)


O = TypeVar("O", bound=ProblemOptions)  # noqa: E741


class InverseProblem(Task, Generic[O]):
    """Base of the tasks on images.

    A subclass names its `kind`, its `Options`, whether it is `linear` and whether A x stays within the image range
    (`bounded`, which Poisson noise needs), and draws its operator in `_operator`.

    Args:
        image_shape: (C, H, W) of the images it will measure.
        options: of the subclass's own `Options` class.
        name: as on the command line; the kind if omitted. Random numbers do not depend on it.
        condition: what adapters are conditioned on; the name if omitted.

    Raises:
        UserError: options that the images are too small for, or that contradict one another.
    """

    bounded: ClassVar[bool] = True
    Options: ClassVar[type[ProblemOptions]] = ProblemOptions
    options: O

    def __init__(self, image_shape: Shape, options: O, name: str | None = None, condition: str | None = None):
        super().__init__(image_shape, options, name, condition)
        if options.noise == "poisson" and not self.bounded:
            raise UserError(
                f"{self.name}: noise must be gaussian, because poisson needs measurements in [-1, 1].", "task.noise"
            )

    @property
    def noise(self) -> str:
        return self.options.noise

    @torch.no_grad()
    def measure(self, images: Tensor, label: Tensor, index: Tensor, seed: int | str) -> Measurement:
        """Measures a batch; parameters and noise depend on (kind, options, seed, image index) only.

        The operator is applied in float64, so that a measurement does not depend on how a batch was put together.

        Args:
            images: float32 or float64 [B, *image_shape] in [-1, 1].
            label: int64 [B].
            index: int64 [B], position of each image in its split.
            seed: the run's seed with its split, see `vfmbench.randomness.split_seed`.

        Returns:
            The measurement in the images' dtype and on their device.

        Raises:
            UserError: images of another shape or dtype, or values that are not finite or outside [-1.001, 1.001].
        """
        self._check(images, label, index)
        label, index = label.to(images.device), index.to(images.device)
        noise = PhiloxNoise(seed, f"measurement/{self.kind}", index)
        operator = self._operator(noise, len(images))
        clean = operator.forward(images.double())
        if self.options.noise == "poisson":
            y, noise_std = add_poisson(clean, self.options.peak, noise)
        else:
            y, noise_std = add_gaussian(clean, self.options.noise_std, noise)
        return Measurement(y.to(images.dtype), operator, noise_std.to(images.dtype), label, index, self.condition)

    def _operator(self, noise: NoiseSource, rows: int) -> operators.BatchedOperator:
        """The operator of `rows` images; its random parameters use draws from FIRST_FREE_DRAW on."""
        raise NotImplementedError

    def _check(self, images: Tensor, label: Tensor, index: Tensor) -> None:
        if images.shape[1:] != self.image_shape or len(images) == 0:
            wanted = ", ".join(map(str, self.image_shape))
            raise UserError(
                f"{self.name}: images must have shape [B, {wanted}] with B of at least 1, not {list(images.shape)}."
            )
        if images.dtype not in (torch.float32, torch.float64):
            raise UserError(f"{self.name}: images must be float32 or float64, not {images.dtype}.")
        if label.shape != images.shape[:1] or index.shape != images.shape[:1]:
            raise UserError(
                f"{self.name}: label and index must have one entry for each of the {len(images)} images, "
                f"not shapes {list(label.shape)} and {list(index.shape)}."
            )
        # Written so that NaN counts as bad.
        bad = ~(images.abs().flatten(1).amax(1) <= _LARGEST_VALUE)
        if bad.any():
            row = int(bad.nonzero()[0])
            raise UserError(
                f"{self.name}: images must be finite and within [-1, 1]; row {row} (image index {int(index[row])}) "
                f"ranges from {float(images[row].min()):g} to {float(images[row].max()):g}."
            )


class Denoise(InverseProblem[ProblemOptions]):
    """y = x + n."""

    kind = "denoise"

    def _operator(self, noise: NoiseSource, rows: int) -> operators.BatchedOperator:
        return operators.Identity(rows, self.image_shape)


class InpaintRandomOptions(ProblemOptions):
    """The fraction of dropped pixels is uniform in [min_drop, max_drop), for each image its own; both in [0, 1)."""

    min_drop: float = Field(default=0.3, ge=0, lt=1)
    max_drop: float = Field(default=0.7, ge=0, lt=1)


class InpaintRandom(InverseProblem[InpaintRandomOptions]):
    """Exactly int(p H W) pixels of an image are dropped, all channels together."""

    kind = "inpaint_random"
    Options = InpaintRandomOptions

    def __init__(
        self, image_shape: Shape, options: InpaintRandomOptions, name: str | None = None, condition: str | None = None
    ):
        super().__init__(image_shape, options, name, condition)
        if options.min_drop > options.max_drop:
            message = f"{self.name}: min_drop must be at most max_drop ({options.max_drop:g}), not {options.min_drop:g}."
            raise UserError(message, "task.min_drop")

    def _operator(self, noise: NoiseSource, rows: int) -> operators.BatchedOperator:
        _, height, width = self.image_shape
        low, high = self.options.min_drop, self.options.max_drop
        fraction = low + (high - low) * noise.uniform((1,), FIRST_FREE_DRAW).double()
        dropped = (fraction * (height * width)).long()
        # Pixels in random order; stable, because 24-bit numbers tie and the order must not depend on the sorting routine.
        order = noise.uniform((height * width,), FIRST_FREE_DRAW + 1).argsort(dim=1, stable=True)
        keep = torch.arange(height * width, device=order.device) >= dropped
        observed = torch.empty_like(keep).scatter(1, order, keep)
        return operators.Mask(observed.reshape(rows, 1, height, width), self.image_shape)


class InpaintBoxOptions(ProblemOptions):
    """Height and width of the box are independent integers in [min_size, max_size), in pixels.

    Attributes:
        min_size: at least 1; 32 at 256 pixels.
        max_size: larger than min_size; 128 at 256 pixels.
        margin: least distance of the box from the border; 16 at 256 pixels.
    """

    min_size: int | None = Field(default=None, ge=1)
    max_size: int | None = Field(default=None, ge=2)
    margin: int | None = Field(default=None, ge=0)


class InpaintBox(InverseProblem[InpaintBoxOptions]):
    """A box of random height, width and place (uniform among those that keep the margin) is dropped."""

    kind = "inpaint_box"
    Options = InpaintBoxOptions

    def __init__(self, image_shape: Shape, options: InpaintBoxOptions, name: str | None = None, condition: str | None = None):
        self._min_size = max(1, _nearest(_scaled(32, image_shape))) if options.min_size is None else options.min_size
        self._max_size = (
            max(self._min_size + 1, _nearest(_scaled(128, image_shape))) if options.max_size is None else options.max_size
        )
        self._margin = _nearest(_scaled(16, image_shape)) if options.margin is None else options.margin
        resolved = {"min_size": self._min_size, "max_size": self._max_size, "margin": self._margin}
        super().__init__(image_shape, options.model_copy(update=resolved), name, condition)
        _, height, width = image_shape
        if self._max_size <= self._min_size:
            message = f"{self.name}: max_size must be larger than min_size ({self._min_size}), not {self._max_size}."
            raise UserError(message, "task.max_size")
        if self._max_size - 1 + 2 * self._margin > min(height, width):
            raise UserError(
                f"{self.name}: boxes of up to {self._max_size - 1} pixels with a margin of {self._margin} on both sides do not "
                f"fit into {height}x{width} images; max_size - 1 + 2 * margin must be at most {min(height, width)}.",
                "task.max_size",
            )

    def _operator(self, noise: NoiseSource, rows: int) -> operators.BatchedOperator:
        _, height, width = self.image_shape
        # float64, because a float32 product can round up to the excluded end.
        u = noise.uniform((4,), FIRST_FREE_DRAW).double()
        size = self._min_size + (u[:, :2] * (self._max_size - self._min_size)).long()
        places = torch.tensor([height, width], device=u.device) - 2 * self._margin - size + 1
        start = self._margin + (u[:, 2:] * places).long()
        row_hit, column_hit = (
            (torch.arange(length, device=u.device) >= start[:, axis, None])
            & (torch.arange(length, device=u.device) < (start + size)[:, axis, None])
            for axis, length in enumerate((height, width))
        )
        return operators.Mask(~(row_hit[:, None, :, None] & column_hit[:, None, None, :]), self.image_shape)


class SuperResolutionOptions(ProblemOptions):
    """factor: how many times smaller each side of the measurement is, an integer of at least 1 that divides both sides."""

    factor: int = Field(default=4, ge=1)


class SuperResolution(InverseProblem[SuperResolutionOptions]):
    """Antialiased bicubic reduction."""

    kind = "super_resolution"
    Options = SuperResolutionOptions

    def __init__(
        self, image_shape: Shape, options: SuperResolutionOptions, name: str | None = None, condition: str | None = None
    ):
        super().__init__(image_shape, options, name, condition)
        _, height, width = image_shape
        if height % options.factor or width % options.factor:
            allowed = [str(f) for f in range(1, min(height, width) + 1) if height % f == 0 and width % f == 0]
            raise UserError(
                f"{self.name}: factor must divide both sides of {height}x{width} images ({', '.join(allowed)}), "
                f"not {options.factor}.",
                "task.factor",
            )

    def _operator(self, noise: NoiseSource, rows: int) -> operators.BatchedOperator:
        return operators.SuperResolution(rows, self.image_shape, self.options.factor)


class GaussianDeblurOptions(ProblemOptions):
    """kernel_size: odd number of pixels, 61 at 256 pixels; std: positive, in pixels, 3 at 256 pixels."""

    kernel_size: int | None = Field(default=None, ge=1)
    std: float | None = Field(default=None, gt=0, allow_inf_nan=False)


class GaussianDeblur(InverseProblem[GaussianDeblurOptions]):
    """Gaussian blur, the same for every image."""

    kind = "gaussian_deblur"
    Options = GaussianDeblurOptions

    def __init__(
        self, image_shape: Shape, options: GaussianDeblurOptions, name: str | None = None, condition: str | None = None
    ):
        self._kernel_size = _odd(_scaled(61, image_shape)) if options.kernel_size is None else options.kernel_size
        self._std = _scaled(3.0, image_shape) if options.std is None else options.std
        resolved = options.model_copy(update={"kernel_size": self._kernel_size, "std": self._std})
        super().__init__(image_shape, resolved, name, condition)
        _check_kernel_size(self.name, self._kernel_size, image_shape)

    def _operator(self, noise: NoiseSource, rows: int) -> operators.BatchedOperator:
        return operators.GaussianBlur(rows, self.image_shape, self._kernel_size, self._std)


class MotionDeblurOptions(ProblemOptions):
    """kernel_size: odd number of pixels, 61 at 256 pixels; intensity: how much the camera's path bends, in [0, 1]; generator:
    borodenko, smooth lines of even weight, as the published adapters were trained, or traced, thin lines."""

    kernel_size: int | None = Field(default=None, ge=1)
    intensity: float = Field(default=0.5, ge=0, le=1)
    generator: Literal["borodenko", "traced"] = "borodenko"


class MotionDeblur(InverseProblem[MotionDeblurOptions]):
    """Camera shake, a new kernel for every image."""

    kind = "motion_deblur"
    Options = MotionDeblurOptions

    def __init__(self, image_shape: Shape, options: MotionDeblurOptions, name: str | None = None, condition: str | None = None):
        self._kernel_size = _odd(_scaled(61, image_shape)) if options.kernel_size is None else options.kernel_size
        super().__init__(image_shape, options.model_copy(update={"kernel_size": self._kernel_size}), name, condition)
        _check_kernel_size(self.name, self._kernel_size, image_shape)

    def _operator(self, noise: NoiseSource, rows: int) -> operators.BatchedOperator:
        kernels = traced_kernels if self.options.generator == "traced" else borodenko_kernels
        return operators.MotionBlur(
            kernels(noise, FIRST_FREE_DRAW, self._kernel_size, self.options.intensity), self.image_shape
        )


class HighDynamicRange(InverseProblem[ProblemOptions]):
    """y = clip(2 x, -1, 1) + n."""

    kind = "hdr"
    linear = False

    def _operator(self, noise: NoiseSource, rows: int) -> operators.BatchedOperator:
        return operators.HDR(rows, self.image_shape)


class PhaseRetrieval(InverseProblem[ProblemOptions]):
    """Fourier amplitudes, oversampling 2."""

    kind = "phase_retrieval"
    linear = False
    bounded = False

    def _operator(self, noise: NoiseSource, rows: int) -> operators.BatchedOperator:
        return operators.PhaseRetrieval(rows, self.image_shape)


def _scaled(length: float, image_shape: Shape) -> float:
    """A length given at 256 pixels, for these images."""
    return length * min(image_shape[1:]) / 256


def _nearest(length: float) -> int:
    return math.floor(length + 0.5)


def _odd(length: float) -> int:
    """The nearest odd number of at least 3: a kernel of one pixel would blur nothing."""
    return max(3, 2 * math.floor(length / 2) + 1)


def _check_kernel_size(name: str, kernel_size: int, image_shape: Shape) -> None:
    _, height, width = image_shape
    if kernel_size % 2 == 0:
        raise UserError(f"{name}: kernel_size must be odd, not {kernel_size}.", "task.kernel_size")
    largest = 2 * min(height, width) - 1
    if kernel_size > largest:
        raise UserError(
            f"{name}: kernel_size {kernel_size} is too large for {height}x{width} images with reflect padding; "
            f"the largest is {largest}.",
            "task.kernel_size",
        )
