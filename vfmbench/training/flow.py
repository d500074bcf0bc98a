"""Pre-training of the shared backbone: flow matching, then or together with mean flow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from vfmbench.interfaces import Suite
from vfmbench.metrics.frechet import frechet_distance
from vfmbench.models.flow import FlowModel
from vfmbench.models.images import to_uint8
from vfmbench.models.metering import Meter
from vfmbench.models.sit import SiT
from vfmbench.randomness import PhiloxNoise
from vfmbench.training.mean_flow import (
    MeanFlowOptions,
    adaptive_scale,
    draw_fm_time,
    draw_mean_flow_times,
    drop_labels,
    flow_matching_loss,
    mean_flow_loss,
)
from vfmbench.training.stage import Batches, Stage, TrainingOptions


def sit_architecture(suite: Suite, architecture: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword arguments of `SiT` with the suite's shapes filled in."""
    channels, height, _ = suite.latent_shape
    return {"input_size": height, "in_channels": channels, "num_classes": suite.num_classes, **architecture}


class FlowStage(Stage):
    """u(x,t,t) by flow matching on a share of the batch and u(x,t,r) by mean flow on the rest, from nothing."""

    name = "flow"
    needs = ("features",)

    class Options(TrainingOptions, MeanFlowOptions):
        flow_matching_share: float = Field(0.5, ge=0, le=1, description="share of the batch at r = t")

    options: Options

    def __init__(self, *args: Any):
        super().__init__(*args)
        self._architecture = sit_architecture(self.suite, self.options.architecture)
        self.networks = {"flow": SiT(**self._architecture).to(self.device)}
        self._batches = Batches(self.suite.dataset("train"), self.device)

    @classmethod
    def check(cls, suite: Suite, options: Options) -> None:
        SiT(**sit_architecture(suite, options.architecture))

    def loss(self, step: int, generator: torch.Generator, ema: Mapping[str, nn.Module]) -> tuple[Tensor, dict[str, Tensor]]:
        options, network = self.options, self.networks["flow"]
        x, label = self._batches.draw(options.batch_size, generator)
        z = torch.randn(x.shape, generator=generator).to(self.device)
        null = self.suite.num_classes
        label = drop_labels(label, null, options.label_dropout, generator)
        split = round(options.flow_matching_share * len(x))
        omega = options.guidance_omega
        t = draw_fm_time(split, options, generator).to(self.device)
        flow_matching = flow_matching_loss(network, x[:split], z[:split], t, label[:split], null, omega)
        t, r = (time.to(self.device) for time in draw_mean_flow_times(len(x) - split, options, generator))
        mean_flow = mean_flow_loss(network, x[split:], z[split:], t, r, label[split:], null, omega)
        loss = adaptive_scale(torch.cat([flow_matching, mean_flow])).mean()
        return loss, {"flow_matching": flow_matching.detach().mean(), "mean_flow": mean_flow.detach().mean()}

    @torch.no_grad()
    def evaluate(self, ema: Mapping[str, nn.Module], split: str) -> dict[str, float]:
        """Frechet distance of class-conditional prior samples to the split, one step and 50 Euler steps, same labels."""
        space_name = self.suite.feature_space_names[0]
        space = self.suite.feature_space(space_name, self.device)
        dataset = self.suite.dataset(split)
        images, label = dataset.load(range(len(dataset)))
        label = label.to(self.device)
        z = PhiloxNoise(0, f"flow/{split}", torch.arange(len(label), device=self.device)).normal(self.suite.latent_shape, 0)
        meter = Meter(self.device)
        flow = FlowModel(ema["flow"], self.suite.latent_shape, self.suite.num_classes, meter)
        samples = {"1": z - flow.average_velocity(z, 1.0, 0.0, label)}
        x, steps = z, 50
        for step in range(steps):
            x = x - flow.velocity(x, 1 - step / steps, label) / steps
        samples[str(steps)] = x
        truth = space.features(images).double()
        result = {}
        for key, latents in samples.items():
            decoded = to_uint8(self.suite.codec(self.device, meter).decode(latents))
            result[f"fid@{space_name}/steps={key}"] = frechet_distance(truth, space.features(decoded).double())[0]
            predicted = space.classify(decoded)
            if predicted is not None:
                result[f"agreement@{space_name}/steps={key}"] = (predicted == label.cpu()).float().mean().item()
        return result

    def manifest(self) -> dict[str, Any]:
        return {"architecture": {"flow": self._architecture}}
