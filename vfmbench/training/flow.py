"""Pre-training of the shared backbone: flow matching, and mean flow together with it or after it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from vfmbench.domains import IMAGES
from vfmbench.interfaces import Suite
from vfmbench.metering import Meter
from vfmbench.metrics.frechet import frechet_distance
from vfmbench.models.flow import NetworkFlow
from vfmbench.models.networks import flow_network
from vfmbench.models.sit import expand_sit_size
from vfmbench.randomness import PhiloxNoise
from vfmbench.training.batches import Batch
from vfmbench.training.image_stage import ImageOptions, LatentStage
from vfmbench.training.mean_flow import (
    MeanFlowOptions,
    adaptive_scale,
    draw_fm_time,
    draw_mean_flow_times,
    drop_labels,
    flow_matching_loss,
    mean_flow_loss,
)
from vfmbench.training.stage import TrainingOptions
from vfmbench.weights.store import WeightStore


def sit_architecture(suite: Suite, architecture: Mapping[str, Any]) -> dict[str, Any]:
    """The architecture of a `SiT` with the suite's shapes filled in."""
    channels, height, _ = suite.latent_shape
    shapes = {"input_size": height, "in_channels": channels, "num_classes": suite.num_classes}
    return expand_sit_size({**shapes, **architecture})


class FlowStage(LatentStage):
    """u(x,t,t) by flow matching on a share of the batch and u(x,t,r) by mean flow on the rest.

    It starts from the stage `flow_matching` where the suite trains one, else from nothing. Its evaluation is in the suite's
    first feature space.
    """

    name = "flow"
    needs: ClassVar[tuple[str, ...]] = ("flow_matching",)
    judged_by = ("features",)

    class Options(ImageOptions, MeanFlowOptions):
        flow_matching_share: float = Field(0.5, ge=0, le=1, description="share of the batch at r = t")
        adaptive_power: float = Field(
            1.0,
            ge=0,
            description="p of the adaptive scaling of every sample's loss; without it (0) the minimum of flow matching is the "
            "mean of v given x_t, with it the mean leans towards samples that are easy",
        )

        first_gap: float = Field(1.0, gt=0, le=1, description="largest t - r of the mean-flow samples at the first step")
        gap_growth: float = Field(
            0.0, ge=0, le=1, description="share of the steps over which the largest t - r grows linearly from `first_gap` to 1"
        )

    options: Options

    def __init__(self, suite: Suite, options: TrainingOptions, weights: WeightStore, device: torch.device):
        super().__init__(suite, options, weights, device)
        self._architecture = sit_architecture(self.suite, self.options.architecture)
        network = flow_network(self.suite.latent_shape, self._architecture)
        if "flow_matching" in self.needed(self.suite):
            self.weights.load("flow_matching").fill(network, "flow")
        self.networks = {"flow": network.to(self.device)}

    @classmethod
    def check(cls, suite: Suite, options: TrainingOptions) -> None:
        with torch.device("meta"):
            flow_network(suite.latent_shape, sit_architecture(suite, options.architecture))

    def loss(self, batch: Batch, ema: Mapping[str, nn.Module]) -> tuple[Tensor, dict[str, Tensor]]:
        options, network = self.options, self.networks["flow"]
        x, label = self._latents(batch.positions)
        z = batch.normal(*x.shape[1:])
        null, omega = self.suite.num_classes, options.guidance_omega
        label = drop_labels(label, null, options.label_dropout, batch)
        # The first rows of the whole batch are for flow matching, the last for mean flow; a share has some of each.
        first = round(options.flow_matching_share * batch.whole)
        t = batch.cut(draw_fm_time(first, options, batch.generator))
        here = len(t)
        later, earlier = draw_mean_flow_times(batch.whole - first, options, batch.generator)
        times = torch.stack([later, torch.maximum(earlier, later - self._largest_gap(batch.step))], 1)
        t_later, r = batch.cut(torch.cat([times.new_zeros(first, 2), times]))[here:].unbind(1)
        losses, terms = [], {}
        if here:
            matching = flow_matching_loss(network, x[:here], z[:here], t, label[:here], null, omega)
            losses.append(matching)
            terms["flow_matching"] = matching.detach().sum() * batch.share.parts / first
        if here < len(x):
            mean_flow = mean_flow_loss(network, x[here:], z[here:], t_later, r, label[here:], null, omega, options.tangent)
            losses.append(mean_flow)
            terms["mean_flow"] = mean_flow.detach().sum() * batch.share.parts / (batch.whole - first)
        return adaptive_scale(torch.cat(losses), options.adaptive_power).mean(), terms

    def _largest_gap(self, step: int) -> float:
        """The bound on t - r. The target's variance grows with t - r, and du/dt is right only once shorter gaps are learnt."""
        options = self.options
        done = step / (options.gap_growth * options.steps) if options.gap_growth else 1.0
        return min(1.0, options.first_gap + (1 - options.first_gap) * done)

    @torch.no_grad()
    def evaluate(self, ema: Mapping[str, nn.Module], split: str, rows: int) -> dict[str, float]:
        """Frechet distance of class-conditional prior samples to the split, one step and 50 Euler steps, same labels.

        Raises MissingError without the weights of the suite's first feature space.
        """
        space_name = self.suite.feature_space_names[0]
        space = self.suite.feature_space(space_name, self.device)
        meter = Meter(self.device)
        flow = NetworkFlow(ema["flow"], self.suite.latent_shape, self.suite.num_classes, meter)
        truth, labels = [], []
        features: dict[str, list[Tensor]] = {"1": [], "50": []}
        classes: dict[str, list[Tensor]] = {"1": [], "50": []}
        for images, label, index in self._pieces(split, rows):
            truth.append(space.features(IMAGES.store(images)))
            labels.append(label.cpu())
            z = PhiloxNoise(0, f"flow/{split}", index).normal(self.suite.latent_shape, 0)
            for steps, latents in (("1", z - flow.average_velocity(z, 1.0, 0.0, label)), ("50", _euler(flow, z, label, 50))):
                decoded = IMAGES.store(self._codec.decode(latents))
                features[steps].append(space.features(decoded))
                predicted = space.classify(decoded)
                if predicted is not None:
                    classes[steps].append(predicted.cpu())
        result = {}
        for steps, found in features.items():
            distance = frechet_distance(torch.cat(truth).double(), torch.cat(found).double())[0]
            result[f"fid@{space_name}/steps={steps}"] = distance
            if classes[steps]:
                right = torch.cat(classes[steps]) == torch.cat(labels)
                result[f"agreement@{space_name}/steps={steps}"] = right.float().mean().item()
        return result

    def manifest(self) -> dict[str, Any]:
        return {"architecture": {"flow": self._architecture}}


class FlowMatchingStage(FlowStage):
    """u(x,t,t) alone, from nothing: a backbone that mean flow starts from."""

    name = "flow_matching"
    needs: ClassVar[tuple[str, ...]] = ()

    class Options(FlowStage.Options):
        flow_matching_share: float = Field(1.0, ge=1, le=1, description="1: there is no mean-flow term")

    options: Options


def _euler(flow: NetworkFlow, x: Tensor, label: Tensor, steps: int) -> Tensor:
    for step in range(steps):
        x = x - flow.velocity(x, 1 - step / steps, label) / steps
    return x
