"""Training on points: flow matching, mean flow, and the adapter objectives (VFM, frozen, unconstrained).

Source: Variational Flow Maps (arXiv 2603.07276): eq. 10-19, sections 3.4 and 4.1, appendix B.1. Other than for images, losses are
sums over coordinates as in the equations, and the adaptive scaling takes the batch mean of the total.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from vfmbench.interfaces import MetricValue, Options, Suite, Task
from vfmbench.methods.point_adapter import adapter_network
from vfmbench.metrics.evaluation import EvaluationSet
from vfmbench.metrics.posterior import crps
from vfmbench.metrics.prior import mmd_prior, sacc_prior
from vfmbench.metrics.exact import mmd_posterior, mode_error, sacc_posterior
from vfmbench.models.networks import flow_network
from vfmbench.randomness import PhiloxNoise, sample_rows, split_seed
from vfmbench.training.mean_flow import adaptive_scale
from vfmbench.training.stage import Batches, Stage, TrainingOptions, whole_split

_VALIDATION_POINTS, _VALIDATION_SAMPLES = 500, 100


class CoupledFlowOptions(Options):
    """How (t, r) are drawn: the larger and the smaller of two uniforms, or equal."""

    distinct_share: float = Field(0.25, ge=0, le=1, description="share of the batch with r < t, the others have r = t")


def squared_errors(
    network: nn.Module, x: Tensor, z: Tensor, distinct_share: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """|u(x_t,t,r) - sg(v - (t - r) du/dt)|^2, summed over coordinates, [B], and t - r, [B].

    The gradient reaches x and z through x_t, never through the target. Where r = t the target is v itself, so that the
    derivative along (v, 1, 0) is only taken for the other rows.
    """
    rows, distinct = len(x), round(distinct_share * len(x))
    first, second = torch.rand(2, rows, generator=generator).to(x)
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
    """What all stages share: batches of points, one-step draws, validation against the exact posterior."""

    def __init__(self, *args: Any):
        super().__init__(*args)
        self._batches = Batches(self.suite.dataset("train"), self.device)

    def _normal(self, x: Tensor, generator: torch.Generator) -> Tensor:
        return torch.randn(x.shape, generator=generator).to(self.device)

    def _one_step(self, network: nn.Module, z: Tensor) -> Tensor:
        one = torch.ones(len(z), device=self.device)
        return z - network(z, one, torch.zeros_like(one), torch.zeros(len(z), dtype=torch.int64, device=self.device))

    def _evaluation(self, network: nn.Module, adapter: nn.Module | None, split: str) -> EvaluationSet:
        """One-step samples of the first points of a split, under their measurement where there is an adapter."""
        truth = whole_split(self.suite.dataset(split), self.device)[0][:_VALIDATION_POINTS]
        index = torch.arange(len(truth), device=self.device)
        rows = sample_rows(index, range(_VALIDATION_SAMPLES))
        prior = PhiloxNoise(0, f"prior/{split}", *rows).normal(self.suite.latent_shape, 0)
        measurement = _task(self.suite, self.options).measure(truth, torch.zeros_like(index), index, split_seed(split, 0))
        z = PhiloxNoise(0, f"evaluate/{split}", *rows).normal(self.suite.latent_shape, 0)
        if adapter is not None:
            mean, logvar = adapter(measurement.operator.to_image(measurement.y), torch.zeros_like(index))
            z = mean.repeat_interleave(_VALIDATION_SAMPLES, 0) + (0.5 * logvar).exp().repeat_interleave(_VALIDATION_SAMPLES, 0) * z
        shape = (len(truth), _VALIDATION_SAMPLES)
        return EvaluationSet(
            truth=truth.cpu(),
            samples=self._one_step(network, z).unflatten(0, shape).cpu(),
            prior=self._one_step(network, prior).unflatten(0, shape).cpu(),
            exact=self.suite.posterior(measurement),
            planned=len(truth),
        )

    def _values(self, values: list[MetricValue]) -> dict[str, float]:
        numbers = {value.name: value.value for value in values if value.value is not None}
        if not all(math.isfinite(number) for number in numbers.values()):
            raise FloatingPointError(f"Stage {self.name} produced values that are not finite.")
        return numbers


def _task(suite: Suite, options: TrainingOptions) -> Task:
    """The one problem of the suite that its adapters are trained on."""
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
            self.networks["flow"].load_state_dict(self.weights.load(name).part("flow"))

    @classmethod
    def check(cls, suite: Suite, options: TrainingOptions) -> None:
        flow_network(suite.latent_shape, options.architecture)

    def loss(self, step: int, generator: torch.Generator, ema: Mapping[str, nn.Module]) -> tuple[Tensor, dict[str, Tensor]]:
        x, _ = self._batches.draw(self.options.batch_size, generator)
        z = self._normal(x, generator)
        errors, _ = squared_errors(self.networks["flow"], x, z, self._distinct_share, generator)
        return adaptive_scale(errors.mean()), {"squared_error": errors.detach().mean()}

    @torch.no_grad()
    def evaluate(self, ema: Mapping[str, nn.Module], split: str) -> dict[str, float]:
        """Share of one-step prior samples inside the support, and their MMD to the split."""
        evaluation = self._evaluation(ema["flow"], None, split)
        return self._values([*sacc_prior(evaluation), *mmd_prior(evaluation)])

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


class AdapterOptions(TrainingOptions):
    """Options of every objective with an adapter."""

    kl: bool = Field(True, description="False: without the KL term")
    adaptive_power: float = Field(1.0, ge=0, description="p of the adaptive scaling; 0 turns it off")
    adaptive_constant: float = Field(0.01, gt=0)


class PointAdapterStage(PointStage):
    """Observation and KL terms of the adapter (eq. 15, 17), summed over coordinates."""

    needs = ("flow",)
    Options: type[AdapterOptions] = AdapterOptions
    options: AdapterOptions

    def __init__(self, *args: Any):
        super().__init__(*args)
        self._task = _task(self.suite, self.options)
        self._adapter_architecture = self.options.architecture["adapter"]
        self._adapter = adapter_network(self.suite.latent_shape, self._adapter_architecture).to(self.device)
        start = self.weights.load(self.needs[0])
        self._flow_architecture = start.entry["architecture"]["flow"]
        self._flow = flow_network(self.suite.latent_shape, self._flow_architecture).to(self.device)
        self._flow.load_state_dict(start.part("flow"))

    @classmethod
    def check(cls, suite: Suite, options: AdapterOptions) -> None:
        if "adapter" not in options.architecture:
            raise ValueError("it must have an entry 'adapter'")
        adapter_network(suite.latent_shape, options.architecture["adapter"])

    def _adapter_terms(
        self, x: Tensor, target: nn.Module, step: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        """z ~ q(z|y), |y - A f(z)|^2 / (2 sigma^2) [B] with f the one-step map of `target`, and KL(q || N(0,I)) [B]."""
        index = torch.arange(len(x), device=self.device) + step * len(x)
        measurement = self._task.measure(x, torch.zeros_like(index), index, split_seed("train", self.options.seed))
        mean, logvar = self._adapter(measurement.operator.to_image(measurement.y), torch.zeros_like(index))
        z = mean + (0.5 * logvar).exp() * self._normal(x, generator)
        residual = measurement.residual(self._one_step(target, z)) / measurement.noise_std
        divergence = 0.5 * (mean.square() + logvar.exp() - logvar - 1).flatten(1).sum(1)
        return z, 0.5 * residual.square().flatten(1).sum(1), divergence if self.options.kl else 0 * divergence

    def _total(self, terms: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        total = torch.stack([term.mean() for term in terms.values()]).sum()
        scaled = adaptive_scale(total, self.options.adaptive_power, self.options.adaptive_constant)
        return scaled, {key: value.detach().mean() for key, value in terms.items()}

    @torch.no_grad()
    def evaluate(self, ema: Mapping[str, nn.Module], split: str) -> dict[str, float]:
        """One-step prior and posterior samples against the exact ones."""
        evaluation = self._evaluation(ema.get("flow", self._flow), ema["adapter"], split)
        metrics = (sacc_prior, mmd_prior, sacc_posterior, mmd_posterior, mode_error, crps)
        return self._values([value for metric in metrics for value in metric(evaluation)])

    def manifest(self) -> dict[str, Any]:
        return {
            "architecture": {"flow": self._flow_architecture, "adapter": self._adapter_architecture},
            "problems": [self._task.name],
            "problem_options": {self._task.name: self._task.options.model_dump(mode="json")},
        }


class PointFrozenStage(PointAdapterStage):
    """The adapter alone, on the frozen unconditional flow map."""

    name = "frozen_adapter"

    def __init__(self, *args: Any):
        super().__init__(*args)
        self._flow.eval().requires_grad_(False)
        self.networks = {"adapter": self._adapter}

    def loss(self, step: int, generator: torch.Generator, ema: Mapping[str, nn.Module]) -> tuple[Tensor, dict[str, Tensor]]:
        x, _ = self._batches.draw(self.options.batch_size, generator)
        _, observed, divergence = self._adapter_terms(x, self._flow, step, generator)
        return self._total({"observation": observed, "kl": divergence})


class PointUnconstrainedStage(PointAdapterStage):
    """Flow map and adapter on observation and KL terms alone: nothing holds the map to the data."""

    name = "unconstrained"
    needs = ("flow_matching",)

    def __init__(self, *args: Any):
        super().__init__(*args)
        self.networks = {"flow": self._flow, "adapter": self._adapter}

    def loss(self, step: int, generator: torch.Generator, ema: Mapping[str, nn.Module]) -> tuple[Tensor, dict[str, Tensor]]:
        x, _ = self._batches.draw(self.options.batch_size, generator)
        _, observed, divergence = self._adapter_terms(x, self._flow, step, generator)
        return self._total({"observation": observed, "kl": divergence})


class PointVFMStage(PointAdapterStage):
    """Joint training of flow map and adapter: L_MF / (2 tau^2) + L_obs + L_kl."""

    name = "vfm"
    needs = ("flow_matching",)

    class Options(AdapterOptions, CoupledFlowOptions):
        tau: float = Field(0.1, gt=0, description="standard deviation that the data term allows, eq. 19")
        alpha: float = Field(0.5, ge=0, le=1, description="share of pairs whose z comes from the adapter, the others from N(0,I)")
        ema_target: bool = Field(
            True, description="L_obs through the EMA flow map; False: its gradient also reaches the flow map"
        )
        mean_flow_weighting: Literal["plain", "inverse_gap"] = Field(
            "plain", description="plain: eq. 19; inverse_gap: times 1/(t - r + 1e-6), as the authors' code does"
        )

    options: Options

    def __init__(self, *args: Any):
        super().__init__(*args)
        self.networks = {"flow": self._flow, "adapter": self._adapter}

    def loss(self, step: int, generator: torch.Generator, ema: Mapping[str, nn.Module]) -> tuple[Tensor, dict[str, Tensor]]:
        options, flow = self.options, self._flow
        x, _ = self._batches.draw(options.batch_size, generator)
        target = ema["flow"] if options.ema_target else flow
        posterior, observed, divergence = self._adapter_terms(x, target, step, generator)
        conditional = torch.rand(len(x), 1, 1, 1, generator=generator).to(self.device) < options.alpha
        z = torch.where(conditional, posterior, self._normal(x, generator))
        errors, gap = squared_errors(flow, x, z, options.distinct_share, generator)
        if options.mean_flow_weighting == "inverse_gap":
            # The authors divide the batch's mean squared error, a mean over coordinates too, by each row's gap.
            errors = errors.mean() / x[0].numel() / (gap + 1e-6)
        return self._total({"flow": errors / (2 * options.tau**2), "observation": observed, "kl": divergence})
