"""Training objectives of the noise adapter: jointly with the flow map (VFM), or on a frozen one.

Source: Variational Flow Maps (arXiv 2603.07276): eq. 10-19, sections 3.3-3.4, appendix B.2, and the authors' release, which for
images takes means over elements where the equations have sums. The total is that of the release: flow + observation + KL, each
with the weight 1, scaled for every image by itself.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vfmbench.interfaces import Suite, Task
from vfmbench.measurement import Measurement
from vfmbench.methods.adapter import adapter_arguments, adapter_observation, expand_adapter_size
from vfmbench.methods.point_adapter import adapter_network
from vfmbench.models.networks import flow_network
from vfmbench.options import dump
from vfmbench.randomness import PhiloxNoise, split_seed
from vfmbench.training.image_stage import ImageOptions, ImageStage
from vfmbench.training.mean_flow import (
    MeanFlowOptions,
    adaptive_scale,
    draw_fm_time,
    draw_mean_flow_times,
    drop_labels,
    flow_matching_loss,
    mean_flow_loss,
)

# Latents that are decoded at a time where activations are not kept: a decoder to 256x256 pixels holds gigabytes for each.
_DECODED_ROWS = 4


class AdapterOptions(ImageOptions):
    """Options of both adapter objectives."""

    problems: tuple[str, ...] = Field((), description="tasks drawn uniformly per image; empty: all of the suite")
    kl_weight: float = Field(1.0, ge=0, description="0 trains without the KL term")
    observation_weight: float = Field(1.0, ge=0)
    adaptive_power: float = Field(1.0, ge=0, description="p of the adaptive scaling; 0 turns it off")
    adaptive_constant: float = Field(0.01, gt=0)
    checkpoint_decoder: bool = Field(
        False,
        exclude=True,
        description=f"decode {_DECODED_ROWS} latents at a time and compute activations again for the gradient: less memory",
    )


class AdapterStage(ImageStage):
    """What joint and frozen training share: measurements of mixed problems, q(z|y,c), observation and KL terms."""

    Options: ClassVar[type[AdapterOptions]]
    options: AdapterOptions

    def __init__(self, *args: Any):
        super().__init__(*args)
        self._tasks = self._problem_tasks(self.suite, self.options)
        self._adapter_architecture = self._resolve(self.suite, self.options)
        self._restored = self._adapter_architecture.get("restored", False)
        self._adapter = adapter_network(self.suite.latent_shape, self._adapter_architecture).to(self.device)
        flow = self.weights.load("flow")
        self._flow_architecture = flow.entry["architecture"]["flow"]
        self._flow = flow_network(self.suite.latent_shape, self._flow_architecture).to(self.device)
        flow.fill(self._flow, "flow")

    @staticmethod
    def _problem_tasks(suite: Suite, options: AdapterOptions) -> list[Task]:
        return [suite.task(name, {}) for name in options.problems or tuple(suite.task_names)]

    @staticmethod
    def _resolve(suite: Suite, options: AdapterOptions) -> dict[str, Any]:
        channels, size, _ = suite.image_shape
        latent_channels, latent_size, _ = suite.latent_shape
        shapes = {
            "image_size": size,
            "image_channels": channels,
            "latent_size": latent_size,
            "latent_channels": latent_channels,
            "num_problems": len(options.problems or tuple(suite.task_names)),
        }
        return expand_adapter_size({**shapes, **options.architecture.get("adapter", {})})

    @classmethod
    def check(cls, suite: Suite, options: AdapterOptions) -> None:
        cls._problem_tasks(suite, options)
        with torch.device("meta"):
            adapter_network(suite.latent_shape, cls._resolve(suite, options))

    def _measure(
        self, images: Tensor, label: Tensor, step: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, list[tuple[Tensor, Measurement]]]:
        """Measures every image of the share under a problem drawn uniformly, with operators and noise new at every step.

        Returns what the adapter observes [B,.,H,W], problem ids [B], and per problem its rows and measurement.
        """
        batch = self.share.whole(len(images))
        problem = self.share.cut(torch.randint(len(self._tasks), (batch,), generator=generator))
        index = self.share.cut(torch.arange(batch)).to(self.device) + step * batch
        seed = split_seed("train", self.options.seed)
        observed: list[Tensor] = []
        groups: list[tuple[Tensor, Measurement]] = []
        for number, task in enumerate(self._tasks):
            rows = (problem == number).nonzero()[:, 0].to(self.device)
            if len(rows):
                measurement = task.measure(images[rows], label[rows], index[rows], seed)
                observed.append(adapter_observation(measurement, self._restored))
                groups.append((rows, measurement))
        order = torch.cat([rows for rows, _ in groups]).argsort()
        return torch.cat(observed)[order], problem.to(self.device), groups

    def _observation_loss(self, latents: Tensor, groups: list[tuple[Tensor, Measurement]]) -> Tensor:
        """1/(2 sigma^2) times the mean squared residual over all entries of y, unobserved ones as zero, [B] (eq. 15).

        This is the authors' 200 mean((T A x - T y)^2) at sigma = 0.05, where T makes an image of an observation: it repeats
        each low-resolution pixel equally often and else changes nothing, so that the means over T y and over y agree. Only for
        inpainting theirs is larger, by the noise in the hidden pixels: a constant without gradient, about half of their share,
        through which the adaptive scaling gives such images a little less weight. A mean over y beside a KL that is a mean
        over z: against the ELBO, a y of fewer entries than z (super-resolution) weighs more by their ratio.
        """
        images = self._decode(latents)
        loss = images.new_empty(len(images))
        for rows, measurement in groups:
            residual = measurement.residual(images[rows]) / measurement.noise_std
            loss[rows] = 0.5 * residual.square().flatten(1).mean(1)
        return loss

    def _decode(self, latents: Tensor) -> Tensor:
        if not self.options.checkpoint_decoder:
            return self._codec.decode(latents).float()
        pieces = [checkpoint(self._codec.decode, piece, use_reentrant=False) for piece in latents.split(_DECODED_ROWS)]
        return torch.cat(pieces).float()

    def _draw_latent(self, mean: Tensor, logvar: Tensor, generator: torch.Generator) -> Tensor:
        return mean + (0.5 * logvar).exp() * self._normal(len(mean), mean.shape[1:], generator)

    def _moments(self, observation: Tensor, problem: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of q(z|y,c) under the trained adapter, float32."""
        mean, logvar = self._adapter(*adapter_arguments(observation, problem, self._restored, self._codec))
        return mean.float(), logvar.float()

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
        quality, divergence = defaultdict(list), []
        for images, label, index in self._pieces(split):
            noise = PhiloxNoise(0, f"evaluate/{split}", index).normal(self.suite.latent_shape, 0)
            for number, task in enumerate(self._tasks):
                measurement = task.measure(images, label, index, split_seed(split, 0))
                observation = adapter_observation(measurement, self._restored)
                inputs = adapter_arguments(observation, torch.full_like(index, number), self._restored, self._codec)
                mean, logvar = ema["adapter"](*inputs)
                latents = self._one_step(ema.get("flow", self._flow), mean + (0.5 * logvar).exp() * noise, label)
                error = (self._codec.decode(latents).clamp(-1, 1) - images).square().flatten(1).mean(1)
                quality[f"psnr/{task.name}"].append(10 * torch.log10(4 / error.clamp_min(1e-12)))
                divergence.append(self._kl(mean, logvar))
        result = {name: torch.cat(values).mean().item() for name, values in quality.items()}
        result["kl"] = torch.cat(divergence).mean().item()
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
        adaptive_scope: Literal["total", "flow"] = Field(
            "total",
            description="what the adaptive scaling divides: each sample's total loss, as in the paper, or each of its two flow "
            "terms by itself, the others left alone: a mean-flow loss has rare large values, which a total hides",
        )
        ema_target: bool = Field(
            True, description="L_obs through the EMA flow map; False: its gradient also reaches the flow map"
        )

    options: Options

    def __init__(self, *args: Any):
        super().__init__(*args)
        self.networks = {"flow": self._flow, "adapter": self._adapter}

    def loss(self, step: int, generator: torch.Generator, ema: Mapping[str, nn.Module]) -> tuple[Tensor, dict[str, Tensor]]:
        options, flow, share = self.options, self._flow, self.share
        positions = self._positions(generator)
        images, label = self._batches.load(positions)
        observation, problem, groups = self._measure(images, label, step, generator)
        x = self._encode(images, positions)
        mean, logvar = self._moments(observation, problem)
        posterior = self._draw_latent(mean, logvar, generator)
        target = ema["flow"] if options.ema_target else flow
        observed = self._observation_loss(self._one_step(target, posterior, label), groups)
        divergence = self._kl(mean, logvar)

        batch = share.whole(len(x))
        conditional = share.cut(torch.rand(batch, generator=generator) < options.alpha).to(self.device)
        prior = self._normal(len(x), x.shape[1:], generator)
        z = torch.where(conditional[:, None, None, None], posterior, prior)
        null, omega = self.suite.num_classes, options.guidance_omega
        flow_label = drop_labels(label, null, options.label_dropout, generator, share)
        t_fm = share.cut(draw_fm_time(batch, options, generator)).to(self.device)
        t, r = (share.cut(time).to(self.device) for time in draw_mean_flow_times(batch, options, generator))
        matching = flow_matching_loss(flow, x, z, t_fm, flow_label, null, omega)
        mean_flow = mean_flow_loss(flow, x, z, t, r, flow_label, null, omega, options.tangent)
        flow_loss = 0.5 * (matching + mean_flow)
        terms = {"flow": flow_loss, "observation": observed, "kl": divergence}
        if options.adaptive_scope == "flow":
            flow_loss = 0.5 * (self._scale(matching) + self._scale(mean_flow))

        total = options.flow_weight * flow_loss + options.observation_weight * observed + options.kl_weight * divergence
        loss = self._scale(total) if options.adaptive_scope == "total" else total
        return loss.mean(), {key: value.detach().mean() for key, value in terms.items()}


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
        images, label = self._batches.load(self._positions(generator))
        observation, problem, groups = self._measure(images, label, step, generator)
        mean, logvar = self._moments(observation, problem)
        z = self._draw_latent(mean, logvar, generator)
        observed = self._observation_loss(self._one_step(self._flow, z, label), groups)
        divergence = self._kl(mean, logvar)
        total = options.observation_weight * observed + options.kl_weight * divergence
        return self._scale(total).mean(), {"observation": observed.detach().mean(), "kl": divergence.detach().mean()}
