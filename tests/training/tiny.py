"""Stages of tiny networks for tests, and, run as a script, one of several processes that train them.

`python tiny.py FOLDER` trains every stage of `STAGES` for three steps with the processes of its environment and writes the
networks of each to FOLDER; then a training in which the process with the highest rank gets SIGTERM, and exits with code 75.
"""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from rich.console import Console
from torch import nn

from vfmbench.metering import Meter
from vfmbench.methods.adapter import NoiseAdapter
from vfmbench.methods.stages import PointVFMStage, VFMStage
from vfmbench.models.codecs import AutoencoderCodec
from vfmbench.models.networks import flow_network
from vfmbench.registry import suites
from vfmbench.training.batches import Batch
from vfmbench.training.features import FeatureStage
from vfmbench.training.flow import FlowStage
from vfmbench.training.points import PointMeanFlowStage
from vfmbench.training.processes import Processes, join
from vfmbench.training.stage import Stage
from vfmbench.training.trainer import Trainer
from vfmbench.weights.store import WeightStore

CPU = torch.device("cpu")
QUIET = Console(file=io.StringIO())
_SIT = {"patch_size": 4, "hidden_size": 16, "depth": 2, "dmf_depth": 1, "num_heads": 2}
_ADAPTER = {"channels": 8, "channel_multipliers": [1], "blocks_per_stage": 1, "embedding_size": 8, "norm_groups": 4}
_MLP = {"kind": "mlp", "width": 16, "depth": 2}
_FEW = {"steps": 3, "batch_size": 16, "learning_rate": 1e-2, "validate_every": 1000}

# Name -> suite, class of the stage, options.
STAGES = {
    "features": ("digits", FeatureStage, {}),
    # The share of flow matching cuts through the middle of what two processes deal out between them.
    "flow": ("digits", FlowStage, {"architecture": _SIT, "flow_matching_share": 0.3}),
    "vfm": ("digits", VFMStage, {"architecture": {"adapter": _ADAPTER}, "precision": "bfloat16"}),
    "vfm_float32": ("digits", VFMStage, {"architecture": {"adapter": _ADAPTER}}),
    "point_flow": ("checkerboard", PointMeanFlowStage, {"architecture": _MLP}),
    "point_vfm": ("checkerboard", PointVFMStage, {"architecture": {"adapter": _MLP}}),
    "point_vfm_weighted": (
        "checkerboard",
        PointVFMStage,
        {"architecture": {"adapter": _MLP}, "mean_flow_weighting": "inverse_gap", "tau": 1e3},
    ),
    "point_vfm_by_rows": (
        "checkerboard",
        PointVFMStage,
        {"architecture": {"adapter": _MLP}, "mean_flow_weighting": "inverse_gap", "tau": 1e3, "adaptive_scope": "row"},
    ),
}


def weights_of(folder: Path, suite_name: str, latent_shape: tuple[int, int, int]) -> WeightStore:
    """Random weights of tiny flow networks under the names that stages start from."""
    store = WeightStore(folder, "")
    channels, size, _ = latent_shape
    image = {**_SIT, "patch_size": size // 2, "input_size": size, "in_channels": channels, "num_classes": 10}
    for name, architecture in (("flow", image),) if suite_name == "digits" else (("flow", _MLP), ("flow_matching", _MLP)):
        network = flow_network(latent_shape, architecture)
        for parameter in network.parameters():
            if parameter.requires_grad:
                nn.init.normal_(parameter, std=0.1)
        tensors = {f"flow.{key}": value for key, value in network.state_dict().items()}
        store.save(name, tensors, {"architecture": {"flow": architecture}})
    return store


def stage_of(name: str, folder: Path, codec: AutoencoderCodec | None = None, **changes: object) -> Stage:
    """A stage with its first weights, the same at every call. Args: codec: to latents of shape [2,4,4], for image stages."""
    suite_name, stage_class, options = STAGES[name]
    suite = suites.get(suite_name)({})
    # As where the feature space is not trained here.
    suite.training = {key: value for key, value in suite.training.items() if key != "features"}
    if codec is not None:
        suite._definition = suite._definition.model_copy(update={"latent_shape": (2, 4, 4)})
        suite.load_codec = lambda backbone: codec
    torch.manual_seed(0)
    weights = weights_of(folder / suite_name, suite_name, suite.latent_shape)
    torch.manual_seed(0)
    chosen = stage_class.Options(**{**_FEW, **options, **changes})
    stage = stage_class(suite.with_weights(folder / suite_name), chosen, weights, CPU)
    adapter = stage.networks.get("adapter")
    if isinstance(adapter, NoiseAdapter):
        nn.init.normal_(adapter.conv_out.weight, std=0.05)
    # A few steps are about the weights.
    stage.evaluate = lambda networks, split, rows: {}
    return stage


def batch_of(stage: Stage, step: int = 0) -> Batch:
    """The whole batch of a step, on random numbers of its own."""
    generator = torch.Generator().manual_seed(step)
    return Batch.draw(step, len(stage.suite.dataset("train")), stage.options.batch_size, generator)


def small_codec() -> AutoencoderCodec:
    """A linear encoder and decoder between [1,8,8] and [2,4,4]."""
    torch.manual_seed(7)
    return AutoencoderCodec(nn.ConvTranspose2d(2, 1, 2, stride=2), nn.Conv2d(1, 2, 2, stride=2), Meter(CPU))


def weights_after(stage: Stage, folder: Path, processes: Processes | None = None) -> torch.Tensor:
    """All parameters of the trained networks, then of their averages."""
    averaged = Trainer(stage, folder, QUIET, processes).run()
    networks = [*stage.networks.values(), *averaged.values()]
    return torch.cat([parameter.detach().flatten() for network in networks for parameter in network.parameters()])


def kill_in_step(stage: Stage, wanted: int) -> None:
    """Sends SIGTERM to this process in the middle of a step of the stage."""
    real = stage.loss

    def loss(batch: Batch, ema: Mapping[str, nn.Module]) -> object:
        if batch.step == wanted:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(batch, ema)

    stage.loss = loss


def main(folder: Path) -> int:
    torch.set_num_threads(1)
    processes = join(CPU)
    assert processes.device == CPU
    own = folder / f"rank{processes.rank}"
    for name in STAGES:
        weights = weights_after(stage_of(name, own), folder / "two" / name, processes)
        torch.save(weights, own / f"{name}.pt")
    stage = stage_of("features", own, steps=12)
    if processes.rank == processes.count - 1:
        kill_in_step(stage, 5)
    try:
        Trainer(stage, folder / "stopped", QUIET, processes).run()
    except KeyboardInterrupt:
        return 75
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
