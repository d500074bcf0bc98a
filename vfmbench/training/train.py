"""Runs training stages one after the other and writes their weights with a manifest, ready to be used as `weights.path`."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

from vfmbench.base import MissingError, UserError
from vfmbench.config import dump, validate
from vfmbench.files import locked_directory
from vfmbench.interfaces import Suite
from vfmbench.models.weights import WeightStore
from vfmbench.provenance import git_commit
from vfmbench.registry import stages as stage_registry
from vfmbench.registry import unknown_name
from vfmbench.training.stage import Stage, TrainingOptions
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

    Raises UserError for an unknown stage, a wrong option or an `out` in use before anything is trained. A stage starts from the
    weights that earlier stages left in `out`, else from the suite's own; a stage that is already trained there is left alone.
    """
    if not suite.training:
        raise UserError(f"The suite {suite.name} has no training stages.")
    names = list(suite.training) if stage == "all" else [stage]
    for name in [*names, *overrides]:
        if name not in suite.training:
            raise unknown_name("training stage", name, [*suite.training, "all"])
    # A suite may train a stage by another registered objective than the one of its name.
    classes = {name: stage_registry.get(suite.training[name].get("objective", name)) for name in names}
    options = {}
    for name in names:
        own = {key: value for key, value in suite.training[name].items() if key != "objective"}
        options[name] = validate(classes[name].Options, {**own, **overrides.get(name, {})}, f"{name}.")
    for name in names:
        try:
            classes[name].check(suite, options[name])
        except (TypeError, ValueError) as error:
            raise UserError(f"{name}.architecture: {error}.") from error
    with locked_directory(out):
        for name in names:
            _train_stage(classes[name], options[name], suite, out, device, fresh, console)


def _train_stage(
    stage_class: type[Stage],
    options: TrainingOptions,
    suite: Suite,
    out: Path,
    device: torch.device,
    fresh: bool,
    console: Console,
) -> None:
    name, trained = stage_class.name, suite.with_weights(out)
    for need in stage_class.needs:
        if not _has(trained.weights, need):
            source = suite.weights.load(need)
            trained.weights.save(need, source.tensors, source.entry)
            console.log(f"{name} starts from the suite's own weights {need!r}")
    torch.manual_seed(options.seed)
    instance = stage_class(trained, options, trained.weights, device)
    trainer = Trainer(instance, out / name, console)
    if not fresh:
        trainer.resume()
        if trainer.finished and _has(trained.weights, name):
            console.log(f"{name}: already trained")
            return
    networks = trainer.run()
    for network in networks.values():
        # Test numbers belong to the weights as they are stored, in half precision.
        network.load_state_dict({key: value.half().float() for key, value in network.state_dict().items()})
    entry = {
        **instance.manifest(),
        "inputs": instance.inputs(),
        "training": {
            "command": "vfmbench " + " ".join(sys.argv[1:]),
            "commit": git_commit(),
            "seconds": round(trainer.seconds, 1),
            "threads": torch.get_num_threads(),
            "device": str(device),
            "options": dump(options),
        },
        "test": _round(instance.evaluate(networks, "test")),
    }
    trained.weights.save(name, _flatten(networks), entry)
    console.log(f"{name}: {trainer.seconds:.0f} s of training steps; wrote {out / name}.safetensors")


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
