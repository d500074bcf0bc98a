"""Training stages of the noise adapter: jointly with the flow map (VFM), on a frozen one, or with a map that no data hold.

Each is a choice of networks and terms: `vfmbench.methods.terms`, `vfmbench.methods.objective`.
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

from vfmbench.domains import IMAGES
from vfmbench.interfaces import Suite, Task
from vfmbench.measurement import Measurement
from vfmbench.methods.adapter import adapter_arguments, adapter_observation, expand_adapter_size
from vfmbench.methods.objective import Objective, ScalingOptions
from vfmbench.methods.point_adapter import adapter_network
from vfmbench.methods.terms import CoupledFlow, Coupling, Divergence, GuidedFlow, Observation, Term, divergence
from vfmbench.models.networks import flow_network
from vfmbench.options import dump
from vfmbench.randomness import PhiloxNoise, split_seed
from vfmbench.training.batches import Batch
from vfmbench.training.image_stage import ImageOptions, ImageStage
from vfmbench.training.mean_flow import Reduction, one_step
from vfmbench.training.points import exact_metrics
from vfmbench.training.stage import TrainingOptions
from vfmbench.weights.store import WeightStore

# Latents that are decoded at a time where activations are not kept: a decoder to 256x256 pixels holds gigabytes for each.
_DECODED_ROWS = 4


class AdapterOptions(ImageOptions, ScalingOptions, Observation.Options, Divergence.Options):
    """Options of every stage with an adapter."""

    problems: tuple[str, ...] = Field((), description="tasks drawn uniformly per image; empty: all of the suite")
    checkpoint_decoder: bool = Field(
        False,
        exclude=True,
        description=f"decode {_DECODED_ROWS} latents at a time and compute activations again for the gradient: less memory",
    )


class PointOptions(AdapterOptions):
    """Points have sums as in the equations, and the scaling of the authors' code for them."""

    reduction: Reduction = "sum"
    adaptive_scope: Literal["row", "term", "batch"] = "batch"


class AdapterStage(ImageStage):
    """Measures images or points under mixed problems, draws z ~ q(z|y,c), and takes the objective's loss.

    A subclass names its `terms`, in the order of their sum, and has the options of all of them. The flow map is trained where
    `trains_flow`, from the weights of the first of `needs`; else it is the suite's own, frozen.
    """

    Options: ClassVar[type[AdapterOptions]] = AdapterOptions
    terms: ClassVar[tuple[type[Term], ...]] = (Observation, Divergence)
    trains_flow: ClassVar[bool] = True
    options: AdapterOptions

    def __init_subclass__(cls, **keywords: Any):
        super().__init_subclass__(**keywords)
        for term in cls.terms:
            if not issubclass(cls.Options, term.Options):
                raise TypeError(f"{cls.__name__}.Options must inherit from {term.__name__}.Options")

    def __init__(self, suite: Suite, options: TrainingOptions, weights: WeightStore, device: torch.device):
        super().__init__(suite, options, weights, device)
        self._tasks = self._problem_tasks(self.suite, self.options)
        adapter = self._adapter_architecture(self.suite, self.options)
        self._architecture = {"adapter": adapter}
        self._restored = adapter.get("restored", False)
        self._adapter = adapter_network(self.suite.latent_shape, adapter).to(self.device)
        self._flow = self._first_flow().to(self.device)
        self.networks = {"flow": self._flow, "adapter": self._adapter} if self.trains_flow else {"adapter": self._adapter}
        self._objective = Objective([term(self.options) for term in self.terms], self.options)

    def _first_flow(self) -> nn.Module:
        if not self.trains_flow:
            return self.suite.backbone(self.device).flow.network
        start = self.weights.load(self.needs[0])
        self._architecture["flow"] = start.entry["architecture"]["flow"]
        flow = flow_network(self.suite.latent_shape, self._architecture["flow"])
        start.fill(flow, "flow")
        return flow

    @classmethod
    def needed(cls, suite: Suite) -> tuple[str, ...]:
        """The suite's own codec, and the flow map, which may be a formula."""
        return (*(["codec"] if "codec" in suite.training else []), *cls.needs)

    @classmethod
    def check(cls, suite: Suite, options: TrainingOptions) -> None:
        assert isinstance(options, AdapterOptions)
        cls._problem_tasks(suite, options)
        with torch.device("meta"):
            adapter_network(suite.latent_shape, cls._adapter_architecture(suite, options))

    @classmethod
    def by_rows(cls, options: TrainingOptions) -> bool:
        assert isinstance(options, AdapterOptions)
        return options.adaptive_scope != "batch"

    @staticmethod
    def _problem_tasks(suite: Suite, options: AdapterOptions) -> list[Task]:
        return [suite.task(name, {}) for name in options.problems or tuple(suite.task_names)]

    @classmethod
    def _adapter_architecture(cls, suite: Suite, options: AdapterOptions) -> dict[str, Any]:
        own = options.architecture.get("adapter", {})
        if "kind" in own:
            return dict(own)
        if suite.domain is not IMAGES:
            raise ValueError("the adapter of points needs a kind, mlp or affine")
        channels, size, _ = suite.image_shape
        latent_channels, latent_size, _ = suite.latent_shape
        shapes = {
            "image_size": size,
            "image_channels": channels,
            "latent_size": latent_size,
            "latent_channels": latent_channels,
            "num_problems": len(cls._problem_tasks(suite, options)),
        }
        return expand_adapter_size({**shapes, **own})

    def loss(self, batch: Batch, ema: Mapping[str, nn.Module]) -> tuple[Tensor, dict[str, Tensor]]:
        images, label = self._loader.load(batch.positions)
        observation, problem, measurements = self._measure(images, label, batch)
        mean, logvar = self._adapter(*adapter_arguments(observation, problem, self._restored, self._codec))
        mean, logvar = mean.float(), logvar.float()
        coupling = Coupling(
            batch=batch,
            encode=lambda: self._encode(images, batch.positions),
            label=label,
            measurements=measurements,
            mean=mean,
            logvar=logvar,
            z=mean + (0.5 * logvar).exp() * batch.normal(*mean.shape[1:]),
            flow=self._flow,
            target=self._target(ema),
            decode=self._decode,
            null_label=self.suite.num_classes,
        )
        return self._objective(coupling)

    def _target(self, ema: Mapping[str, nn.Module]) -> nn.Module:
        """The flow map of the observation term."""
        return self._flow

    def _measure(self, images: Tensor, label: Tensor, batch: Batch) -> tuple[Tensor, Tensor, list[tuple[Tensor, Measurement]]]:
        """Measures every row under a problem drawn uniformly, with operators and noise new at every step.

        Returns what the adapter observes [B,.,H,W], problem ids [B], and per problem its rows and measurement.
        """
        problem = torch.zeros_like(label)
        if len(self._tasks) > 1:
            problem = batch.cut(torch.randint(len(self._tasks), (batch.whole,), generator=batch.generator))
        index, seed = batch.index, split_seed("train", self.options.seed)
        observed: list[Tensor] = []
        groups: list[tuple[Tensor, Measurement]] = []
        for number, task in enumerate(self._tasks):
            rows = (problem == number).nonzero()[:, 0]
            if len(rows):
                measurement = task.measure(images[rows], label[rows], index[rows], seed)
                observed.append(adapter_observation(measurement, self._restored))
                groups.append((rows, measurement))
        order = torch.cat([rows for rows, _ in groups]).argsort()
        return torch.cat(observed)[order], problem, groups

    def _decode(self, latents: Tensor) -> Tensor:
        if not self.options.checkpoint_decoder:
            return self._codec.decode(latents).float()
        pieces = [checkpoint(self._codec.decode, piece, use_reentrant=False) for piece in latents.split(_DECODED_ROWS)]
        return torch.cat(pieces).float()

    @torch.no_grad()
    def evaluate(self, ema: Mapping[str, nn.Module], split: str, rows: int) -> dict[str, float]:
        """One-step samples of the split: against the exact posterior where it is known, else against the true images."""
        flow, adapter = ema.get("flow", self._flow), ema["adapter"]
        if self.suite.prior is not None:
            limit = self.options.validate_images
            return exact_metrics(self.suite, self._tasks[0], flow, adapter, split, limit, self.device)
        result = self._restoration(flow, adapter, split, rows)
        if not all(math.isfinite(value) for value in result.values()):
            raise FloatingPointError(f"Stage {self.name} produced values that are not finite.")
        return result

    def _restoration(self, flow: nn.Module, adapter: nn.Module, split: str, rows: int) -> dict[str, float]:
        """PSNR (dB) of one one-step sample for each image of the split, and the mean KL per entry, by problem."""
        quality, kl = defaultdict(list), []
        for images, label, index in self._pieces(split, rows):
            noise = PhiloxNoise(0, f"evaluate/{split}", index).normal(self.suite.latent_shape, 0)
            for number, task in enumerate(self._tasks):
                measurement = task.measure(images, label, index, split_seed(split, 0))
                observation = adapter_observation(measurement, self._restored)
                inputs = adapter_arguments(observation, torch.full_like(index, number), self._restored, self._codec)
                mean, logvar = adapter(*inputs)
                latents = one_step(flow, mean + (0.5 * logvar).exp() * noise, label)
                error = (self._codec.decode(latents).clamp(-1, 1) - images).square().flatten(1).mean(1)
                quality[f"psnr/{task.name}"].append(10 * torch.log10(4 / error.clamp_min(1e-12)))
                kl.append(divergence(mean, logvar, "mean"))
        return {name: torch.cat(values).mean().item() for name, values in {**quality, "kl": kl}.items()}

    def manifest(self) -> dict[str, Any]:
        return {
            "architecture": self._architecture,
            "problems": [task.name for task in self._tasks],
            "problem_options": {task.name: dump(task.options) for task in self._tasks},
        }


class JointOptions(AdapterOptions):
    """Options of a joint training."""

    ema_target: bool = Field(True, description="L_obs through the EMA flow map; False: its gradient also reaches the flow map")


class VFMStage(AdapterStage):
    """Flow map and adapter: L = flow + observation + KL."""

    name = "vfm"
    needs = ("flow",)
    terms: ClassVar[tuple[type[Term], ...]] = (GuidedFlow, Observation, Divergence)

    class Options(JointOptions, GuidedFlow.Options):
        pass

    options: JointOptions

    def _target(self, ema: Mapping[str, nn.Module]) -> nn.Module:
        return ema["flow"] if self.options.ema_target else self._flow


class PointVFMStage(VFMStage):
    """The same on points, from the flow-matching network."""

    needs = ("flow_matching",)
    terms = (CoupledFlow, Observation, Divergence)

    class Options(PointOptions, JointOptions, CoupledFlow.Options):
        pass


class FrozenAdapterStage(AdapterStage):
    """The adapter alone, on the pre-trained flow map: observation + KL."""

    name = "frozen_adapter"
    needs = ("flow",)
    trains_flow = False


class PointFrozenAdapterStage(FrozenAdapterStage):
    """The same on points."""

    Options = PointOptions


class PointUnconstrainedStage(AdapterStage):
    """Flow map and adapter on observation and KL terms alone: nothing holds the map to the data."""

    name = "unconstrained"
    needs = ("flow_matching",)
    Options = PointOptions
