"""The ODE loop that the guidance solvers share: schedule, guided velocity, data-term gradient.

Notation: x_t = (1-t) x_0 + t z, v = E[z - x_0 | x_t], clean estimate x_0 = x_t - t v. An Euler step in t along the linear path
is the deterministic DDIM step. All norms and losses are per sample: a sample's result does not depend on its batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from pydantic import Field
from torch import Tensor

from vfmbench.interfaces import Measurement, NoiseSource, Options, Samples, Suite, Task
from vfmbench.models.flow import FlowModel


class GuidanceOptions(Options):
    """Options of every guidance solver; the defaults are those of the VFM paper's comparison (appendix B.2.3)."""

    steps: int = Field(250, ge=1, description="Euler steps from t = 1 to 0")
    guidance_scale: float = Field(2.0, ge=0, description="classifier-free guidance; 1 turns it off")


def unit(gradient: Tensor) -> Tensor:
    """Each sample's gradient divided by its own L2 norm; zero stays zero."""
    norm = gradient.flatten(1).norm(dim=1).clamp_min(1e-12)
    return gradient / norm[:, None, None, None]


def data_gradient(measurement: Measurement, images: Tensor) -> Tensor:
    """Gradient of 1/2 |A x - y|^2 with respect to the images, [B,C,H,W]; entries that carry no signal are left out."""
    operator = measurement.operator
    if operator.linear:
        return operator.adjoint(measurement.residual(images))
    with torch.enable_grad():
        leaf = images.detach().requires_grad_(True)
        loss = 0.5 * measurement.residual(leaf).square().sum()
        return torch.autograd.grad(loss, leaf)[0]


def time_grid(steps: int) -> Iterator[tuple[float, float]]:
    """(t, next t) of a uniform grid from 1 to 0."""
    for step in range(steps):
        yield 1 - step / steps, 1 - (step + 1) / steps


class GuidanceSampler:
    """Base of the solvers: a subclass says in `step` how one step from t to t' goes."""

    Options: type[GuidanceOptions] = GuidanceOptions
    weights = ("flow",)

    def __init__(self, suite: Suite, options: GuidanceOptions, device: torch.device):
        self.options = options
        self.flow: FlowModel = suite.flow(device)
        self.codec = suite.codec(device)
        self.meter = self.flow.meter
        # Without classes there is no unconditional branch to guide away from.
        self.guidance_scale = options.guidance_scale if suite.num_classes else 1.0

    @classmethod
    def supports(cls, task: Task, suite: Suite) -> tuple[bool, str]:
        return True, ""

    def step(self, x: Tensor, t: float, t_next: float, measurement: Measurement) -> Tensor:
        """x_t [B,c,h,w] -> x_t' [B,c,h,w]."""
        raise NotImplementedError

    def sample(self, measurement: Measurement, num_samples: int, noise: NoiseSource) -> Samples:
        rows = measurement.repeat(num_samples)
        x = noise.normal(self.flow.latent_shape, draw=0)
        for t, t_next in time_grid(self.options.steps):
            x = self.step(x, t, t_next, rows)
        shape = (len(measurement), num_samples)
        return Samples(self.codec.decode(x).unflatten(0, shape), x.unflatten(0, shape))

    def clean_estimate(self, x: Tensor, t: float, label: Tensor) -> tuple[Tensor, Tensor, Callable[[Tensor], Tensor]]:
        """Velocity v, clean estimate x - t v, and the map g -> (d clean / d x)^T g through the network."""
        velocity, vjp = self.flow.velocity_with_vjp(x, t, label, self.guidance_scale)
        return velocity, x - t * velocity, lambda cotangent: cotangent - t * vjp(cotangent)
