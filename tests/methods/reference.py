"""Losses of the training stages in float64, on networks, measurements and a codec that depend on nothing else of this package.

`reference.json` holds the losses, logged terms and gradient norms of every case in `CASES`, computed with the code of commit
1336b9d, in which images and points had an objective each and which agreed with the authors' release to 1e-12.
"""

from __future__ import annotations

import copy
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from vfmbench.interfaces import Suite
from vfmbench.measurement import Measurement
from vfmbench.metering import Meter
from vfmbench.models.codecs import AutoencoderCodec
from vfmbench.models.networks import flow_network
from vfmbench.options import Options
from vfmbench.registry import stages, suites
from vfmbench.weights.store import WeightStore

CPU, ROWS, SEED = torch.device("cpu"), 14, 5
_SIT = {"patch_size": 2, "hidden_size": 16, "depth": 3, "dmf_depth": 2, "num_heads": 2}
_CONV = {"channels": 8, "channel_multipliers": [1], "blocks_per_stage": 1, "embedding_size": 8, "norm_groups": 4}
_MLP = {"kind": "mlp", "width": 16, "depth": 2}
_BATCH = {"reduction": "sum", "adaptive_scope": "batch"}
_RESTORED = {"architecture": {"adapter": {**_CONV, "restored": True}}}

# Name -> registered stage, options beside `_BASE`.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "vfm": ("vfm", {}),
    "vfm alpha 0": ("vfm", {"alpha": 0.0}),
    "vfm alpha 1": ("vfm", {"alpha": 1.0}),
    "vfm weights": ("vfm", {"flow_weight": 0.1, "observation_weight": 2.0, "kl_weight": 3.0}),
    "vfm without kl": ("vfm", {"kl_weight": 0.0}),
    "vfm unscaled": ("vfm", {"adaptive_power": 0.0}),
    "vfm power": ("vfm", {"adaptive_power": 0.5, "adaptive_constant": 0.1}),
    "vfm by term": ("vfm", {"adaptive_scope": "term", "flow_weight": 0.1}),
    "vfm by term, power": ("vfm", {"adaptive_scope": "term", "adaptive_power": 0.7, "kl_weight": 3.0}),
    "vfm own target": ("vfm", {"ema_target": False}),
    "vfm unguided": ("vfm", {"guidance_omega": 0.0}),
    "vfm labels": ("vfm", {"label_dropout": 0.5, "guidance_omega": 0.8}),
    "vfm network tangent": ("vfm", {"tangent": "network"}),
    "vfm no tangent": ("vfm", {"tangent": "none", "one_step_share": 0.5}),
    "vfm times": ("vfm", {"fm_time_mean": 0.5, "t_time_mean": 0.1, "r_time_mean": -0.5}),
    "vfm checkpointed": ("vfm", {"checkpoint_decoder": True}),
    "vfm restored": ("vfm", _RESTORED),
    "frozen": ("frozen_adapter", {}),
    "frozen weights": ("frozen_adapter", {"observation_weight": 2.0, "kl_weight": 0.5}),
    "frozen unscaled": ("frozen_adapter", {"adaptive_power": 0.0}),
    "frozen restored": ("frozen_adapter", {**_RESTORED, "checkpoint_decoder": True}),
    "flow": ("flow", {}),
    "flow shares": ("flow", {"flow_matching_share": 0.3, "guidance_omega": 0.0, "label_dropout": 0.0}),
    "flow mean flow": ("flow", {"flow_matching_share": 0.0, "tangent": "network"}),
    "flow matching": ("image_flow_matching", {}),
    "points vfm": ("point_vfm", {}),
    "points vfm tau": ("point_vfm", {"tau": 0.3}),
    "points vfm alpha 0": ("point_vfm", {"alpha": 0.0, "tau": 1.0}),
    "points vfm alpha 1": ("point_vfm", {"alpha": 1.0, "tau": 1.0}),
    "points vfm equal times": ("point_vfm", {"distinct_share": 0.0, "tau": 1.0}),
    "points vfm distinct times": ("point_vfm", {"distinct_share": 1.0, "tau": 1.0}),
    "points vfm own target": ("point_vfm", {"ema_target": False, "tau": 1.0}),
    "points vfm without kl": ("point_vfm", {"kl_weight": 0.0, "tau": 1.0}),
    "points vfm unscaled": ("point_vfm", {"adaptive_power": 0.0, "tau": 1.0}),
    "points vfm power": ("point_vfm", {"adaptive_power": 0.5, "adaptive_constant": 0.1}),
    "points vfm inverse gap": ("point_vfm", {"mean_flow_weighting": "inverse_gap", "tau": 100.0}),
    "points frozen": ("point_frozen_adapter", {}),
    "points frozen affine": ("point_frozen_adapter", {"architecture": {"adapter": {"kind": "affine"}}, "adaptive_power": 0.0}),
    "points unconstrained": ("point_unconstrained", {}),
    "points unconstrained without kl": ("point_unconstrained", {"kl_weight": 0.0}),
    "points flow": ("point_flow", {"distinct_share": 0.4}),
    "points flow matching": ("point_flow_matching", {}),
}

_BASE: dict[str, dict[str, Any]] = {
    "vfm": {"architecture": {"adapter": _CONV}},
    "frozen_adapter": {"architecture": {"adapter": _CONV}},
    "flow": {"architecture": _SIT},
    "image_flow_matching": {"architecture": _SIT},
    "point_vfm": {"architecture": {"adapter": _MLP}, "tau": 0.1, "alpha": 0.5, **_BATCH},
    "point_frozen_adapter": {"architecture": {"adapter": _MLP}, **_BATCH},
    "point_unconstrained": {"architecture": {"adapter": _MLP}, **_BATCH},
    "point_flow": {"architecture": _MLP},
    "point_flow_matching": {"architecture": _MLP},
}


@contextmanager
def double_precision() -> Iterator[None]:
    """float64 all the way, also where a stage asks for at least float32."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with patch.object(torch.Tensor, "float", torch.Tensor.double):
            yield
    finally:
        torch.set_default_dtype(before)


@dataclass(frozen=True)
class _Operator:
    """y = M x with a matrix of the flattened image, and a mask of the entries that carry signal; T is the transpose."""

    matrix: Tensor
    image_shape: tuple[int, int, int]
    measurement_shape: tuple[int, ...]
    observed: Tensor | None
    linear: bool = True

    def forward(self, x: Tensor) -> Tensor:
        return (x.flatten(1) @ self.matrix.T).unflatten(1, self.measurement_shape)

    def to_image(self, y: Tensor) -> Tensor:
        return (y.flatten(1) @ self.matrix).unflatten(1, self.image_shape)

    def tikhonov(self, y: Tensor, weight: Tensor) -> Tensor:
        gram = self.matrix.T @ self.matrix + weight.flatten()[:, None, None] * torch.eye(self.matrix.shape[1])
        return torch.linalg.solve(gram, y.flatten(1) @ self.matrix).unflatten(1, self.image_shape)


class _Task:
    """A linear observation whose noise is a known function of the image's index."""

    linear = True
    options = Options()

    def __init__(self, name: str, image_shape: tuple[int, int, int]):
        self.name = self.condition = name
        self._shape = image_shape

    def measure(self, images: Tensor, label: Tensor, index: Tensor, seed: int | str) -> Measurement:
        matrix, observed = torch.eye(images[0].numel()), None
        shape: tuple[int, ...] = self._shape
        if self.name == "half":
            matrix = matrix.unflatten(0, (-1, 2)).mean(1)
            shape = (self._shape[0], self._shape[1], self._shape[2] // 2) if self._shape[2] > 1 else (self._shape[0] // 2, 1, 1)
        elif self.name == "mask":
            observed = (index[:, None] + torch.arange(images[0].numel()) % 5 != 2).unflatten(1, shape)
        operator = _Operator(matrix, self._shape, shape, observed)
        clean = operator.forward(images.double())
        noise = torch.sin(3.7 * index[:, None].double() + 1.3 * torch.arange(clean[0].numel()).double()).view_as(clean)
        std = torch.full((len(images), 1, 1, 1), 0.1).double()
        return Measurement(clean + std * noise, operator, std, label, index, self.name)  # type: ignore[arg-type]


def _fill(network: nn.Module, seed: int) -> None:
    """Parameters that depend on their names alone."""
    for name, parameter in network.named_parameters():
        if name != "pos_embed":
            generator = torch.Generator().manual_seed(zlib.crc32(f"{seed}/{name}".encode()))
            values = 0.2 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.data.copy_(values)


def _suite(name: str) -> Suite:
    """The real data, under tasks and a codec of this module."""
    suite: Any = suites.get(name)({})
    problems = ["full", "half", "mask"] if name == "digits" else ["half"]
    changes: dict[str, Any] = {"tasks": {problem: {} for problem in problems}}
    suite.training = {}
    suite.task = lambda problem, options: _Task(problem, suite.image_shape)
    if name == "digits":
        changes["latent_shape"] = (2, 4, 4)
        decoder, encoder = nn.ConvTranspose2d(2, 1, 2, stride=2), nn.Conv2d(1, 2, 2, stride=2)
        _fill(decoder, 1), _fill(encoder, 2)
        codec = AutoencoderCodec(decoder, encoder, Meter(CPU))
        suite.load_codec = lambda backbone: codec
    suite._definition = suite._definition.model_copy(update=changes)
    return suite


def stage_of(case: str, folder: Path, rename: Any = lambda stage, options: options) -> tuple[Any, Mapping[str, nn.Module]]:
    """The stage of a case, and stand-ins for its averaged networks, which are others than the trained ones.

    Args:
        folder: for the weights that the stage starts from.
        rename: (registered stage, options) -> the options under the names that the stage knows them by.
    """
    registered, changes = CASES[case]
    suite = _suite("checkerboard" if registered.startswith("point") else "digits")
    store, architecture = WeightStore(folder, ""), _MLP
    if suite.name == "digits":
        architecture = {**_SIT, "input_size": 4, "in_channels": 2, "num_classes": suite.num_classes}
    flow = flow_network(suite.latent_shape, architecture)
    _fill(flow, 3)
    for name in ("flow", "flow_matching"):
        store.save(name, {f"flow.{k}": v for k, v in flow.state_dict().items()}, {"architecture": {"flow": architecture}}, None)
    options = rename(registered, {**_BASE[registered], **changes, "steps": 1, "batch_size": ROWS})
    stage_class = stages.get(registered)
    stage = stage_class(suite.with_weights(folder), stage_class.Options(**options), store, CPU)
    ema = {name: copy.deepcopy(network).eval().requires_grad_(False) for name, network in stage.networks.items()}
    for number, name in enumerate(stage.networks):
        _fill(stage.networks[name], 10 + number)
        _fill(ema[name], 20 + number)
    return stage, ema


def summary(stage: Any, loss: Tensor, terms: Mapping[str, Tensor]) -> dict[str, float]:
    """The loss, the terms that it logs, and the norm of each network's gradient."""
    loss.backward()
    result = {"loss": loss.item(), **{f"term {name}": value.item() for name, value in terms.items()}}
    for name, network in stage.networks.items():
        gradients = [parameter.grad.flatten() for parameter in network.parameters() if parameter.grad is not None]
        result[f"gradient {name}"] = torch.cat(gradients).norm().item() if gradients else 0.0
    return result
