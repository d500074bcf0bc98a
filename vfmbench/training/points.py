"""Training on points: the stages' common part, flow matching and mean flow.

Source: mean flow (Geng et al., arXiv 2505.13447) as in Variational Flow Maps (arXiv 2603.07276), appendix B.1. Other than for
images, losses are sums over coordinates as in the equations, and the adaptive scaling takes the batch mean.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from vfmbench.interfaces import Suite, Task
from vfmbench.metrics.compute import Metric, compute_metrics
from vfmbench.metrics.evaluation import EvaluationSet
from vfmbench.metrics.exact import mmd_posterior, mode_error, sacc_posterior
from vfmbench.metrics.posterior import crps
from vfmbench.metrics.prior import mmd_prior, sacc_prior
from vfmbench.models.networks import flow_network
from vfmbench.options import Options
from vfmbench.randomness import PhiloxNoise, sample_rows, split_seed
from vfmbench.training.batches import whole_split
from vfmbench.training.mean_flow import adaptive_scale
from vfmbench.training.processes import WHOLE, Share
from vfmbench.training.stage import Stage, TrainingOptions

_VALIDATION_POINTS, _VALIDATION_SAMPLES = 500, 100
_OF_PRIOR: dict[str, Metric] = {"sacc_prior": sacc_prior, "mmd_prior": mmd_prior}
_OF_POSTERIOR: dict[str, Metric] = {
    "sacc_posterior": sacc_posterior,
    "mmd_posterior": mmd_posterior,
    "mode_error": mode_error,
    "crps": crps,
}


class CoupledFlowOptions(Options):
    """How (t, r) are drawn: the larger and the smaller of two uniforms, or equal."""

    distinct_share: float = Field(0.25, ge=0, le=1, description="share of the batch with r < t, the others have r = t")


def squared_errors(
    network: nn.Module, x: Tensor, z: Tensor, distinct_share: float, generator: torch.Generator, share: Share = WHOLE
) -> tuple[Tensor, Tensor]:
    """|u(x_t,t,r) - sg(v - (t - r) du/dt)|^2, summed over coordinates, [B], and t - r, [B].

    The gradient reaches x and z through x_t, never through the target. Where r = t the target is v itself, so that the
    derivative along (v, 1, 0) is only taken for the other rows. x and z are this share of a batch.
    """
    rows = len(x)
    distinct = share.before(round(distinct_share * share.whole(rows)))
    first, second = share.cut(torch.rand(2, share.whole(rows), generator=generator).T).T.to(x)
    t = torch.maximum(first, second)
    r = torch.cat([torch.minimum(first, second)[:distinct], t[distinct:]])
    x_t = torch.lerp(x, z, t[:, None, None, None])
    label = torch.zeros(rows, dtype=torch.int64, device=x.device)
    target = (z - x).detach()
    if distinct:
        inputs = (x_t[:distinct].detach(), t[:distinct], r[:distinct])
        tangents = (target[:distinct], torch.ones_like(inputs[1]), torch.zeros_like(inputs[2]))
        with torch.no_grad():
            derivative = torch.func.jvp(lambda x, t, r: network(x, t, r, label[:distinct]), inputs, tangents)[1]
        gap = (t - r)[:distinct, None, None, None]
        target = torch.cat([target[:distinct] - gap * derivative, target[distinct:]])
    return (network(x_t, t, r, label) - target).square().flatten(1).sum(1), t - r


class PointStage(Stage):
    """What all stages share: one-step draws, the loss of a batch, validation against the exact posterior."""

    by_rows = False

    def _points(self, generator: torch.Generator) -> Tensor:
        return self._batches.load(self._positions(generator))[0]

    def _whole_batch(self, mean: Tensor) -> Tensor:
        """From a mean over this process's rows to the mean over all rows of the batch, without gradient."""
        return self.processes.mean(mean.detach())

    def _one_step(self, network: nn.Module, z: Tensor) -> Tensor:
        one = torch.ones(len(z), device=self.device)
        return z - network(z, one, torch.zeros_like(one), torch.zeros(len(z), dtype=torch.int64, device=self.device))

    def _validate(self, network: nn.Module, adapter: nn.Module | None, split: str) -> dict[str, float]:
        """Metrics of one-step samples of the first points of a split: of the prior, and of the posterior with an adapter.

        Those that cannot be computed are left out. Raises FloatingPointError for samples that are not finite.
        """
        truth = whole_split(self.suite, split, self.device, self.options.validate_images)[0][:_VALIDATION_POINTS]
        index = torch.arange(len(truth), device=self.device)
        rows = sample_rows(index, range(_VALIDATION_SAMPLES))
        prior = PhiloxNoise(0, f"prior/{split}", *rows).normal(self.suite.latent_shape, 0)
        measurement = problem(self.suite).measure(truth, torch.zeros_like(index), index, split_seed(split, 0))
        z = PhiloxNoise(0, f"evaluate/{split}", *rows).normal(self.suite.latent_shape, 0)
        if adapter is not None:
            moments = adapter(measurement.operator.to_image(measurement.y), torch.zeros_like(index))
            mean, logvar = (moment.repeat_interleave(_VALIDATION_SAMPLES, 0) for moment in moments)
            z = mean + (0.5 * logvar).exp() * z
        shape = (len(truth), _VALIDATION_SAMPLES)
        samples, draws = (self._one_step(network, noise).unflatten(0, shape).cpu() for noise in (z, prior))
        if not (samples.isfinite().all() and draws.isfinite().all()):
            raise FloatingPointError(f"Stage {self.name} produced samples that are not finite.")
        evaluation = EvaluationSet(
            domain=self.suite.domain,
            truth=truth.cpu(),
            samples=samples,
            prior=draws,
            exact=None if self.suite.prior is None else self.suite.prior.posterior(measurement),
            planned=len(truth),
        )
        values = compute_metrics(evaluation, _OF_PRIOR if adapter is None else {**_OF_PRIOR, **_OF_POSTERIOR})
        return {value.name: value.value for value in values if value.value is not None}


def problem(suite: Suite) -> Task:
    """The one task of a suite of points that its adapters are trained on."""
    return suite.task(suite.task_names[0], {})


class PointFlowStage(PointStage):
    """A flow network on independent pairs of points and noise; `_distinct_share` of them with r < t."""

    Options = TrainingOptions
    _distinct_share = 0.0

    def __init__(self, *args: Any):
        super().__init__(*args)
        self._architecture = self.options.architecture
        self.networks = {"flow": flow_network(self.suite.latent_shape, self._architecture).to(self.device)}
        for name in self.needs:
            self.weights.load(name).fill(self.networks["flow"], "flow")

    @classmethod
    def check(cls, suite: Suite, options: TrainingOptions) -> None:
        flow_network(suite.latent_shape, options.architecture)

    def loss(self, step: int, generator: torch.Generator, ema: Mapping[str, nn.Module]) -> tuple[Tensor, dict[str, Tensor]]:
        x = self._points(generator)
        z = self._normal(len(x), x.shape[1:], generator)
        errors, _ = squared_errors(self.networks["flow"], x, z, self._distinct_share, generator, self.share)
        loss = errors.mean()
        return adaptive_scale(loss, size=self._whole_batch(loss)), {"squared_error": loss.detach()}

    @torch.no_grad()
    def evaluate(self, ema: Mapping[str, nn.Module], split: str) -> dict[str, float]:
        """Share of one-step prior samples inside the support, and their MMD to the split."""
        return self._validate(ema["flow"], None, split)

    def manifest(self) -> dict[str, Any]:
        return {"architecture": {"flow": self._architecture}}


class FlowMatchingStage(PointFlowStage):
    """Pre-training of the instantaneous velocity."""

    name = "flow_matching"


class MeanFlowStage(PointFlowStage):
    """The unconditional flow map, from the flow-matching network."""

    class Options(TrainingOptions, CoupledFlowOptions):
        pass

    name = "flow"
    needs = ("flow_matching",)
    options: Options

    def __init__(self, *args: Any):
        super().__init__(*args)
        self._distinct_share = self.options.distinct_share
