"""Samplers with a noise adapter: variational flow maps, the frozen adapter, and the map that nothing holds to the data.

Source: Variational Flow Maps (arXiv 2603.07276), algorithm 1: z ~ q(z|y,c), then K steps of the flow map.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from vfmbench.errors import MissingError, UserError
from vfmbench.interfaces import Backbone, FlowModel, Sampler, Suite, Task
from vfmbench.measurement import Measurement, NoiseSource, Samples
from vfmbench.methods.adapter import adapter_arguments, adapter_observation
from vfmbench.methods.point_adapter import adapter_network
from vfmbench.models.compilation import prepared
from vfmbench.models.flow import NetworkFlow
from vfmbench.models.networks import flow_network
from vfmbench.options import ClassLabel, SamplerOptions
from vfmbench.weights.store import Weights


class AdapterSampler(Sampler):
    """Draws z from the adapter and runs the flow map over a uniform grid from t = 1 to 0."""

    class Options(SamplerOptions):
        steps: int = Field(1, ge=1, le=1000, description="evaluations of the flow map per sample")
        projection: bool = Field(
            False, description="glue the observation into the result (VFM appendix B.2.3); linear tasks only"
        )
        label: ClassLabel = Field("true", description="class that the flow map is given; null: none")

    options: Options

    def __init__(self, suite: Suite, options: Options, backbone: Backbone):
        super().__init__(suite, options, backbone)
        adapter_file = backbone.weights.load(self.weights[0])
        self._check_codec(adapter_file)
        self._flow = self._flow_map(adapter_file)
        self._codec = backbone.codec
        self._problems: list[str] = adapter_file.entry["problems"]
        architecture = adapter_file.entry["architecture"]["adapter"]
        self._restored = architecture.get("restored", False)
        adapter = adapter_network(suite.latent_shape, architecture)
        adapter_file.fill(adapter, "adapter")
        self._adapter = prepared(adapter.eval().requires_grad_(False).to(backbone.device), backbone.execution)

    def _check_codec(self, adapter_file: Weights) -> None:
        """Raises MissingError if the adapter was trained on the latents of another codec."""
        trained_on = adapter_file.entry.get("inputs", {}).get("codec weights")
        if trained_on not in (None, self.suite.codec_sha256()):
            raise MissingError(
                f"The weights {self.weights[0]!r} were trained on another codec ({trained_on[:12]}...) than this one. "
                f"{self.backbone.weights.hint}"
            )

    def _flow_map(self, adapter_file: Weights) -> FlowModel:
        """The map that was trained with the adapter."""
        shape, backbone = self.suite.latent_shape, self.backbone
        network = flow_network(shape, adapter_file.entry["architecture"]["flow"])
        adapter_file.fill(network, "flow")
        network = prepared(network.to(backbone.device), backbone.execution)
        return NetworkFlow(network, shape, self.suite.num_classes or None, backbone.meter)

    @classmethod
    def supports(cls, task: Task, suite: Suite) -> tuple[bool, str]:
        known = suite.weights.entry(cls.weights[0])["problem_options"]
        if task.condition not in known:
            return False, f"its adapter was not trained on the problem {task.condition!r}; it knows {', '.join(known)}"
        trained, here = known[task.condition], task.options.model_dump(mode="json")
        changed = [f"{key} {trained.get(key)} (here {here[key]})" for key in here if here[key] != trained.get(key)]
        return True, f"its adapter was trained on {task.condition} with {', '.join(changed)}" if changed else ""

    def sample(self, measurement: Measurement, num_samples: int, noise: NoiseSource) -> Samples:
        measurement = self._flow.relabelled(measurement, null=self.options.label == "null")
        mean, logvar = self._posterior_noise(measurement)
        z = mean.repeat_interleave(num_samples, 0)
        z = z + (0.5 * logvar).exp().repeat_interleave(num_samples, 0) * noise.normal(z.shape[1:], draw=0)
        x = self._transport(z, measurement.label.repeat_interleave(num_samples, 0))
        images = self._codec.decode(x)
        if self.options.projection:
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
        steps = self.options.steps
        for step in range(steps):
            t, r = 1 - step / steps, 1 - (step + 1) / steps
            x = x - (t - r) * self._flow.average_velocity(x, t, r, label)
        return x

    def _project(self, images: Tensor, measurement: Measurement) -> Tensor:
        """D(E(x + T (y - A x))) on observed entries: agrees with the observation before it passes the codec once more."""
        operator = measurement.operator
        if not operator.linear:
            raise UserError(f"method.projection: {measurement.condition} is not linear; leave the projection out.")
        return self._codec.decode(self._codec.encode(images - operator.to_image(measurement.residual(images))))

    def _posterior_noise(self, measurement: Measurement) -> tuple[Tensor, Tensor]:
        observation = adapter_observation(measurement, self._restored)
        problem = torch.full_like(measurement.label, self._problems.index(measurement.condition))
        inputs = adapter_arguments(observation, problem, self._restored, self._codec)
        with torch.no_grad(), self.meter.measure("adapter_forwards", len(observation)):
            return self._adapter(*inputs)


class VFM(AdapterSampler):
    """Flow map and adapter trained jointly."""

    weights = ("vfm",)


class FrozenAdapter(AdapterSampler):
    """The adapter trained alone, on the pre-trained flow map."""

    weights = ("frozen_adapter", "flow")

    def _flow_map(self, adapter_file: Weights) -> FlowModel:
        """The suite's own flow. Raises MissingError if the adapter was trained on another."""
        trained_on, here = adapter_file.entry["inputs"]["flow weights"], self.backbone.weights.sha256("flow")
        if trained_on != here:
            raise MissingError(
                f"The adapter {self.weights[0]!r} was trained on another flow map ({trained_on[:12]}...) than this one "
                f"({here[:12]}...). {self.backbone.weights.hint}"
            )
        return self.backbone.flow


class Unconstrained(AdapterSampler):
    """Flow map and adapter trained on the observation and KL terms alone, without a data term; points only."""

    weights = ("unconstrained",)
