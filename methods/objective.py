"""Training objectives of the noise adapter: jointly with the flow map (VFM), or on a frozen one.

Source: Variational Flow Maps (arXiv 2603.07276): eq. 10-19, sections 3.3-3.4, appendix B.2. The losses are means over elements.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from vfmbench.config import dump
from vfmbench.interfaces import Measurement, Suite, Task
from vfmbench.methods.adapter import NoiseAdapter
from vfmbench.models.metering import Meter
from vfmbench.models.sit import SiT
from vfmbench.randomness import PhiloxNoise, split_seed
from vfmbench.training.mean_flow import (
    MeanFlowOptions,
    adaptive_scale,
    draw_fm_time,
    draw_mean_flow_times,
    drop_labels,
    flow_matching_loss,
    mean_flow_loss,
)
from vfmbench.training.stage import Batches, Stage, TrainingOptions, whole_split


class AdapterOptions(TrainingOptions):
    """Options of both adapter objectives."""

    problems: tuple[str, ...] = Field((), description="tasks drawn uniformly per image; empty: all of the suite")
    kl_weight: float = Field(1.0, ge=0, description="0 trains without the KL term")
    observation_weight: float = Field(1.0, ge=0)
    adaptive_power: float = Field(1.0, ge=0, description="p of the adaptive scaling; 0 turns it off")
    adaptive_constant: float = Field(0.01, gt=0)


class AdapterStage(Stage):
    """What joint and frozen training share: measurements of mixed problems, q(z|y,c), observation and KL terms."""

    Options: type[AdapterOptions]
    options: AdapterOptions

    def __init__(self, *args: Any):
        super().__init__(*args)
        self._tasks = self._problem_tasks(self.suite, self.options)
        self._adapter_architecture = self._resolve(self.suite, self.options)
        self._adapter = NoiseAdapter(**self._adapter_architecture).to(self.device)
        flow = self.weights.load("flow")
        self._flow_architecture = flow.entry["architecture"]["flow"]
        self._flow = SiT(**self._flow_architecture).to(self.device)
        self._flow.load_state_dict(flow.part("flow"))
        self._codec = self.suite.codec(self.device, Meter(self.device))
        self._batches = Batches(self.suite.dataset("train"), self.device)

    @staticmethod
    def _problem_tasks(suite: Suite, options: AdapterOptions) -> list[Task]:
        return [suite.task(name, {}) for name in options.problems or tuple(suite.task_names)]

    @staticmethod
    def _resolve(suite: Suite, options: AdapterOptions) -> dict[str, Any]:
        channels, size, _ = suite.image_shape
        latent_channels, latent_size, _ = suite.latent_shape
        return {
            "image_size": size,
            "image_channels": channels,
            "latent_size": latent_size,
            "latent_channels": latent_channels,
            "num_problems": len(options.problems or tuple(suite.task_names)),
            **options.architecture.get("adapter", {}),
        }

    @classmethod
    def check(cls, suite: Suite, options: AdapterOptions) -> None:
        cls._problem_tasks(suite, options)
        NoiseAdapter(**cls._resolve(suite, options))

    def _measure(
        self, images: Tensor, label: Tensor, step: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, list[tuple[Tensor, Measurement]]]:
        """Measures every image under a problem drawn uniformly, with operators and noise new at every step.

        Returns observations as images [B,C,H,W], problem ids [B], and per problem its rows and measurement.
        """
        problem = torch.randint(len(self._tasks), (len(images),), generator=generator)
        index = torch.arange(len(images), device=self.device) + step * len(images)
        seed = split_seed("train", self.options.seed)
        observation, groups = torch.empty_like(images), []
        for number, task in enumerate(self._tasks):
            rows = (problem == number).nonzero()[:, 0].to(self.device)
            if len(rows):
                measurement = task.measure(images[rows], label[rows], index[rows], seed)
                observation[rows] = measurement.operator.to_image(measurement.y)
                groups.append((rows, measurement))
        return observation, problem.to(self.device), groups

    def _observation_loss(self, latents: Tensor, groups: list[tuple[Tensor, Measurement]]) -> Tensor:
        """1/(2 sigma^2) times the mean squared residual over all entries of y, unobserved ones as zero, [B] (eq. 15).

        A mean over y beside a KL that is a mean over z: against the ELBO, a y of fewer entries than z (super-resolution)
        weighs more by their ratio, as it does in the authors' training.
        """
        images = self._codec.decode(latents)
        loss = latents.new_empty(len(latents))
        for rows, measurement in groups:
            residual = measurement.residual(images[rows]) / measurement.noise_std
            loss[rows] = 0.5 * residual.square().flatten(1).mean(1)
        return loss

    def _draw_latent(self, mean: Tensor, logvar: Tensor, generator: torch.Generator) -> Tensor:
        return mean + (0.5 * logvar).exp() * torch.randn(mean.shape, generator=generator).to(self.device)

    @staticmethod
    def _kl(mean: Tensor, logvar: Tensor) -> Tensor:
        """Mean over elements of KL(q || N(0, I)), [B]."""
        return 0.5 * (mean.square() + logvar.exp() - logvar - 1).flatten(1).mean(1)

    def _scale(self, loss: Tensor) -> Tensor:
        return adaptive_scale(loss, self.options.adaptive_power, self.options.adaptive_constant)

    def _one_step(self, network: nn.Module, z: Tensor, label: Tensor) -> Tensor:
        one = torch.ones(len(z), device=self.device)
        return z - network(z, one, torch.zeros_like(one), label)

    @torch.no_grad()
    def evaluate(self, ema: Mapping[str, nn.Module], split: str) -> dict[str, float]:
        """PSNR (dB) of one one-step sample for each image of the split, and the mean KL, by problem."""
        images, label = whole_split(self.suite.dataset(split), self.device)
        index = torch.arange(len(images), device=self.device)
        result, divergence = {}, []
        for number, task in enumerate(self._tasks):
            measurement = task.measure(images, label, index, split_seed(split, 0))
            mean, logvar = ema["adapter"](measurement.operator.to_image(measurement.y), torch.full_like(index, number))
            noise = PhiloxNoise(0, f"evaluate/{split}", index).normal(self.suite.latent_shape, 0)
            latents = self._one_step(ema.get("flow", self._flow), mean + (0.5 * logvar).exp() * noise, label)
            error = (self._codec.decode(latents).clamp(-1, 1) - images).square().flatten(1).mean(1)
            result[f"psnr/{task.name}"] = (10 * torch.log10(4 / error.clamp_min(1e-12))).mean().item()
            divergence.append(self._kl(mean, logvar).mean().item())
        result["kl"] = sum(divergence) / len(divergence)
        if not all(math.isfinite(value) for value in result.values()):
            raise FloatingPointError(f"Stage {self.name} produced values that are not finite.")
        return result

    def manifest(self) -> dict[str, Any]:
        return {
            "architecture": {"flow": self._flow_architecture, "adapter": self._adapter_architecture},
            "problems": [task.name for task in self._tasks],
            "problem_options": {task.name: dump(task.options) for task in self._tasks},
        }


class VFMStage(AdapterStage):
    """Joint training of flow map and adapter: L = flow + observation + KL, scaled per sample."""

    name = "vfm"
    needs = ("flow",)

    class Options(AdapterOptions, MeanFlowOptions):
        alpha: float = Field(
            0.8, ge=0, le=1, description="share of samples whose z comes from the adapter, the others from N(0,I)"
        )
        flow_weight: float = Field(1.0, ge=0, description="1/(2 tau^2) of eq. 19 up to the normalisation by elements")
        ema_target: bool = Field(
            True, description="L_obs through the EMA flow map; False: its gradient also reaches the flow map"
        )

    options: Options

    def __init__(self, *args: Any):
        super().__init__(*args)
        self.networks = {"flow": self._flow, "adapter": self._adapter}

    def loss(self, step: int, generator: torch.Generator, ema: Mapping[str, nn.Module]) -> tuple[Tensor, dict[str, Tensor]]:
        options, flow = self.options, self.networks["flow"]
        x, label = self._batches.draw(options.batch_size, generator)
        observation, problem, groups = self._measure(x, label, step, generator)
        x = self._codec.encode(x)
        mean, logvar = self.networks["adapter"](observation, problem)
        posterior = self._draw_latent(mean, logvar, generator)
        target = ema["flow"] if options.ema_target else flow
        observed = self._observation_loss(self._one_step(target, posterior, label), groups)
        divergence = self._kl(mean, logvar)

        conditional = (torch.rand(len(x), generator=generator) < options.alpha).to(self.device)
        prior = torch.randn(x.shape, generator=generator).to(self.device)
        z = torch.where(conditional[:, None, None, None], posterior, prior)
        null, omega = self.suite.num_classes, options.guidance_omega
        flow_label = drop_labels(label, null, options.label_dropout, generator)
        t_fm = draw_fm_time(len(x), options, generator).to(self.device)
        t, r = (time.to(self.device) for time in draw_mean_flow_times(len(x), options, generator))
        matching = flow_matching_loss(flow, x, z, t_fm, flow_label, null, omega)
        mean_flow = mean_flow_loss(flow, x, z, t, r, flow_label, null, omega)
        flow_loss = 0.5 * (matching + mean_flow)

        total = options.flow_weight * flow_loss + options.observation_weight * observed + options.kl_weight * divergence
        terms = {"flow": flow_loss, "observation": observed, "kl": divergence}
        return self._scale(total).mean(), {key: value.detach().mean() for key, value in terms.items()}


class FrozenAdapterStage(AdapterStage):
    """The adapter alone, on the pre-trained flow map: observation + KL."""

    name = "frozen_adapter"
    needs = ("flow",)
    Options = AdapterOptions

    def __init__(self, *args: Any):
        super().__init__(*args)
        self._flow.eval().requires_grad_(False)
        self.networks = {"adapter": self._adapter}

    def loss(self, step: int, generator: torch.Generator, ema: Mapping[str, nn.Module]) -> tuple[Tensor, dict[str, Tensor]]:
        options = self.options
        x, label = self._batches.draw(options.batch_size, generator)
        observation, problem, groups = self._measure(x, label, step, generator)
        mean, logvar = self._adapter(observation, problem)
        z = self._draw_latent(mean, logvar, generator)
        observed = self._observation_loss(self._one_step(self._flow, z, label), groups)
        divergence = self._kl(mean, logvar)
        total = options.observation_weight * observed + options.kl_weight * divergence
        return self._scale(total).mean(), {"observation": observed.detach().mean(), "kl": divergence.detach().mean()}
