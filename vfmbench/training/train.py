"""Runs training stages one after the other and writes their weights with a manifest, ready to be used as `weights.path`."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

from vfmbench.config import dump, validate
from vfmbench.interfaces import MissingError, Suite, UserError
from vfmbench.models.weights import WeightStore
from vfmbench.provenance import git_commit
from vfmbench.registry import stages as stage_registry
from vfmbench.registry import unknown_name
from vfmbench.training.trainer import Trainer


def train(
    stage: str,
    suite: Suite,
    overrides: Mapping[str, Mapping[str, Any]],
    out: Path,
    device: torch.device,
    fresh: bool,
    console: Console,
) -> None:
    """Trains one stage, or with `all` every stage of the suite, into `out`.

    Args:
        overrides: options by stage name, on top of the suite's.

    Raises UserError for an unknown stage or option before anything is trained. A stage starts from the weights that
    earlier stages left in `out`, else from the suite's own.
    """
    if not suite.training:
        raise UserError(f"The suite {suite.name} has no training stages.")
    names = list(suite.training) if stage == "all" else [stage]
    for name in [*names, *overrides]:
        if name not in suite.training:
            raise unknown_name("training stage", name, [*suite.training, "all"])
    classes = {name: stage_registry.get(name) for name in names}
    options = {
        name: validate(classes[name].Options, {**suite.training[name], **overrides.get(name, {})}, f"{name}.") for name in names
    }
    own = suite.weights
    trained = suite.with_weights(out)
    for name in names:
        for need in classes[name].needs:
            if not _has(trained.weights, need):
                source = own.load(need)
                trained.weights.save(need, source.tensors, source.entry)
                console.log(f"{name} starts from the suite's own weights {need!r}")
        torch.manual_seed(options[name].seed)
        instance = classes[name](trained, options[name], trained.weights, device)
        trainer = Trainer(instance, out / name, console)
        networks = trainer.run(fresh)
        console.log(f"{name}: {trainer.seconds:.0f} s of training steps")
        entry = {
            **instance.manifest(),
            "training": {
                "command": "vfmbench " + " ".join(sys.argv[1:]),
                "commit": git_commit(),
                "seconds": round(trainer.seconds, 1),
                "threads": torch.get_num_threads(),
                "device": str(device),
                "options": dump(options[name]),
            },
            "test": _round(instance.evaluate(networks, "test")),
        }
        trained.weights.save(name, _flatten(networks), entry)
        console.log(f"{name}: wrote {out / name}.safetensors; test split: {entry['test']}")


def _has(store: WeightStore, name: str) -> bool:
    try:
        store.entry(name)
    except MissingError:
        return False
    return True


def _flatten(networks: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    return {f"{name}.{key}": value for name, network in networks.items() for key, value in network.state_dict().items()}


def _round(values: Mapping[str, float]) -> dict[str, float]:
    return {key: float(f"{value:.5g}") for key, value in values.items()}
