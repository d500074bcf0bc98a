"""Public checkpoints of others, read safely: `.pt` files of SiT, REPA, DMF and VFM, and safetensors, to plain state dicts.

Layouts: SiT and REPA save {"model", "ema", ...} or the bare state dict of the average, DMF the same; VFM (the authors' release)
saves {"model", "adapter_model", "ema", "ema_adapter", ...}. All but the bare ones also hold the `argparse.Namespace` of the
training's command line. What is read is still in its author's convention; `vfmbench.weights.conversion` puts it into ours.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from vfmbench.errors import UserError
from vfmbench.files import file_sha256

StateDict = dict[str, Tensor]

# The first key that is there is taken: an average of the weights samples better than the weights themselves.
FLOW_KEYS = ("ema", "model", "state_dict")
ADAPTER_KEYS = ("ema_adapter", "adapter_model")

# Names that tell a state dict of each kind from any other mapping.
_FLOW_MARK, _ADAPTER_MARK = "x_embedder.proj.weight", "conv_in.weight"
# What DistributedDataParallel and torch.compile add to names.
_WRAPPERS = {"module", "_orig_mod"}

_SHOWN = 4
# Part of a name -> what a network with such parameters is.
_OTHER_NETWORKS = {
    "q_norm": "it normalises queries and keys (qk-norm), which this SiT does not; DMF's 512x512 models do",
    "decoder_blocks": "it is an early REPA layout with separate decoder blocks",
    "w12": "its MLPs are gated (SwiGLU), as LightningDiT's",
    "r_embedder": "it embeds r by parameters of its own, which the decoupled form (DMF) has not",
    "cross_attn": "it is conditioned on text",
}


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds.

    Attributes:
        flow, adapter: state dicts in their author's names and convention; `adapter` is empty where there is none.
        taken: which entry of the file each of them is, e.g. {"flow": "ema"}; "the whole file" for a bare state dict.
        settings: the training's own options where the file has them, else empty.
        step: of the training, if the file says so.
    """

    path: Path
    sha256: str
    flow: StateDict
    adapter: StateDict
    taken: dict[str, str]
    settings: dict[str, Any]
    step: int | None


def read_checkpoint(path: Path) -> Checkpoint:
    """Reads a file by its content, whatever its suffix. Nothing is unpickled but tensors, plain values and argparse.Namespace.

    Raises:
        UserError: the file cannot be read, is damaged, holds other objects or no SiT, or was trained on another path than the
            straight one.
    """
    try:
        with path.open("rb") as stream:
            head = stream.read(9)
        content = _tensors(path) if head[8:] == b"{" else _unpickled(path, zipped=head.startswith(b"PK\x03\x04"))
        sha256 = file_sha256(path)
    except OSError as error:
        raise UserError(f"Cannot read the checkpoint {path}: {error.strerror or error}.") from error
    if not isinstance(content, Mapping):
        raise UserError(f"{path} holds a {type(content).__name__}, not a mapping from names to tensors.")
    return _sort(path, sha256, content)


def shape_of(path: Path, state: Mapping[str, Tensor], name: str, dimensions: int) -> tuple[int, ...]:
    """Shape of a parameter that the architecture is read from. Raises UserError if it is missing or of other dimensions."""
    if name not in state:
        raise UserError(f"{path} has another layout than the published networks: {name} is missing.")
    shape = tuple(state[name].shape)
    if len(shape) != dimensions:
        raise UserError(f"{path} has another layout than the published networks: {name} has the shape {shape}.")
    return shape


def check_layout(path: Path, what: str, found: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]]) -> None:
    """Raises one UserError that says which names are missing, unexpected or of another shape, and what that suggests."""
    missing = sorted(expected.keys() - found.keys())
    unexpected = sorted(found.keys() - expected.keys())
    shapes = [
        f"{name} {tuple(found[name].shape)} instead of {expected[name]}"
        for name in expected
        if name in found and tuple(found[name].shape) != expected[name]
    ]
    problems = [
        f"{len(names)} {kind}: {', '.join(names[:_SHOWN])}{', ...' if len(names) > _SHOWN else ''}"
        for kind, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
        if names
    ]
    if not problems:
        return
    hints = [text for part, text in _OTHER_NETWORKS.items() if any(part in name for name in unexpected)]
    hint = f" Going by the names, {'; and '.join(hints)}." if hints else ""
    raise UserError(f"{path} is not {what}; parameters {'; '.join(problems)}.{hint}")


def _tensors(path: Path) -> StateDict:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise UserError(f"{path} is damaged or only part of a safetensors file ({error}).") from None


def _unpickled(path: Path, zipped: bool) -> Any:
    """The content of a file of `torch.save`; of the zip format, tensors stay on disk until they are used."""
    if path.stat().st_size == 0:
        raise UserError(f"{path} is empty.")
    # torch.load takes a path of this suffix for safetensors, whatever is in it, but can map nothing else than a path.
    mapped = zipped and path.suffix != ".safetensors"
    try:
        with path.open("rb") as stream, torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path if mapped else stream, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # torch.load raises whatever its unpickler and zip reader do
        refused = re.search(r"GLOBAL (\S+)", str(error))
        if refused:
            raise UserError(
                f"{path} holds pickled objects besides tensors ({refused[1]}), which are not loaded: unpickling can run any "
                "code that the file's author chose. Ask for the state dict alone, e.g. as safetensors."
            ) from None
        kind = "a file of torch.save" if zipped else "a file of PyTorch weights or safetensors"
        reason = str(error).partition("\n")[0].partition(". ")[0].strip() or type(error).__name__
        raise UserError(
            f"{path} ({path.stat().st_size:,} bytes) is damaged, only partly downloaded, or not {kind} at all ({reason[:120]})."
        ) from None


def _sort(path: Path, sha256: str, content: Mapping[str, Any]) -> Checkpoint:
    flow, flow_key = _find(content, FLOW_KEYS, _FLOW_MARK)
    adapter, adapter_key = _find(content, ADAPTER_KEYS, _ADAPTER_MARK)
    if any(str(name) == f"flow.{_FLOW_MARK}" for name in content):
        raise UserError(f"{path} is in vfmbench's own format already: use it by weights.path={path.parent}.")
    if not flow:
        held = ", ".join(map(str, list(content)[:8])) or "nothing"
        places = ", ".join(FLOW_KEYS)
        raise UserError(f"{path} holds no SiT: no {_FLOW_MARK}, neither by itself nor in {places}. It has: {held}.")
    for which, state in (("flow map", flow), ("adapter", adapter)):
        for name, tensor in state.items():
            if not torch.isfinite(tensor).all():
                raise UserError(f"{path}: {name} of the {which} has values that are not finite.")
    given = content.get("args")
    settings = dict(vars(given)) if isinstance(given, argparse.Namespace) else {}
    _check_training(path, settings)
    step = next((content[key] for key in ("steps", "step") if isinstance(content.get(key), int)), None)
    taken = {"flow": flow_key, **({"adapter": adapter_key} if adapter else {})}
    return Checkpoint(path, sha256, flow, adapter, taken, settings, step)


def _find(content: Mapping[str, Any], keys: tuple[str, ...], mark: str) -> tuple[StateDict, str]:
    """The first state dict that has a parameter `mark`, under one of the keys or the mapping itself, and where it was."""
    for key, value in [*((key, content.get(key)) for key in keys), ("the whole file", content)]:
        if isinstance(value, Mapping):
            state = {_plain(name): tensor.detach() for name, tensor in value.items() if isinstance(tensor, Tensor)}
            if mark in state:
                return state, key
    return {}, ""


def _plain(name: str) -> str:
    return ".".join(part for part in str(name).split(".") if part not in _WRAPPERS)


def _check_training(path: Path, settings: Mapping[str, Any]) -> None:
    for key, known in (("path_type", ("linear",)), ("prediction", ("v", "velocity"))):
        value = settings.get(key)
        if value is not None and str(value).lower() not in known:
            raise UserError(f"{path} was trained with {key} {value!r}; only {' or '.join(known)} is a flow on straight paths.")
