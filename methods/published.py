"""Published checkpoints of SiT, REPA, DMF and VFM, and how `vfmbench weights convert` makes them a suite's own weights.

SiT and REPA save {"model", "ema", ...} or the bare state dict of the average, DMF the same; VFM (the authors' release) saves
{"model", "adapter_model", "ema", "ema_adapter", ...}. All but the bare ones also hold the `argparse.Namespace` of their
training's command line. What is in a network is in `sit_layout` and `adapter_layout`, imported when a file is converted.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from vfmbench.errors import UserError
from vfmbench.options import dump
from vfmbench.weights.converters import ConversionOptions, Converted, Converter, Convertible

if TYPE_CHECKING:
    from torch import Tensor

    from vfmbench.interfaces import Suite

# What the adapter of VFM's release calls 0 to 5, in our names.
PUBLISHED_PROBLEMS = ("denoise", "inpaint_random", "inpaint_box", "super_resolution", "gaussian_deblur", "motion_deblur")

# The first key that is there is taken: an average of the weights samples better than the weights themselves.
FLOW_KEYS = ("ema", "model", "state_dict")
ADAPTER_KEYS = ("ema_adapter", "adapter_model")

# Names that tell a state dict of each kind from any other mapping.
_FLOW_MARK, _ADAPTER_MARK = "x_embedder.proj.weight", "conv_in.weight"
# What DistributedDataParallel and torch.compile add to names.
_WRAPPERS = {"module", "_orig_mod"}


class PublishedOptions(ConversionOptions):
    """What no shape in the file tells. None and `auto`: as the published checkpoints have it."""

    time_convention: Literal["auto", "noise_at_one", "noise_at_zero"] = Field(
        "auto", description="of the file; auto: noise at t = 0 with a learned-sigma head, at t = 1 without"
    )
    dmf_depth: int | None = Field(None, ge=1, description="blocks modulated by t; null: the file's own, else by size")
    num_heads: int | None = Field(None, ge=1, description="attention heads; null: SiT's rule by width")
    problems: tuple[str, ...] = Field(PUBLISHED_PROBLEMS, description="tasks that the adapter's problem ids stand for")
    part: Literal["all", "flow"] = Field("all", description="flow: leave out the adapter and write the flow map alone")


class Published:
    """A `Converter` that makes weights `vfm` of a file that holds an adapter, and `flow` of one without."""

    options = PublishedOptions
    # Addresses as the repositories willisma/SiT, kyungmnlee/dmf and abbasmammadov/VFM give them. None of them has a SiT-B/2.
    convertibles = (
        Convertible(
            purpose="SiT-XL/2 by SiT's authors: flow matching, to start a flow map from",
            licence="MIT",
            source="https://www.dl.dropboxusercontent.com/scl/fi/as9oeomcbub47de5g4be0/SiT-XL-2-256.pt?rlkey=uxzxmpicu46coq3msb17b9ofa&dl=0",
            suite="imagenet256",
            weights="flow",
            megabytes=2700,
        ),
        Convertible(
            purpose="DMF-XL/2 by the authors of decoupled mean flow: a flow map (dmf_xl_2_256.pt)",
            licence="not stated",
            source="https://huggingface.co/kyungmnlee/DMF",
            suite="imagenet256",
            weights="flow",
        ),
        Convertible(
            purpose="VFM by its authors: flow map and adapter trained jointly",
            licence="MIT",
            source="https://github.com/abbasmammadov/VFM",
            suite="imagenet256",
            weights="vfm",
        ),
    )

    def lacks(self, content: Mapping[str, Any]) -> str:
        if find_state(content, FLOW_KEYS, _FLOW_MARK)[0]:
            return ""
        return f"no SiT: no {_FLOW_MARK}, neither by itself nor in {', '.join(FLOW_KEYS)}"

    def convert(self, path: Path, content: Mapping[str, Any], suite: Suite, options: PublishedOptions) -> Converted:
        from vfmbench.methods.adapter_layout import convert_adapter
        from vfmbench.methods.sit_layout import convert_flow

        flow, flow_key = find_state(content, FLOW_KEYS, _FLOW_MARK)
        adapter, adapter_key = find_state(content, ADAPTER_KEYS, _ADAPTER_MARK)
        _check_finite(path, "flow map", flow)
        _check_finite(path, "adapter", adapter)
        settings = training_options(path, content)
        converted, architecture, notes = convert_flow(path, flow, settings.get("dmf_depth"), suite, options)
        step = next((content[key] for key in ("steps", "step") if isinstance(content.get(key), int)), None)
        tensors = {f"flow.{name}": tensor for name, tensor in converted.items()}
        entry: dict[str, Any] = {"architecture": {"flow": architecture}}
        taken = {"flow": flow_key}
        if not adapter or options.part == "flow":
            return Converted("flow", tensors, entry, {"taken": taken, "step": step, **notes})
        converted, architecture = convert_adapter(path, adapter, suite.image_shape[1], suite.latent_shape[1])
        tensors |= {f"adapter.{name}": tensor for name, tensor in converted.items()}
        entry["architecture"]["adapter"] = architecture
        entry |= _problems(path, architecture["num_problems"], suite, options)
        taken["adapter"] = adapter_key
        return Converted("vfm", tensors, entry, {"taken": taken, "step": step, **notes})


PUBLISHED: Converter[PublishedOptions] = Published()


def find_state(content: Mapping[str, Any], keys: tuple[str, ...], mark: str) -> tuple[dict[str, Tensor], str]:
    """The first state dict that has a parameter `mark`, under one of the keys or the mapping itself, and where it was.

    Names lose what wrappers have put before them. Where there is none, both are empty.
    """
    from torch import Tensor

    for key, value in [*((key, content.get(key)) for key in keys), ("the whole file", content)]:
        if isinstance(value, Mapping):
            state = {_plain(name): tensor.detach() for name, tensor in value.items() if isinstance(tensor, Tensor)}
            if mark in state:
                return state, key
    return {}, ""


def _plain(name: Any) -> str:
    return ".".join(part for part in str(name).split(".") if part not in _WRAPPERS)


def training_options(path: Path, content: Mapping[str, Any]) -> dict[str, Any]:
    """The training's own options where the file has them, else empty. Raises UserError for a training on other paths."""
    given = content.get("args")
    settings = dict(vars(given)) if isinstance(given, argparse.Namespace) else {}
    for key, known in (("path_type", ("linear",)), ("prediction", ("v", "velocity"))):
        value = settings.get(key)
        if value is not None and str(value).lower() not in known:
            raise UserError(f"{path} was trained with {key} {value!r}; only {' or '.join(known)} is a flow on straight paths.")
    return settings


def _check_finite(path: Path, network: str, state: Mapping[str, Tensor]) -> None:
    for name, tensor in state.items():
        if not tensor.isfinite().all():
            raise UserError(f"{path}: {name} of the {network} has values that are not finite.")


def _problems(path: Path, count: int, suite: Suite, options: PublishedOptions) -> dict[str, Any]:
    """Manifest entries on the tasks that the adapter's ids stand for, with the suite's own options."""
    if len(options.problems) != count:
        given = ", ".join(options.problems)
        raise UserError(f"{path}: problems: the adapter has {count}, to be named in their order; got {given}.")
    tasks = {name: suite.task(name, {}) for name in options.problems}
    return {"problems": list(tasks), "problem_options": {name: dump(task.options) for name, task in tasks.items()}}
