"""Kinds of codec that a suite's file may name: where their weights are, and how they are read."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cache

from vfmbench.interfaces import Backbone, Codec, IdentityCodec
from vfmbench.models.patch_autoencoder import patch_autoencoder, patch_codec
from vfmbench.models.sd_vae import autoencoder, load_autoencoder, sd_vae_codec
from vfmbench.weights.external import ExternalPaths, external_sha256, load_external
from vfmbench.weights.store import WeightStore


class CodecKind(ABC):
    """A kind of codec; one instance is registered under its name.

    >>> class Mine(CodecKind):
    ...     def load(self, weights, paths, backbone): return MyCodec(backbone.meter)
    ...     def sha256(self, weights, paths): return None
    >>> registry.codecs.register("mine", Mine())  # a suite's file then has: codec: mine

    Attributes:
        external_names: those of `vfmbench.weights`' files that it reads.
    """

    external_names: Sequence[str] = ()

    @abstractmethod
    def load(self, weights: WeightStore, paths: ExternalPaths, backbone: Backbone) -> Codec:
        """The codec on the backbone's device, run by its execution and counted by its meter.

        Args:
            weights: the suite's own networks.
            paths: files that the user names.

        Raises MissingError where its weights are not there.
        """

    @abstractmethod
    def sha256(self, weights: WeightStore, paths: ExternalPaths) -> str | None:
        """Hash of its weights; None if it has none. Raises MissingError where they are not there."""

    def untrained(self, weights: WeightStore, paths: ExternalPaths, backbone: Backbone) -> Codec:
        """For timing, where the weights may be missing: the same operations on any weights."""
        return self.load(weights, paths, backbone)


class _Identity(CodecKind):
    def load(self, weights: WeightStore, paths: ExternalPaths, backbone: Backbone) -> Codec:
        return IdentityCodec()

    def sha256(self, weights: WeightStore, paths: ExternalPaths) -> None:
        return None


class _Trained(CodecKind):
    def load(self, weights: WeightStore, paths: ExternalPaths, backbone: Backbone) -> Codec:
        found = weights.load("codec")
        encoder, decoder = patch_autoencoder(found.entry["architecture"]["codec"])
        found.fill(encoder, "encoder")
        found.fill(decoder, "decoder")
        return patch_codec(encoder, decoder, backbone.device, backbone.meter, backbone.execution)

    def sha256(self, weights: WeightStore, paths: ExternalPaths) -> str:
        return weights.sha256("codec")


class _StableDiffusion(CodecKind):
    external_names = ("sd_vae",)

    def load(self, weights: WeightStore, paths: ExternalPaths, backbone: Backbone) -> Codec:
        network = load_autoencoder(load_external("sd_vae", paths.path_of("sd_vae")))
        return sd_vae_codec(network, backbone.device, backbone.meter, backbone.execution)

    # Hundreds of megabytes, and a sweep plans many runs of one suite.
    @cache  # noqa: B019 - one instance lives as long as the process
    def sha256(self, weights: WeightStore, paths: ExternalPaths) -> str:
        return external_sha256("sd_vae", paths.path_of("sd_vae"))

    def untrained(self, weights: WeightStore, paths: ExternalPaths, backbone: Backbone) -> Codec:
        return sd_vae_codec(autoencoder(), backbone.device, backbone.meter, backbone.execution)


IDENTITY, TRAINED, SD_VAE = _Identity(), _Trained(), _StableDiffusion()
