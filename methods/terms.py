"""The terms of the adapter objective, each a loss for every row of (x, y) with z ~ q(z|y).

Source: Variational Flow Maps (arXiv 2603.07276), eq. 10-19, sections 3.3-3.4, appendix B; where the authors' release differs
from the paper, each term says so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from vfmbench.measurement import Measurement
from vfmbench.options import Options
from vfmbench.training.batches import Batch
from vfmbench.training.mean_flow import (
    CoupledFlowOptions,
    MeanFlowOptions,
    Reduction,
    draw_coupled_times,
    draw_fm_time,
    draw_mean_flow_times,
    drop_labels,
    flow_matching_loss,
    mean_flow_loss,
    one_step,
    reduced,
)


@dataclass(frozen=True)
class Coupling:
    """What all terms of a step see: rows of (x, y) ~ p(x) p(y|x), coupled with z ~ q(z|y,c) (eq. 10).

    Attributes:
        batch: draws what a term needs beyond.
        encode: gives the rows' latents; see `x`.
        label: classes, int64 [B].
        measurements: of each problem c, its rows and their y.
        mean, logvar: of q(z|y,c), [B,c,h,w], with gradient to the adapter.
        z: drawn from it, with the same gradient.
        flow: u(x,t,r,label), trained or frozen.
        target: the network in whose one-step map the observation term sees z; theta^- in eq. 15.
        decode: from latents to images in [-1, 1], differentiable.
        null_label: the label of no class.
    """

    batch: Batch
    encode: Callable[[], Tensor]
    label: Tensor
    measurements: Sequence[tuple[Tensor, Measurement]]
    mean: Tensor
    logvar: Tensor
    z: Tensor
    flow: nn.Module
    target: nn.Module
    decode: Callable[[Tensor], Tensor]
    null_label: int

    @cached_property
    def x(self) -> Tensor:
        """Latents of the true images, [B,c,h,w]; encoded once, and only if a term asks for them."""
        return self.encode()


class TermOptions(Options):
    """What every term reads."""

    reduction: Reduction = Field(
        "mean",
        description="of squared errors and divergences over the entries of a row: the equations have sums, the authors' "
        "release has means for images",
    )


class Term:
    """One summand of the objective, `weight` times the mean over rows of what a call returns.

    A stage's Options inherit from those of its terms, and a term is built from them. `adaptive` says whether a scaling of
    single terms scales this one.

    Example:
        class Smallness(Term):
            name = "smallness"

            class Options(TermOptions):
                smallness_weight: float = 0.1

            options: Options

            @property
            def weight(self) -> float:
                return self.options.smallness_weight

            def __call__(self, coupling: Coupling) -> tuple[Tensor, ...]:
                return (reduced(coupling.z.square(), self.options.reduction),)
    """

    name: ClassVar[str]
    adaptive: ClassVar[bool] = False
    Options: ClassVar[type[TermOptions]] = TermOptions

    def __init__(self, options: TermOptions):
        self.options = options

    @property
    def weight(self) -> float:
        raise NotImplementedError

    def __call__(self, coupling: Coupling) -> tuple[Tensor, ...]:
        """Losses of each row, [B] each; the term is their mean."""
        raise NotImplementedError


class Observation(Term):
    """L_obs = 1/(2 sigma^2) |y - A f(z)|^2 with f the one-step map of `Coupling.target` (eq. 15), over the entries of y,
    unobserved ones as zero.

    As a mean this is the authors' 200 mean((T A x - T y)^2) at sigma = 0.05, where T makes an image of an observation: it
    repeats each low-resolution pixel equally often and else changes nothing, so that the means over T y and over y agree. Only
    for inpainting theirs is larger, by the noise in the hidden pixels: a constant without gradient, about half of their share,
    through which the adaptive scaling gives such images a little less weight. A mean over y beside a KL that is a mean over z:
    against the ELBO, a y of fewer entries than z (super-resolution) weighs more by their ratio.
    """

    name = "observation"

    class Options(TermOptions):
        observation_weight: float = Field(1.0, ge=0)

    options: Options

    @property
    def weight(self) -> float:
        return self.options.observation_weight

    def __call__(self, coupling: Coupling) -> tuple[Tensor, ...]:
        images = coupling.decode(one_step(coupling.target, coupling.z, coupling.label))
        loss = images.new_empty(len(images))
        for rows, measurement in coupling.measurements:
            residual = measurement.residual(images[rows]) / measurement.noise_std
            loss[rows] = 0.5 * reduced(residual.square(), self.options.reduction)
        return (loss,)


class Divergence(Term):
    """L_kl = KL(q(z|y,c) || N(0, I)) = 1/2 sum(mean^2 + exp(logvar) - logvar - 1) (eq. 17), over the entries of z."""

    name = "kl"

    class Options(TermOptions):
        kl_weight: float = Field(1.0, ge=0, description="0 trains without the KL term")

    options: Options

    @property
    def weight(self) -> float:
        return self.options.kl_weight

    def __call__(self, coupling: Coupling) -> tuple[Tensor, ...]:
        return (divergence(coupling.mean, coupling.logvar, self.options.reduction),)


def divergence(mean: Tensor, logvar: Tensor, reduction: Reduction) -> Tensor:
    """KL(N(mean, diag(exp(logvar))) || N(0, I)) in nats, [B,...] -> [B]."""
    return 0.5 * reduced(mean.square() + logvar.exp() - logvar - 1, reduction)


class _Flow(Term):
    """What stands in place of L_df = 1/(2 tau^2) |x - f(z)|^2: a mean-flow loss, which bounds it (proposition 3.2).

    The gradient reaches the adapter through x_t, never through the target.
    """

    name = "flow"
    adaptive = True

    @staticmethod
    def mixed(coupling: Coupling, alpha: float) -> Tensor:
        """z from the adapter with probability alpha, else independent N(0, I) (section 3.4), [B,c,h,w]."""
        conditional = coupling.batch.uniform(1, 1, 1) < alpha
        return torch.where(conditional, coupling.z, coupling.batch.normal(*coupling.z.shape[1:]))


class GuidedFlow(_Flow):
    """(FM + MF) / 2 for images: flow matching and mean flow, each at times of its own and with model guidance.

    Source: appendix B.2 and the authors' release.
    """

    class Options(TermOptions, MeanFlowOptions):
        alpha: float = Field(
            0.8, ge=0, le=1, description="share of samples whose z comes from the adapter, the others from N(0,I)"
        )
        flow_weight: float = Field(1.0, ge=0, description="1/(2 tau^2) of eq. 19 up to the normalisation by elements")

    options: Options

    @property
    def weight(self) -> float:
        return self.options.flow_weight

    def __call__(self, coupling: Coupling) -> tuple[Tensor, ...]:
        options, batch, x = self.options, coupling.batch, coupling.x
        z = self.mixed(coupling, options.alpha)
        null, omega = coupling.null_label, options.guidance_omega
        label = drop_labels(coupling.label, null, options.label_dropout, batch)
        t_fm = batch.cut(draw_fm_time(batch.whole, options, batch.generator))
        t, r = (batch.cut(time) for time in draw_mean_flow_times(batch.whole, options, batch.generator))
        matching = flow_matching_loss(coupling.flow, x, z, t_fm, label, null, omega, options.reduction)
        mean_flow = mean_flow_loss(coupling.flow, x, z, t, r, label, null, omega, options.tangent, options.reduction)
        return matching, mean_flow


class CoupledFlow(_Flow):
    """L_MF / (2 tau^2) (eq. 19) at one pair of times, of which a share has r = t; no guidance. Source: appendix B.1."""

    class Options(TermOptions, CoupledFlowOptions):
        tau: float = Field(0.1, gt=0, description="standard deviation that the data term allows, eq. 19")
        alpha: float = Field(
            0.5, ge=0, le=1, description="share of pairs whose z comes from the adapter, the others from N(0,I)"
        )
        mean_flow_weighting: Literal["plain", "inverse_gap"] = Field(
            "plain", description="plain: eq. 19; inverse_gap: times 1/(t - r + 1e-6), as the authors' code does"
        )

    options: Options

    @property
    def weight(self) -> float:
        return 1 / (2 * self.options.tau**2)

    def __call__(self, coupling: Coupling) -> tuple[Tensor, ...]:
        options, batch = self.options, coupling.batch
        # The authors multiply two means over the batch, of the squared errors and of 1 / (t - r + 1e-6).
        authors = options.mean_flow_weighting == "inverse_gap"
        z = self.mixed(coupling, options.alpha)
        t, r, distinct = draw_coupled_times(batch.whole, options.distinct_share, batch.generator)
        loss = mean_flow_loss(
            coupling.flow,
            coupling.x,
            z,
            batch.cut(t),
            batch.cut(r),
            coupling.label,
            coupling.null_label,
            omega=0.0,
            reduction="mean" if authors else options.reduction,
            distinct=batch.share.before(distinct),
        )
        return (loss * (1 / (t - r + 1e-6)).mean().item() if authors else loss,)
