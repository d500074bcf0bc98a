"""A network seen as a velocity field and as a flow map, in this project's time convention (t = 1 is noise)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from vfmbench.errors import UserError
from vfmbench.measurement import Measurement
from vfmbench.metering import Meter


class NetworkFlow:
    """Wraps a network u(x, t, r, label) and counts its evaluations, each guidance branch separately; a
    `vfmbench.interfaces.FlowModel`.

    Args:
        network: frozen by this class; called as `network(x, t, r, label)` with t and r of shape [B].
        latent_shape: (c, h, w).
        null_label: the label of the unconditional branch; None if the network has no classes.
        meter: where evaluations are counted.
    """

    def __init__(self, network: nn.Module, latent_shape: tuple[int, int, int], null_label: int | None, meter: Meter):
        self.network = network.eval().requires_grad_(False)
        self.latent_shape, self.null_label, self.meter = latent_shape, null_label, meter

    def relabelled(self, measurement: Measurement, *, null: bool) -> Measurement:
        """The measurement with the labels that the network is to be given: the images' own, or the null class for all.

        Raises UserError for an image whose label the network does not know. A network without classes ignores labels.
        """
        if self.null_label is None:
            return measurement
        if null:
            return replace(measurement, label=torch.full_like(measurement.label, self.null_label))
        unknown = (measurement.label < 0) | (measurement.label >= self.null_label)
        if unknown.any():
            row = int(unknown.nonzero()[0])
            raise UserError(
                f"Image {int(measurement.index[row])} has the class label {int(measurement.label[row])}; this network's "
                f"classes are 0 to {self.null_label - 1}; give labelled data or method.label=null."
            )
        return measurement

    def average_velocity(self, x: Tensor, t: float, r: float, label: Tensor) -> Tensor:
        """u(x, t, r), the average velocity over [r, t]: [B,c,h,w] -> [B,c,h,w]."""
        with torch.no_grad(), self.meter.measure("network_forwards", len(x)):
            return self.network(x, x.new_full((len(x),), t), x.new_full((len(x),), r), label)

    def velocity(self, x: Tensor, t: float, label: Tensor, guidance_scale: float = 1.0) -> Tensor:
        """v(x, t) = v_null + scale (v_label - v_null), both branches in one batch; scale 1 runs the labelled one only."""
        x_in, time, labels = self._branches(x, t, label, guidance_scale)
        with torch.no_grad(), self.meter.measure("network_forwards", len(x_in)):
            return self._combine(self.network(x_in, time, time, labels), guidance_scale)

    def velocity_with_vjp(
        self, x: Tensor, t: float, label: Tensor, guidance_scale: float = 1.0
    ) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """v(x, t) and the map g -> (dv/dx)^T g through all guidance branches. The map may be called once."""
        with torch.enable_grad():
            leaf = x.detach().requires_grad_(True)
            x_in, time, labels = self._branches(leaf, t, label, guidance_scale)
            with self.meter.measure("network_forwards", len(x_in)):
                velocity = self._combine(self.network(x_in, time, time, labels), guidance_scale)

        def vjp(cotangent: Tensor) -> Tensor:
            with self.meter.measure("network_vjps", len(x_in)):
                return torch.autograd.grad(velocity, leaf, cotangent)[0]

        return velocity.detach(), vjp

    def _branches(self, x: Tensor, t: float, label: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
        if scale != 1.0:
            if self.null_label is None:
                raise ValueError("this flow model has no null label, so classifier-free guidance needs guidance_scale = 1")
            x, label = torch.cat([x, x]), torch.cat([label, torch.full_like(label, self.null_label)])
        return x, x.new_full((len(x),), t), label

    @staticmethod
    def _combine(velocity: Tensor, scale: float) -> Tensor:
        if scale == 1.0:
            return velocity
        conditional, unconditional = velocity.chunk(2)
        return unconditional + scale * (conditional - unconditional)
