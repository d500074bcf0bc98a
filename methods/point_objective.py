"""Adapter objectives on points: VFM, the frozen adapter, and the unconstrained map.

Source: Variational Flow Maps (arXiv 2603.07276): eq. 10-19, sections 3.4 and 4.1, appendix B.1. Other than for images, losses
are sums over coordinates as in the equations, and the adaptive scaling takes the batch mean of the total.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from vfmbench.interfaces import Suite
from vfmbench.methods.point_adapter import adapter_network
from vfmbench.models.networks import flow_network
from vfmbench.randomness import split_seed
from vfmbench.training.mean_flow import adaptive_scale
from vfmbench.training.points import CoupledFlowOptions, PointStage, problem, squared_errors
from vfmbench.training.stage import TrainingOptions


class AdapterOptions(TrainingOptions):
    """Options of every objective with an adapter."""

    kl: bool = Field(True, description="False: without the KL term")
    adaptive_power: float = Field(1.0, ge=0, description="p of the adaptive scaling; 0 turns it off")
    adaptive_constant: float = Field(0.01, gt=0)


class PointAdapterStage(PointStage):
    """Observation and KL terms of the adapter (eq. 15, 17), summed over coordinates."""

    needs = ("flow_matching",)
    Options: ClassVar[type[AdapterOptions]] = AdapterOptions
    options: AdapterOptions

    def __init__(self, *args: Any):
        super().__init__(*args)
        self._task = problem(self.suite)
        self._architecture = dict(self.options.architecture)
        self._adapter = adapter_network(self.suite.latent_shape, self._architecture["adapter"]).to(self.device)
        self._flow = self._first_flow().to(self.device)

    def _first_flow(self) -> nn.Module:
        """The flow map that training starts from."""
        start = self.weights.load(self.needs[0])
        self._architecture["flow"] = start.entry["architecture"]["flow"]
        flow = flow_network(self.suite.latent_shape, self._architecture["flow"])
        start.fill(flow, "flow")
        return flow

    @classmethod
    def check(cls, suite: Suite, options: AdapterOptions) -> None:
        if "adapter" not in options.architecture:
            raise ValueError("it must have an entry 'adapter'")
        adapter_network(suite.latent_shape, options.architecture["adapter"])

    def _adapter_terms(
        self, x: Tensor, target: nn.Module, step: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        """z ~ q(z|y), |y - A f(z)|^2 / (2 sigma^2) [B] with f the one-step map of `target`, and KL(q || N(0,I)) [B]."""
        batch = self.share.whole(len(x))
        index = self.share.cut(torch.arange(batch)).to(self.device) + step * batch
        measurement = self._task.measure(x, torch.zeros_like(index), index, split_seed("train", self.options.seed))
        mean, logvar = self._adapter(measurement.operator.to_image(measurement.y), torch.zeros_like(index))
        z = mean + (0.5 * logvar).exp() * self._normal(len(x), x.shape[1:], generator)
        residual = measurement.residual(self._one_step(target, z)) / measurement.noise_std
        divergence = 0.5 * (mean.square() + logvar.exp() - logvar - 1).flatten(1).sum(1)
        return z, 0.5 * residual.square().flatten(1).sum(1), divergence if self.options.kl else torch.zeros_like(divergence)

    def _total(self, terms: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        total = torch.stack([term.mean() for term in terms.values()]).sum()
        size = self._whole_batch(total)
        scaled = adaptive_scale(total, self.options.adaptive_power, self.options.adaptive_constant, size)
        return scaled, {key: value.detach().mean() for key, value in terms.items()}

    def loss(self, step: int, generator: torch.Generator, ema: Mapping[str, nn.Module]) -> tuple[Tensor, dict[str, Tensor]]:
        """The observation and KL terms alone; a stage with a data term has a loss of its own."""
        x = self._points(generator)
        _, observed, divergence = self._adapter_terms(x, self._flow, step, generator)
        return self._total({"observation": observed, "kl": divergence})

    @torch.no_grad()
    def evaluate(self, ema: Mapping[str, nn.Module], split: str) -> dict[str, float]:
        """One-step prior and posterior samples against the exact ones."""
        return self._validate(ema.get("flow", self._flow), ema["adapter"], split)

    def manifest(self) -> dict[str, Any]:
        return {
            "architecture": self._architecture,
            "problems": [self._task.name],
            "problem_options": {self._task.name: self._task.options.model_dump(mode="json")},
        }


class PointFrozenStage(PointAdapterStage):
    """The adapter alone, on the frozen unconditional flow map."""

    name = "frozen_adapter"
    needs = ("flow",)

    def __init__(self, *args: Any):
        super().__init__(*args)
        self.networks = {"adapter": self._adapter}

    def _first_flow(self) -> nn.Module:
        return self.suite.flow(self.device).network


class PointUnconstrainedStage(PointAdapterStage):
    """Flow map and adapter on observation and KL terms alone: nothing holds the map to the data."""

    name = "unconstrained"

    def __init__(self, *args: Any):
        super().__init__(*args)
        self.networks = {"flow": self._flow, "adapter": self._adapter}


class PointVFMStage(PointAdapterStage):
    """Joint training of flow map and adapter: L_MF / (2 tau^2) + L_obs + L_kl."""

    name = "vfm"

    class Options(AdapterOptions, CoupledFlowOptions):
        tau: float = Field(0.1, gt=0, description="standard deviation that the data term allows, eq. 19")
        alpha: float = Field(
            0.5, ge=0, le=1, description="share of pairs whose z comes from the adapter, the others from N(0,I)"
        )
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
        x = self._points(generator)
        target = ema["flow"] if options.ema_target else flow
        posterior, observed, divergence = self._adapter_terms(x, target, step, generator)
        uniform = self.share.cut(torch.rand(self.share.whole(len(x)), 1, 1, 1, generator=generator))
        conditional = uniform.to(self.device) < options.alpha
        z = torch.where(conditional, posterior, self._normal(len(x), x.shape[1:], generator))
        errors, gap = squared_errors(flow, x, z, options.distinct_share, generator, self.share)
        if options.mean_flow_weighting == "inverse_gap":
            # The authors divide the batch's mean squared error, a mean over coordinates too, by each row's gap.
            errors = errors.mean() / x[0].numel() / (gap + 1e-6)
            # The mean over rows of 1 / gap is that of the whole batch.
            here = (1 / (gap + 1e-6)).mean()
            errors = errors * (self._whole_batch(here) / here)
        return self._total({"flow": errors / (2 * options.tau**2), "observation": observed, "kl": divergence})
