"""Runs training stages one after the other and writes their weights with a manifest, ready to be used as `weights.path`."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

from vfmbench.errors import MissingError, UserError, unknown_name
from vfmbench.files import locked_directory
from vfmbench.interfaces import Suite
from vfmbench.options import dump, validate
from vfmbench.provenance import git_commit
from vfmbench.registry import stages as stage_registry
from vfmbench.training.processes import Processes, join
from vfmbench.training.stage import Stage, TrainingOptions
from vfmbench.training.trainer import Trainer
from vfmbench.weights.store import WeightStore


def train(
    stage: str,
    suite: Suite,
    overrides: Mapping[str, Mapping[str, Any]],
    out: Path,
    device: torch.device,
    fresh: bool,
    console: Console,
) -> None:
    """Trains one stage, or with `all` every stage of the suite, into `out`, which all processes must see.

    Processes that `accelerate launch` or `torchrun` started together train together, each on its own device.

    Args:
        overrides: options by stage name, on top of the suite's; `objective` takes another registered stage in the place of one.
        device: its kind; with several processes each takes its own of that kind.

    Raises UserError for an unknown stage, a wrong option or an `out` in use before anything is trained. A stage starts from the
    weights that earlier stages left in `out`, else from the suite's own; a stage that is already trained there is left alone.
    """
    if not suite.training:
        raise UserError(f"The suite {suite.name} has no training stages.")
    names = list(suite.training) if stage == "all" else [stage]
    for name in [*names, *overrides]:
        if name not in suite.training:
            raise unknown_name("training stage", name, [*suite.training, "all"])
    # A stage may be trained by another registered objective than the one of its name.
    sections = {name: {**suite.training[name], **overrides.get(name, {})} for name in names}
    classes = {name: stage_registry.get(section.pop("objective", name)) for name, section in sections.items()}
    options = {name: validate(classes[name].Options, section, f"{name}.") for name, section in sections.items()}
    for name in names:
        try:
            classes[name].check(suite, options[name])
        except (TypeError, ValueError) as error:
            raise UserError(f"{name}.architecture: {error}.") from error
    processes = join(device)
    for name in names:
        _check_batch(name, classes[name], options[name], processes)
    if not processes.main:
        console = Console(quiet=True)
    with locked_directory(out) if processes.main else nullcontext():
        for name in names:
            _train_stage(classes[name], options[name], suite, out, processes, fresh, console)


def _check_batch(name: str, stage_class: type[Stage], options: TrainingOptions, processes: Processes) -> None:
    if options.accumulate > 1 and not stage_class.by_rows(options):
        raise UserError(
            f"{name}.accumulate must be 1, not {options.accumulate}: the loss of this stage is scaled by its mean over the "
            "whole batch, which is known only once all rows are computed."
        )
    try:
        processes.shares(options.batch_size, options.accumulate)
    except UserError as error:
        raise UserError(f"{name}.{error}") from None


def _train_stage(
    stage_class: type[Stage],
    options: TrainingOptions,
    suite: Suite,
    out: Path,
    processes: Processes,
    fresh: bool,
    console: Console,
) -> None:
    name, trained = stage_class.name, suite.with_weights(out)
    if processes.main:
        for need in stage_class.needed(suite):
            if not _has(trained.weights, need):
                trained.weights.copy(need, suite.weights)
                console.log(f"{name} starts from the suite's own weights {need!r}")
        for judge in stage_class.judged_by:
            if judge in suite.training and not _has(trained.weights, judge) and _has(suite.weights, judge):
                trained.weights.copy(judge, suite.weights)
    processes.wait()
    torch.manual_seed(options.seed)
    instance = stage_class(trained, options, trained.weights, processes.device)
    trainer = Trainer(instance, out / name, console, processes)
    if not fresh:
        trainer.resume()
        if trainer.finished and _has(trained.weights, name):
            console.log(f"{name}: already trained")
            return
    networks = trainer.run()
    instance.finish(networks)
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
            "processes": processes.count,
            "device": str(processes.device),
            "options": dump(options),
        },
        "test": _round(trainer.evaluate(networks, "test")),
    }
    if processes.main:
        trained.weights.save(name, _flatten(networks), entry)
    processes.wait()
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
