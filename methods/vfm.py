"""Samplers with a noise adapter: variational flow maps, the frozen adapter, and the map that nothing holds to the data.

Source: Variational Flow Maps (arXiv 2603.07276), algorithm 1: z ~ q(z|y,c), then K steps of the flow map.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from vfmbench.errors import MissingError, UserError
from vfmbench.interfaces import Suite, Task
from vfmbench.measurement import Measurement, NoiseSource, Samples
from vfmbench.methods.adapter import adapter_arguments, adapter_observation
from vfmbench.methods.point_adapter import adapter_network
from vfmbench.models.execution import execution_of
from vfmbench.models.flow import FlowModel
from vfmbench.models.metering import Meter
from vfmbench.models.networks import flow_network
from vfmbench.options import ClassLabel, SamplerOptions
from vfmbench.weights.store import Weights


class AdapterSampler:
    """Draws z from the adapter and runs the flow map over a uniform grid from t = 1 to 0."""

    class Options(SamplerOptions):
        steps: int = Field(1, ge=1, le=1000, description="evaluations of the flow map per sample")
        projection: bool = Field(
            False, description="glue the observation into the result (VFM appendix B.2.3); linear tasks only"
        )
        label: ClassLabel = Field("true", description="class that the flow map is given; null: none")

    weights: ClassVar[tuple[str, ...]]

    def __init__(self, suite: Suite, options: Options, device: torch.device):
        self._steps, self._projection, self._null = options.steps, options.projection, options.label == "null"
        adapter_file = suite.weights.load(self.weights[0])
        self._check_codec(suite, adapter_file)
        self._flow = self._flow_map(suite, adapter_file, device)
        self.meter = self._flow.meter
        self._codec = suite.codec(device, self.meter)
        self._problems: list[str] = adapter_file.entry["problems"]
        architecture = adapter_file.entry["architecture"]["adapter"]
        self._restored = architecture.get("restored", False)
        adapter = adapter_network(suite.latent_shape, architecture)
        adapter_file.fill(adapter, "adapter")
        self._adapter = execution_of(suite).prepare(adapter.eval().requires_grad_(False).to(device))

    def _check_codec(self, suite: Suite, adapter_file: Weights) -> None:
        """Raises MissingError if the adapter was trained on the latents of another codec."""
        trained_on = adapter_file.entry.get("inputs", {}).get("codec weights")
        if trained_on not in (None, suite.codec_sha256()):
            raise MissingError(
                f"The weights {self.weights[0]!r} were trained on another codec ({trained_on[:12]}...) than this one. "
                f"{suite.weights.hint}"
            )

    def _flow_map(self, suite: Suite, adapter_file: Weights, device: torch.device) -> FlowModel:
        """The map that was trained with the adapter."""
        network = flow_network(suite.latent_shape, adapter_file.entry["architecture"]["flow"])
        adapter_file.fill(network, "flow")
        network = execution_of(suite).prepare(network.to(device))
        return FlowModel(network, suite.latent_shape, suite.num_classes or None, Meter(device))

    @classmethod
    def supports(cls, task: Task, suite: Suite) -> tuple[bool, str]:
        known = suite.weights.entry(cls.weights[0])["problem_options"]
        if task.problem not in known:
            return False, f"its adapter was not trained on the problem {task.problem!r}; it knows {', '.join(known)}"
        trained, here = known[task.problem], task.options.model_dump(mode="json")
        changed = [f"{key} {trained.get(key)} (here {here[key]})" for key in here if here[key] != trained.get(key)]
        return True, f"its adapter was trained on {task.problem} with {', '.join(changed)}" if changed else ""

    def sample(self, measurement: Measurement, num_samples: int, noise: NoiseSource) -> Samples:
        measurement = self._flow.relabelled(measurement, null=self._null)
        mean, logvar = self._posterior_noise(measurement)
        z = mean.repeat_interleave(num_samples, 0)
        z = z + (0.5 * logvar).exp().repeat_interleave(num_samples, 0) * noise.normal(z.shape[1:], draw=0)
        x = self._transport(z, measurement.label.repeat_interleave(num_samples, 0))
        images = self._codec.decode(x)
        if self._projection:
            images = self._project(images, measurement.repeat(num_samples))
        images, latents, source = (part.unflatten(0, (len(measurement), num_samples)) for part in (images, x, z))
        return Samples(images, latents, source)

    def sample_prior(self, noise: NoiseSource) -> Tensor:
        """The flow map's own samples from N(0, I), of the null class where there are classes: [rows,C,H,W]."""
        z = noise.normal(self._flow.latent_shape, draw=0)
        label = torch.full((len(z),), self._flow.null_label or 0, dtype=torch.int64, device=z.device)
        return self._codec.decode(self._transport(z, label))

    def _transport(self, z: Tensor, label: Tensor) -> Tensor:
        """The flow map over a uniform grid of times from 1 to 0."""
        x = z
        for step in range(self._steps):
            t, r = 1 - step / self._steps, 1 - (step + 1) / self._steps
            x = x - (t - r) * self._flow.average_velocity(x, t, r, label)
        return x

    def _project(self, images: Tensor, measurement: Measurement) -> Tensor:
        """D(E(x + T (y - A x))) on observed entries: agrees with the observation before it passes the codec once more."""
        operator = measurement.operator
        if not operator.linear:
            raise UserError(f"method.projection: {measurement.problem} is not linear; leave the projection out.")
        return self._codec.decode(self._codec.encode(images - operator.to_image(measurement.residual(images))))

    def _posterior_noise(self, measurement: Measurement) -> tuple[Tensor, Tensor]:
        observation = adapter_observation(measurement, self._restored)
        problem = torch.full_like(measurement.label, self._problems.index(measurement.problem))
        inputs = adapter_arguments(observation, problem, self._restored, self._codec)
        with torch.no_grad(), self.meter.measure("adapter_forwards", len(observation)):
            return self._adapter(*inputs)


class VFM(AdapterSampler):
    """Flow map and adapter trained jointly."""

    weights = ("vfm",)


class FrozenAdapter(AdapterSampler):
    """The adapter trained alone, on the pre-trained flow map."""

    weights = ("frozen_adapter", "flow")

    def _flow_map(self, suite: Suite, adapter_file: Weights, device: torch.device) -> FlowModel:
        """The suite's own flow. Raises MissingError if the adapter was trained on another."""
        trained_on, here = adapter_file.entry["inputs"]["flow weights"], suite.weights.sha256("flow")
        if trained_on != here:
            raise MissingError(
                f"The adapter {self.weights[0]!r} was trained on another flow map ({trained_on[:12]}...) than this one "
                f"({here[:12]}...). {suite.weights.hint}"
            )
        return suite.flow(device)


class Unconstrained(AdapterSampler):
    """Flow map and adapter trained on the observation and KL terms alone, without a data term; points only."""

    weights = ("unconstrained",)
