"""Suites whose posterior is known in closed form: points drawn from a prior, and a linear observation."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import nn

from vfmbench.interfaces import Backbone, Dataset, ExactPrior, FlowModel
from vfmbench.models.flow import NetworkFlow
from vfmbench.options import Options, validate
from vfmbench.randomness import PhiloxNoise
from vfmbench.tasks.datasets.arrays import ArrayDataset
from vfmbench.tasks.exact.checkerboard import CheckerboardPrior
from vfmbench.tasks.exact.gaussian import random_gaussian
from vfmbench.tasks.exact.mixture import grid_mixture
from vfmbench.tasks.suites.definition import read_definition
from vfmbench.tasks.suites.suite import DefinedSuite, WeightsOptions
from vfmbench.weights.store import WeightStore

SPLITS = {"train": 20_000, "validation": 2_000, "test": 10_000}


class NoData(Options):
    """The points are drawn from the prior: nothing to choose."""


class GaussianData(Options):
    dimension: int = Field(8, ge=1)
    condition: float = Field(100.0, ge=1, description="largest over smallest variance")


class MixtureData(Options):
    dimension: int = Field(2, ge=1)


class KnownFlowWeights(WeightStore):
    """The weights of a suite whose flow is a formula: "flow" has no file, only the hash of points that it transports to."""

    def __init__(self, directory: Path, hint: str, sha256: str):
        super().__init__(directory, hint)
        self._flow_sha256 = sha256

    def entry(self, name: str) -> dict[str, Any]:
        return {"sha256": self._flow_sha256} if name == "flow" else super().entry(name)


class ExactSuite(DefinedSuite):
    """Args: velocity: u(x, t, r, label) of the prior where it is known; None where the flow is learned."""

    def __init__(
        self,
        name: str,
        data: Options,
        weights: WeightsOptions,
        prior: ExactPrior,
        shape: tuple[int, int, int],
        velocity: nn.Module | None,
    ):
        self.prior = self._prior = prior
        self._velocity = velocity
        _, definition = read_definition(Path(str(files(__package__ or __name__))) / f"{name}.yaml")
        super().__init__(definition, shape, self._draw, data, weights)

    def load_flow(self, backbone: Backbone) -> FlowModel:
        if self._velocity is None:
            return super().load_flow(backbone)
        return NetworkFlow(self._velocity.to(backbone.device), self.latent_shape, None, backbone.meter)

    def _draw(self, split: str) -> Dataset:
        rows = torch.arange(SPLITS[split])
        points = self._prior.draw(PhiloxNoise(0, f"points/{split}", rows))
        return ArrayDataset(points, torch.zeros_like(rows))

    def _weight_store(self, path: Path | None) -> WeightStore:
        store = super()._weight_store(path)
        if self._velocity is None:
            return store
        hint = store.hint
        if not self.training:
            hint = f"The flow of the suite {self.name} is a formula, and it has no trained adapters; solvers run."
        points = self._prior.draw(PhiloxNoise(0, "points/identity", torch.arange(100)))
        return KnownFlowWeights(store.directory, hint, hashlib.sha256(points.numpy().tobytes()).hexdigest())


def checkerboard(options: Mapping[str, Mapping[str, Any]]) -> ExactSuite:
    """The paper's study in two dimensions: uniform on half of the cells of a 4x4 grid, the first coordinate observed."""
    data, weights = _options(NoData, options)
    return ExactSuite("checkerboard", data, weights, CheckerboardPrior(), (2, 1, 1), None)


def gaussian(options: Mapping[str, Mapping[str, Any]]) -> ExactSuite:
    """x ~ N(m, C), a linear observation, and the exact affine flow map."""
    data, weights = _options(GaussianData, options)
    prior = random_gaussian(data.dimension, data.condition)
    return ExactSuite("gaussian", data, weights, prior, (data.dimension, 1, 1), prior.velocity())


def mixture(options: Mapping[str, Mapping[str, Any]]) -> ExactSuite:
    """A mixture of 25 Gaussians on a grid, a linear observation, and the exact velocity."""
    data, weights = _options(MixtureData, options)
    prior = grid_mixture(data.dimension)
    return ExactSuite("mixture", data, weights, prior, (data.dimension, 1, 1), prior.velocity())


def _options(schema: Any, options: Mapping[str, Mapping[str, Any]]) -> tuple[Any, WeightsOptions]:
    data = validate(schema, options.get("data", {}), "data.")
    return data, validate(WeightsOptions, options.get("weights", {}), "weights.")
