"""A run that is ready to start: every name, option and file of its configuration checked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vfmbench.config import PRESETS, RUN_SECTIONS, RunConfig, RunIdentity, RunOptions, is_preset_file
from vfmbench.errors import MissingError, UserError, about, unknown_name
from vfmbench.files import foreign_source_sha256
from vfmbench.interfaces import Dataset, Sampler, Suite, Task
from vfmbench.measurement import Measurement
from vfmbench.metrics.compute import chosen_metrics, default_metrics
from vfmbench.metrics.metric import Metric
from vfmbench.models import compilation
from vfmbench.options import SamplerOptions, dump, validate
from vfmbench.precision import Execution
from vfmbench.registry import load_suite, samplers
from vfmbench.results.run_directory import RunStore
from vfmbench.running.evaluating import measured


def choose_device(name: str) -> torch.device:
    """`auto` takes CUDA where there is one. Raises UserError for `cuda` without a CUDA device.

    On CUDA, float32 means float32: torch's convolutions would use TF32, whose products have ten bits.
    """
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise UserError("--device cuda: no CUDA device is available; use --device cpu or auto.", "device")
    if name == "cpu" or not available:
        return torch.device("cpu")
    torch.backends.cudnn.allow_tf32 = False
    return torch.device("cuda")


@dataclass(frozen=True)
class Verdict:
    """Whether a method can run on a task. `note` is the reason if not, else a caution to show beside the result, or empty."""

    supported: bool
    note: str


@dataclass(frozen=True)
class Plan:
    """A run whose every name, option and file has been checked; nothing has been computed or written yet."""

    identity: RunIdentity
    store: RunStore
    suite: Suite
    task: Task
    dataset: Dataset
    sampler_class: type[Sampler]
    options: SamplerOptions
    metrics: Mapping[str, Metric]
    device: torch.device
    execution: Execution
    batch_size: int
    fresh: bool

    @cached_property
    def verdict(self) -> Verdict:
        """What the method says of this task, asked once."""
        return Verdict(*self.sampler_class.supports(self.task, self.suite))

    def sampler(self, execution: Execution | None = None) -> Sampler:
        """The method, with its networks loaded. Args: execution: how they run; None: as the configuration has it."""
        return self.sampler_class(self.suite, self.options, self.suite.backbone(self.device, execution or self.execution))

    def measure(self, positions: list[int]) -> tuple[Tensor, Measurement]:
        """True images [B,C,H,W] in [-1,1] and their measurement, on the run's device."""
        return measured(self.task, self.dataset, self.suite.domain, self.identity, positions, self.device)


def plan(config: RunConfig, suite: Suite | None = None, elsewhere: bool = False) -> Plan:
    """Checks everything that can be wrong with a configuration. Raises UserError or MissingError in one sentence.

    Args:
        suite: another than the configuration names, such as the same one on other weights.
        elsewhere: the run is for another machine, so that it does not matter what this one's devices can do.
    """
    for section in config.options:
        if section not in RUN_SECTIONS:
            raise unknown_name("section", section, RUN_SECTIONS, section)
    with about("method"):
        sampler_class = samplers.get(config.method)
    if suite is None:
        suite = load_suite(config.suite, config.options)
    with about("task"):
        task = suite.task(config.task, config.options.get("task", {}))
    own = suite.defaults.methods.get(config.method, {})
    with about("preset"):
        preset = _preset(sampler_class, config, task, suite)
    chosen = {**own, **preset, **config.options.get("method", {})}
    options = validate(sampler_class.Options, chosen, "method.")
    if "label" in config.options.get("method", {}) and not suite.num_classes:
        raise UserError(f"method.label: the suite {suite.name} has no classes; leave the option out.", "method.label")
    usual = suite.defaults.metrics or default_metrics(suite.domain)
    with about("metrics"):
        metrics = chosen_metrics(usual if config.metrics is None else config.metrics)
    device = torch.device("cpu") if elsewhere else choose_device(config.device)
    execution = Execution(config.precision, config.compile)
    with about("precision"):
        if not elsewhere:
            compilation.check(execution, device)
    weights = _weight_hashes(suite, config.split, sampler_class)
    with about("data"):
        dataset = suite.dataset(config.split)
    num_images = config.num_images or min(suite.defaults.num_images, len(dataset))
    if num_images > len(dataset):
        message = f"--num-images: the {config.split} split of {suite.name} has {len(dataset)} images, not {num_images}."
        raise UserError(message, "num_images")
    identity = RunIdentity(
        **{
            **config.model_dump(include={*RunOptions.model_fields}),
            "suite": suite.name,
            "task": task.name,
            "num_images": num_images,
            "samples": config.samples or suite.defaults.num_samples,
        },
        suite_options=dict(suite.data_options),
        dataset_sha256=dataset.sha256,
        problem=task.kind,
        condition=None if task.condition == task.kind else task.condition,
        task_options=dump(task.options),
        method_options=dump(options),
        plugin_sha256=_plugin_hashes(sampler_class, type(task)),
        weights_sha256=weights,
    )
    return Plan(
        identity=identity,
        store=RunStore.at(config.out, identity),
        suite=suite,
        task=task,
        dataset=dataset,
        sampler_class=sampler_class,
        options=options,
        metrics=metrics,
        device=device,
        execution=execution,
        batch_size=config.batch_size or suite.defaults.batch_size,
        fresh=config.fresh,
    )


def _weight_hashes(suite: Suite, split: str, sampler_class: type[Sampler]) -> dict[str, str]:
    """SHA-256 of the weights that the method needs, by name; the codec's too, where it has any.

    Raises MissingError that names all that is not there at once: data and weights.
    """
    hashes: dict[str, str] = {}
    missing: list[str] = []

    def look(name: str, read: Callable[[], str | None]) -> None:
        try:
            with about("weights"):
                found = read()
        except MissingError as error:
            missing.append(str(error))
        else:
            hashes.update({} if found is None else {name: found})

    for name in sampler_class.weights:
        look(name, suite.codec_sha256 if name == "codec" else partial(suite.weights.sha256, name))
    if sampler_class.weights:
        look("codec", suite.codec_sha256)
    try:
        with about("data"):
            suite.dataset(split)
    except MissingError as error:
        missing.append(str(error))
    if len(missing) > 1:
        raise MissingError("\n".join([f"{len(missing)} things are missing.", *(f"  - {problem}" for problem in missing)]))
    if missing:
        raise MissingError(missing[0])
    return hashes


def _preset(sampler_class: type[Sampler], config: RunConfig, task: Task, suite: Suite) -> Mapping[str, Any]:
    """The method's options under the preset; none where the method has no presets.

    Raises UserError for a preset or file that does not exist, whether the method has presets or not.
    """
    from_file = is_preset_file(config.preset)
    if from_file and not Path(config.preset).is_file():
        raise UserError(f"--preset: there is no file {config.preset}.")
    if not from_file and config.preset not in PRESETS:
        raise unknown_name("preset", config.preset, [*PRESETS, "FILE.yaml"])
    return sampler_class.preset(config.preset, config.method, task, suite)


def _plugin_hashes(*classes: type) -> dict[str, str]:
    """SHA-256 of the source files of classes from outside this package: their code has no version that we know."""
    hashes = {cls.__qualname__: foreign_source_sha256(cls.__module__) for cls in classes}
    return {name: sha256 for name, sha256 in hashes.items() if sha256 is not None}
