"""Networks as the harness sees them: the flow, the codec, and what metrics look through."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from torch import Tensor, nn

from vfmbench.domains import Shape
from vfmbench.measurement import Measurement

Vjp = Callable[[Tensor], Tensor]
"""g -> (df/dx)^T g of a pass through a network f. May be called once."""


class Codec(Protocol):
    """Between images in [-1, 1] and the latents that a flow lives on; all calls are differentiable, and none clamps."""

    @property
    def has_encoder(self) -> bool: ...

    def encode(self, images: Tensor) -> Tensor:
        """[B,C,H,W] -> [B,c,h,w], deterministic. Raises ValueError without an encoder, as does `encode_with_vjp`."""

    def encode_with_vjp(self, images: Tensor) -> tuple[Tensor, Vjp]:
        """The latent, and the map g -> (dE/dx)^T g."""

    def decode(self, latents: Tensor) -> Tensor:
        """[B,c,h,w] -> [B,C,H,W]."""

    def decode_with_vjp(self, latents: Tensor) -> tuple[Tensor, Vjp]:
        """The image, and the map g -> (dD/dz)^T g."""


class IdentityCodec:
    """Pixel space: the latent is the image, and nothing is counted."""

    has_encoder = True

    def encode(self, images: Tensor) -> Tensor:
        return images

    def encode_with_vjp(self, images: Tensor) -> tuple[Tensor, Vjp]:
        return images, lambda cotangent: cotangent

    def decode(self, latents: Tensor) -> Tensor:
        return latents

    def decode_with_vjp(self, latents: Tensor) -> tuple[Tensor, Vjp]:
        return latents, lambda cotangent: cotangent


class FlowModel(Protocol):
    """A flow from noise to latents: its velocity and, for flow maps, its average velocity. Evaluations are counted.

    Attributes:
        network: u(x, t, r, label), frozen, with t and r of shape [B]; its velocity is u at r = t.
        latent_shape: (c, h, w).
        null_label: label of the unconditional branch; None if the network has no classes.
    """

    network: nn.Module
    latent_shape: Shape
    null_label: int | None

    def relabelled(self, measurement: Measurement, *, null: bool) -> Measurement:
        """The measurement with the labels that the network is to be given: the images' own, or the null class for all.

        Raises UserError for an image whose label the network does not know.
        """

    def average_velocity(self, x: Tensor, t: float, r: float, label: Tensor) -> Tensor:
        """u(x, t, r), the average velocity over [r, t]: [B,c,h,w] -> [B,c,h,w]."""

    def velocity(self, x: Tensor, t: float, label: Tensor, guidance_scale: float = 1.0) -> Tensor:
        """v(x, t) = v_null + scale (v_label - v_null); scale 1 runs the labelled branch only."""

    def velocity_with_vjp(self, x: Tensor, t: float, label: Tensor, guidance_scale: float = 1.0) -> tuple[Tensor, Vjp]:
        """v(x, t), and the map g -> (dv/dx)^T g through all guidance branches."""


class FeatureSpace(Protocol):
    """An image embedding that metrics are computed in; its name stands in the metric's column, e.g. `fid@digitnet`.

    `settings` says what the features are, and opens the settings of every metric in this space.
    """

    name: str
    weights_sha256: str
    settings: str

    def features(self, images: Tensor) -> Tensor:
        """uint8 [N,C,H,W] -> float32 [N,d]."""

    def classify(self, images: Tensor) -> Tensor | None:
        """Predicted class, int64 [N], or None if the space has no classifier."""


class PerceptualDistance(Protocol):
    """A learned distance between two images; its name is the metric's. `settings` says what it is."""

    name: str
    weights_sha256: str
    settings: str

    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        """Float32 images [N,C,H,W] in [-1, 1], row by row -> float32 [N]."""
