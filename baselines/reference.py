"""Trivial reconstructions that anchor a table: linear inverses of the observation, interpolation, filled holes, the codec."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from vfmbench.baselines.tuning import shipped_grid, tuned_options
from vfmbench.errors import MissingError
from vfmbench.interfaces import Backbone, MethodGrid, Sampler, Suite, Task
from vfmbench.measurement import Measurement, NoiseSource, Samples
from vfmbench.options import SamplerOptions
from vfmbench.restoration import regularised_inverse


class Reference(Sampler):
    """One deterministic image per measurement, repeated for every sample."""

    @classmethod
    def supports(cls, task: Task, suite: Suite) -> tuple[bool, str]:
        return task.linear, "" if task.linear else f"{task.name} is not linear"

    @abstractmethod
    def reconstruct(self, measurement: Measurement) -> Tensor:
        """[B,C,H,W]."""

    def sample(self, measurement: Measurement, num_samples: int, noise: NoiseSource) -> Samples:
        images = self.reconstruct(measurement)
        return Samples(images[:, None].expand(-1, num_samples, -1, -1, -1))


class Adjoint(Reference):
    """A^T y."""

    def reconstruct(self, measurement: Measurement) -> Tensor:
        return measurement.operator.adjoint(measurement.y)


class PseudoInverse(Reference):
    """A^+ y."""

    def reconstruct(self, measurement: Measurement) -> Tensor:
        return measurement.operator.pinv(measurement.y)


class TikhonovOptions(SamplerOptions):
    """prior_std: standard deviation of a pixel around the image's mean colour, positive."""

    prior_std: float = Field(default=0.5, gt=0)


class Tikhonov(Reference):
    """The posterior mean under a white Gaussian prior around the mean colour: `vfmbench.restoration.regularised_inverse`."""

    Options = TikhonovOptions
    options: TikhonovOptions

    @classmethod
    def preset(cls, name: str, method: str, task: Task, suite: Suite) -> Mapping[str, Any]:
        """The tuned width where there is one, else the default."""
        try:
            return tuned_options(cls, name, method, task, suite)
        except MissingError:
            return {}

    @classmethod
    def grid(cls, method: str, suite: str) -> MethodGrid | None:
        return shipped_grid(method, suite)

    def reconstruct(self, measurement: Measurement) -> Tensor:
        return regularised_inverse(measurement, self.options.prior_std)


class Bicubic(Reference):
    """A reduced image brought back to its size by Keys' bicubic interpolation with a = -0.5, which MATLAB's imresize has too.

    PyTorch takes this a only where it antialiases (which changes nothing on the way up); its plain bicubic has a = -0.75. Less
    than two pixels of y from the border it scales the weights inside the image to sum one, where MATLAB mirrors the image.
    """

    @classmethod
    def supports(cls, task: Task, suite: Suite) -> tuple[bool, str]:
        fits = task.kind == "super_resolution"
        return fits, "" if fits else f"{task.name} is not super-resolution"

    def reconstruct(self, measurement: Measurement) -> Tensor:
        size = measurement.operator.image_shape[1:]
        return F.interpolate(measurement.y, size, mode="bicubic", align_corners=False, antialias=True)


class MeanFill(Reference):
    """The observation, its hole filled with the mean colour of the image's observed pixels."""

    @classmethod
    def supports(cls, task: Task, suite: Suite) -> tuple[bool, str]:
        fits = task.kind in ("inpaint_box", "inpaint_random")
        return fits, "" if fits else f"{task.name} is not inpainting"

    def reconstruct(self, measurement: Measurement) -> Tensor:
        observed = measurement.operator.observed
        assert observed is not None
        total = (measurement.y * observed).sum((2, 3), keepdim=True)
        return measurement.y.where(observed, total / observed.sum((2, 3), keepdim=True).clamp_min(1))


class Autoencoded(Reference):
    """D(E(A^+ y)), the pseudo-inverse passed once through the suite's codec.

    On noise-free denoising this is the codec's own reconstruction of the image, the ceiling of every method on its latents.
    """

    weights = ("codec",)

    def __init__(self, suite: Suite, options: SamplerOptions, backbone: Backbone):
        super().__init__(suite, options, backbone)
        self._codec = backbone.codec

    @classmethod
    def supports(cls, task: Task, suite: Suite) -> tuple[bool, str]:
        # No codec worth the name leaves the shape as it is.
        if suite.latent_shape == suite.image_shape:
            return False, f"the suite {suite.name} has no codec: its latents are its images"
        return super().supports(task, suite)

    def reconstruct(self, measurement: Measurement) -> Tensor:
        return self._codec.decode(self._codec.encode(measurement.operator.pinv(measurement.y)))
