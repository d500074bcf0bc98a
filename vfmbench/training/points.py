"""Training on points: flow matching and mean flow, and one-step samples against the exact prior and posterior.

Source: mean flow (Geng et al., arXiv 2505.13447) as in Variational Flow Maps (arXiv 2603.07276), appendix B.1. Other than for
images, losses are sums over coordinates as in the equations, and the adaptive scaling takes the batch mean.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vfmbench.interfaces import Suite, Task
from vfmbench.metrics.compute import compute_metrics
from vfmbench.metrics.evaluation import EvaluationSet
from vfmbench.metrics.exact import mmd_posterior, mode_error, sacc_posterior
from vfmbench.metrics.metric import Metric
from vfmbench.metrics.posterior import crps
from vfmbench.metrics.prior import mmd_prior, sacc_prior
from vfmbench.models.networks import flow_network
from vfmbench.randomness import PhiloxNoise, sample_rows, split_seed
from vfmbench.training.batches import Batch, whole_split
from vfmbench.training.mean_flow import CoupledFlowOptions, adaptive_scale, draw_coupled_times, mean_flow_loss, one_step
from vfmbench.training.stage import Stage, TrainingOptions
from vfmbench.weights.store import WeightStore

_VALIDATION_POINTS, _VALIDATION_SAMPLES = 500, 100
_OF_PRIOR: dict[str, Metric] = {"sacc_prior": sacc_prior, "mmd_prior": mmd_prior}
_OF_POSTERIOR: dict[str, Metric] = {
    "sacc_posterior": sacc_posterior,
    "mmd_posterior": mmd_posterior,
    "mode_error": mode_error,
    "crps": crps,
}


@torch.no_grad()
def exact_metrics(
    suite: Suite, task: Task, network: nn.Module, adapter: nn.Module | None, split: str, limit: int | None, device: torch.device
) -> dict[str, float]:
    """Metrics of one-step samples of the first points of a split: of the prior, and of the posterior with an adapter.

    Those that cannot be computed are left out.

    Args:
        task: what is observed of each point.
        limit: number of points, of which no more than 500 are taken; None: 500.

    Raises FloatingPointError for samples that are not finite.
    """
    truth = whole_split(suite, split, device, limit)[0][:_VALIDATION_POINTS]
    index = torch.arange(len(truth), device=device)
    rows = sample_rows(index, range(_VALIDATION_SAMPLES))
    prior = PhiloxNoise(0, f"prior/{split}", *rows).normal(suite.latent_shape, 0)
    measurement = task.measure(truth, torch.zeros_like(index), index, split_seed(split, 0))
    z = PhiloxNoise(0, f"evaluate/{split}", *rows).normal(suite.latent_shape, 0)
    if adapter is not None:
        moments = adapter(measurement.operator.to_image(measurement.y), torch.zeros_like(index))
        mean, logvar = (moment.repeat_interleave(_VALIDATION_SAMPLES, 0) for moment in moments)
        z = mean + (0.5 * logvar).exp() * z
    shape, label = (len(truth), _VALIDATION_SAMPLES), torch.zeros(len(z), dtype=torch.int64, device=device)
    samples, draws = (one_step(network, noise, label).unflatten(0, shape).cpu() for noise in (z, prior))
    if not (samples.isfinite().all() and draws.isfinite().all()):
        raise FloatingPointError(f"One-step samples of the {split} split are not finite.")
    evaluation = EvaluationSet(
        domain=suite.domain,
        truth=truth.cpu(),
        samples=samples,
        prior=draws,
        exact=None if suite.prior is None else suite.prior.posterior(measurement),
        planned=len(truth),
    )
    results = compute_metrics(evaluation, _OF_PRIOR if adapter is None else {**_OF_PRIOR, **_OF_POSTERIOR})
    return {result.row.name: result.row.value for result in results if result.row.value is not None}


class PointFlowMatchingStage(Stage):
    """The instantaneous velocity, from independent pairs of points and noise."""

    name = "flow_matching"
    Options = TrainingOptions
    _distinct_share = 0.0

    def __init__(self, suite: Suite, options: TrainingOptions, weights: WeightStore, device: torch.device):
        super().__init__(suite, options, weights, device)
        self._architecture = self.options.architecture
        self.networks = {"flow": flow_network(self.suite.latent_shape, self._architecture).to(self.device)}
        for name in self.needs:
            self.weights.load(name).fill(self.networks["flow"], "flow")

    @classmethod
    def check(cls, suite: Suite, options: TrainingOptions) -> None:
        flow_network(suite.latent_shape, options.architecture)

    @classmethod
    def by_rows(cls, options: TrainingOptions) -> bool:
        return False

    def loss(self, batch: Batch, ema: Mapping[str, nn.Module]) -> tuple[Tensor, dict[str, Tensor]]:
        x, label = self._loader.load(batch.positions)
        z = batch.normal(*x.shape[1:])
        t, r, distinct = draw_coupled_times(batch.whole, self._distinct_share, batch.generator)
        loss = mean_flow_loss(
            self.networks["flow"],
            x,
            z,
            batch.cut(t),
            batch.cut(r),
            label,
            self.suite.num_classes,
            omega=0.0,
            reduction="sum",
            distinct=batch.share.before(distinct),
        ).mean()
        return adaptive_scale(loss, size=batch.mean(loss)), {"squared_error": loss.detach()}

    def evaluate(self, ema: Mapping[str, nn.Module], split: str, rows: int) -> dict[str, float]:
        """Share of one-step prior samples inside the support, and their MMD to the split."""
        task = self.suite.task(self.suite.task_names[0], {})
        return exact_metrics(self.suite, task, ema["flow"], None, split, self.options.validate_images, self.device)

    def manifest(self) -> dict[str, Any]:
        return {"architecture": {"flow": self._architecture}}


class PointMeanFlowStage(PointFlowMatchingStage):
    """The unconditional flow map, from the flow-matching network; a share of the pairs has r < t."""

    class Options(TrainingOptions, CoupledFlowOptions):
        pass

    name = "flow"
    needs = ("flow_matching",)
    options: Options

    def __init__(self, suite: Suite, options: TrainingOptions, weights: WeightStore, device: torch.device):
        super().__init__(suite, options, weights, device)
        self._distinct_share = self.options.distinct_share
