"""What the guidance solvers share: the ODE loop, the guided velocity, the gradient of the data term, step rules.

Notation: x_t = (1-t) x_0 + t z, v = E[z - x_0 | x_t]. One evaluation gives both ends of the straight path through x_t, the
clean estimate x_t - t v and the noise estimate x_t + (1-t) v; an Euler step in t is the deterministic DDIM step between them.
All norms and losses are per sample: a sample's result does not depend on its batch.
"""

from __future__ import annotations

import itertools
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from vfmbench.baselines.tuning import shipped_grid, tuned_options
from vfmbench.interfaces import Backbone, MethodGrid, Sampler, Suite, Task, Vjp
from vfmbench.measurement import Measurement, NoiseSource, Samples
from vfmbench.options import ClassLabel, SamplerOptions

Rule = Literal["unit", "residual", "sign"]
Coordinates = Literal["flow", "variance_preserving"]
Draw = Callable[[], Tensor]


class SolverOptions(SamplerOptions):
    """Options of every solver."""

    guidance_scale: float = Field(2.0, ge=0, description="classifier-free guidance; 1 turns it off")
    label: ClassLabel = Field("true", description="class that the network is given; null: none, without guidance")


class GuidanceOptions(SolverOptions):
    """Options of the solvers that follow the ODE once; the defaults are the VFM paper's (appendix B.2.3)."""

    steps: int = Field(250, ge=1, description="Euler steps from t = 1 to 0")
    shift: float = Field(1.0, gt=0, description="time grid t -> shift t / (1 + (shift - 1) t); above 1: more steps near noise")


@dataclass(frozen=True)
class Estimate:
    """What one evaluation of the network says at x_t, all [B,c,h,w]."""

    x: Tensor
    t: float
    velocity: Tensor

    @property
    def clean(self) -> Tensor:
        return self.x - self.t * self.velocity

    @property
    def noise(self) -> Tensor:
        return self.x + (1 - self.t) * self.velocity

    def euler(self, t_next: float) -> Tensor:
        return self.x + (t_next - self.t) * self.velocity


class Step(NamedTuple):
    """The state after a step and the clean estimate that the step aimed at, both [B,c,h,w]."""

    state: Tensor
    clean: Tensor


def interpolate(clean: Tensor, noise: Tensor, t: float) -> Tensor:
    """(1-t) clean + t noise."""
    return (1 - t) * clean + t * noise


def per_sample(values: Tensor, like: Tensor) -> Tensor:
    """[B] -> [B,1,...], to multiply `like` with."""
    return values.reshape(-1, *[1] * (like.ndim - 1))


def norms(x: Tensor) -> Tensor:
    """L2 norm of each sample, [B,...] -> [B]."""
    # The squares of a large float32 gradient overflow, and an infinite norm would make its unit vector zero.
    return torch.linalg.vector_norm(x.flatten(1), dim=1, dtype=torch.float64).to(x.dtype)


def smooth_norms(x: Tensor) -> Tensor:
    """sqrt(|x|^2 + 1e-12) of each sample, [B,...] -> [B]: the norm with a gradient at zero."""
    return (x.flatten(1).square().sum(1) + 1e-12).sqrt()


def unit(gradient: Tensor) -> Tensor:
    """Each sample's gradient divided by its own L2 norm; zero stays zero."""
    return gradient / per_sample(norms(gradient).clamp_min(1e-12), gradient)


def data_gradient(measurement: Measurement, images: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient of 1/2 |A x - y|^2 with respect to the images, [B,C,H,W], and |A x - y|, [B].

    Entries of y that carry no signal (the hole of a mask) are left out.
    """
    operator = measurement.operator
    if operator.linear:
        residual = measurement.residual(images)
        return operator.adjoint(residual), norms(residual)
    with torch.enable_grad():
        leaf = images.detach().requires_grad_(True)
        residual = measurement.residual(leaf)
        gradient = torch.autograd.grad(0.5 * residual.square().sum(), leaf)[0]
    return gradient, norms(residual.detach())


def directed(gradient: Tensor, residual_norm: Tensor, rule: Rule) -> Tensor:
    """The direction that a step length multiplies, from the gradient of 1/2 |r|^2.

    Args:
        rule: `unit`, length 1; `residual`, the gradient of |r|; `sign`, the sign of each entry.
    """
    if rule == "unit":
        return unit(gradient)
    if rule == "sign":
        # The sign of NaN is 0, which would pass a broken sample off as an unguided one.
        return gradient.sign() + 0 * gradient
    return gradient / per_sample(residual_norm.clamp_min(1e-12), gradient)


def state_scale(coordinates: Coordinates, t: float) -> float:
    """s(t) that turns a state of the flow into one of the coordinates in which a method's step lengths were published.

    A variance-preserving diffusion has sqrt(a) x_0 + sqrt(1-a) z where the flow has (1-t) x_0 + t z: the same point times
    s(t) = ((1-t)^2 + t^2)^(-1/2), from 1 at both ends to sqrt(2). A gradient with respect to its state is that of the flow over
    s(t).
    """
    return 1.0 if coordinates == "flow" else ((1 - t) ** 2 + t**2) ** -0.5


def time_grid(steps: int, shift: float = 1.0, last: float | None = None) -> Iterator[tuple[float, float]]:
    """(t, next t) from 1 to 0, uniform before the shift; with `last`, uniform from 1 to that time, and then 0."""
    if last is None:
        nodes = [1 - step / steps for step in range(steps + 1)]
    else:
        nodes = [*(1 - (1 - last) * step / max(1, steps - 1) for step in range(steps)), 0.0]
    shifted = [shift * t / (1 + (shift - 1) * t) for t in nodes]
    return itertools.pairwise(shifted)


class Solver(Sampler):
    """What every solver has: a network and a codec that it asks for estimates and gradients, options by preset name."""

    Options: ClassVar[type[SolverOptions]] = SolverOptions
    weights = ("flow",)
    needs_linear: ClassVar[bool] = False
    options: SolverOptions

    def __init__(self, suite: Suite, options: SolverOptions, backbone: Backbone):
        super().__init__(suite, options, backbone)
        self.flow, self.codec = backbone.flow, backbone.codec
        # Without classes there is no unconditional branch to guide away from, and with the null class both are the same.
        guided = suite.num_classes and options.label == "true"
        self.guidance_scale = options.guidance_scale if guided else 1.0

    @classmethod
    def supports(cls, task: Task, suite: Suite) -> tuple[bool, str]:
        if cls.needs_linear and not task.linear:
            return False, f"{task.name} is not linear, and the method needs the transpose of a linear operator"
        return True, ""

    @classmethod
    def original(cls, problem: str) -> Mapping[str, Any]:
        """Options of the method's own authors for a family of problems, as far as they exist in this form."""
        return {}

    @classmethod
    def preset(cls, name: str, method: str, task: Task, suite: Suite) -> Mapping[str, Any]:
        """Options by name: `paper` (the VFM paper's comparison), `original` (the method's authors), `tuned` (for this suite),
        or those in a file that `vfmbench tune` wrote.

        Raises MissingError where nothing has been tuned.
        """
        return cls.original(task.kind) if name == "original" else tuned_options(cls, name, method, task, suite)

    @classmethod
    def grid(cls, method: str, suite: str) -> MethodGrid | None:
        return shipped_grid(method, suite)

    def conditioned(self, measurement: Measurement) -> Measurement:
        """The measurement with the labels that the network is given. Raises UserError for an image without a label."""
        return self.flow.relabelled(measurement, null=self.options.label == "null")

    def estimate(self, x: Tensor, t: float, label: Tensor) -> Estimate:
        """One evaluation without a graph."""
        return Estimate(x, t, self.flow.velocity(x, t, label, self.guidance_scale))

    def estimate_with_vjp(self, x: Tensor, t: float, label: Tensor) -> tuple[Estimate, Vjp]:
        """One evaluation and the map g -> (d clean / d x)^T g through the network, both guidance branches."""
        velocity, vjp = self.flow.velocity_with_vjp(x, t, label, self.guidance_scale)
        return Estimate(x, t, velocity), lambda cotangent: cotangent - t * vjp(cotangent)

    def clean_gradient(self, clean: Tensor, measurement: Measurement) -> tuple[Tensor, Tensor]:
        """Gradient of 1/2 |A D(z) - y|^2 at the latent z, [B,c,h,w], and |A D(z) - y|, [B]: decoder and operator only."""
        images, decode_vjp = self.codec.decode_with_vjp(clean)
        gradient, residual_norm = data_gradient(measurement, images)
        return decode_vjp(gradient), residual_norm


def draws(noise: NoiseSource, shape: tuple[int, ...], at_once: int = 1) -> Draw:
    """Fresh standard normal numbers [rows, *shape] at every call, the same sequence for a row whatever its batch.

    Args:
        at_once: how many to generate together: counter-based generators cost many small operations a call.
    """

    def numbers() -> Iterator[Tensor]:
        for block in itertools.count():
            yield from noise.normal((at_once, *shape), block).unbind(1)

    stream = numbers()
    return lambda: next(stream)


class TrajectorySampler(Solver):
    """Base of the solvers that bring noise to the result step by step."""

    @abstractmethod
    def trajectory(self, measurement: Measurement, noise: NoiseSource) -> Iterator[Step]:
        """The solver's steps, one sample a row of the measurement; the last state is the result."""

    def sample(self, measurement: Measurement, num_samples: int, noise: NoiseSource) -> Samples:
        state = torch.empty(0)
        for step in self.trajectory(self.conditioned(measurement.repeat(num_samples)), noise):
            state = step.state
        shape = (len(measurement), num_samples)
        return Samples(self.codec.decode(state).unflatten(0, shape), state.unflatten(0, shape))


class GuidanceSampler(TrajectorySampler):
    """Base of the solvers that follow the prior's ODE once: a subclass says in `step` how one step from t to t' goes."""

    Options: ClassVar[type[GuidanceOptions]] = GuidanceOptions
    options: GuidanceOptions

    @abstractmethod
    def step(self, x: Tensor, t: float, t_next: float, measurement: Measurement, draw: Draw) -> Step:
        """x_t [B,c,h,w] -> x_t'; `draw` gives noise of x's shape to stochastic solvers."""

    def times(self) -> Iterator[tuple[float, float]]:
        """(t, next t) of each step."""
        return time_grid(self.options.steps, self.options.shift)

    def trajectory(self, measurement: Measurement, noise: NoiseSource) -> Iterator[Step]:
        draw = draws(noise, self.flow.latent_shape)
        x = draw()
        for t, t_next in self.times():
            step = self.step(x, t, t_next, measurement, draw)
            x = step.state
            yield step
