"""Public checkpoints into this project's own format and convention: t = 1 is noise, and u predicts z - x.

A network trained with t = 0 as noise becomes u(x,t,r) = -net(x, 1-t, 1-r) by its weights alone, so that nothing later has to
know where they came from. SiT (willisma/SiT) has t = 0 as noise and a head with learned sigma; REPA and DMF have t = 1 as noise
and no such head; VFM's release starts from SiT's weights and keeps both. All feed the embedder with t itself, not 1000 t.

DiT's published weights have SiT's layout to the last shape but predict noise: no check can tell, so do not convert them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from vfmbench.errors import UserError
from vfmbench.files import locked_directory
from vfmbench.interfaces import Suite
from vfmbench.models.adapter_layout import convert_adapter
from vfmbench.models.sit import WIDTHS, SiT, time_frequencies
from vfmbench.options import Options, dump
from vfmbench.weights.checkpoints import Checkpoint, StateDict, check_layout, read_checkpoint, shape_of
from vfmbench.weights.store import WeightStore

# What the adapter of VFM's release calls 0 to 5, in our names.
PUBLISHED_PROBLEMS = ("denoise", "inpaint_random", "inpaint_box", "super_resolution", "gaussian_deblur", "motion_deblur")

# Parameters that only their training needed: REPA's projection heads, DMF's weighting of its loss.
TRAINING_ONLY = ("projectors.", "logvar_linear.")


class ConversionOptions(Options):
    """What no shape in the file tells. None and `auto`: as the published checkpoints have it."""

    time_convention: Literal["auto", "noise_at_one", "noise_at_zero"] = Field(
        "auto", description="of the file; auto: noise at t = 0 with a learned-sigma head, at t = 1 without"
    )
    dmf_depth: int | None = Field(None, ge=1, description="blocks modulated by t; null: the file's own, else by size")
    num_heads: int | None = Field(None, ge=1, description="attention heads; null: SiT's rule by width")
    problems: tuple[str, ...] = Field(PUBLISHED_PROBLEMS, description="tasks that the adapter's problem ids stand for")
    part: Literal["all", "flow"] = Field("all", description="flow: leave out the adapter and write the flow map alone")
    licence: str = Field("unknown", description="of the weights, for the manifest")


@dataclass(frozen=True)
class Conversion:
    """What was written: the file's name in the store, its manifest entry, and where."""

    name: str
    entry: dict[str, Any]
    path: Path

    def report(self) -> list[str]:
        """Lines for the user: what was found in the source, what was taken and what was assumed."""
        lines = [f"{key.replace('_', ' ')}: {value}" for key, value in self.entry["source"].items()]
        shapes = [f"{part}: {architecture}" for part, architecture in self.entry["architecture"].items()]
        return [*lines, *shapes, f"wrote {self.path}"]


def convert(source: Path, destination: Path, suite: Suite, options: ConversionOptions) -> Conversion:
    """Writes a public checkpoint into the weights folder `destination`, as `vfm` if it holds an adapter and as `flow` if not.

    Numbers keep the precision of the source.

    Raises:
        UserError: the file cannot be read or does not fit the suite, or the folder cannot be written.
    """
    checkpoint = read_checkpoint(source)
    flow, architecture, notes = convert_flow(checkpoint, suite, options)
    tensors = {f"flow.{name}": tensor for name, tensor in flow.items()}
    entry: dict[str, Any] = {"architecture": {"flow": architecture}}
    name = "flow"
    if checkpoint.adapter and options.part == "all":
        name = "vfm"
        adapter, entry["architecture"]["adapter"] = convert_adapter(
            source, checkpoint.adapter, suite.image_shape[1], suite.latent_shape[1]
        )
        tensors |= {f"adapter.{name}": tensor for name, tensor in adapter.items()}
        entry |= _problems(source, entry["architecture"]["adapter"]["num_problems"], suite, options)
    taken = {part: where for part, where in checkpoint.taken.items() if part == "flow" or name == "vfm"}
    entry |= {
        "inputs": {"checkpoint": checkpoint.sha256},
        "source": {
            "file": source.name,
            "sha256": checkpoint.sha256,
            "taken": taken,
            "step": checkpoint.step,
            **notes,
            "licence": options.licence,
        },
    }
    with locked_directory(destination):
        WeightStore(destination, "").save(name, tensors, entry, dtype=None)
    return Conversion(name, entry, destination / f"{name}.safetensors")


def convert_flow(
    checkpoint: Checkpoint, suite: Suite, options: ConversionOptions
) -> tuple[StateDict, dict[str, Any], dict[str, Any]]:
    """The flow map's state dict in our convention, keyword arguments of `SiT` that it fits, and notes on what was done.

    Raises UserError if it is not a SiT for the suite's latents and classes.
    """
    path = checkpoint.path
    state = {name: tensor for name, tensor in checkpoint.flow.items() if not name.startswith(TRAINING_ONLY)}
    left_out = sorted(checkpoint.flow.keys() - state.keys())
    architecture, depth_source = _architecture(checkpoint, suite, options)
    channels, patch = architecture["in_channels"], architecture["patch_size"]

    rows = shape_of(path, state, "final_layer.linear.weight", 2)[0]
    learned_sigma = rows == 2 * channels * patch**2
    if learned_sigma:
        for name in ("final_layer.linear.weight", "final_layer.linear.bias"):
            if name in state and len(state[name]) == rows:
                state[name] = _without_sigma(state[name], channels)
    table = "y_embedder.embedding_table.weight"
    null_class = shape_of(path, state, table, 2)[0] != suite.num_classes
    if not null_class:
        state[table] = torch.cat([state[table], state[table].mean(0, keepdim=True)])

    check_layout(path, f"a SiT for the suite {suite.name}", state, _expected_shapes(path, architecture))

    convention = options.time_convention
    if convention == "auto":
        convention = "noise_at_zero" if learned_sigma else "noise_at_one"
    if convention == "noise_at_zero":
        state = reverse_time(state)
    notes = {
        "time_convention": convention,
        "learned_sigma": learned_sigma,
        "null_class": "in the file" if null_class else "not in the file: the mean of all classes stands for it, untrained",
        "dmf_depth": depth_source,
        "left_out": left_out,
    }
    return state, architecture, notes


def reverse_time(state: Mapping[str, Tensor]) -> StateDict:
    """Weights of -net(x, 1-t, 1-r), exact up to rounding.

    The time features of 1-t are those of t, turned by the fixed angles w: cos(w - wt) = cos(w) cos(wt) + sin(w) sin(wt) and
    sin(w - wt) = sin(w) cos(wt) - cos(w) sin(wt). The embedder's first layer takes up the turn, the last layer the sign.
    """
    name = "t_embedder.mlp.0.weight"
    weight = state[name]
    on_cos, on_sin = weight.double().chunk(2, dim=1)
    angle = time_frequencies(weight.shape[1]).double()
    cos, sin = angle.cos(), angle.sin()
    turned = torch.cat([on_cos * cos + on_sin * sin, on_cos * sin - on_sin * cos], dim=1)
    return {
        **state,
        # A half-precision weight would be rounded a second time.
        name: turned.to(torch.promote_types(weight.dtype, torch.float32)),
        **{f"final_layer.linear.{part}": -state[f"final_layer.linear.{part}"] for part in ("weight", "bias")},
    }


def _without_sigma(parameter: Tensor, channels: int) -> Tensor:
    """The rows that give the velocity: of each pixel of a patch, the first `channels` of its 2 * channels."""
    return parameter.unflatten(0, (-1, 2 * channels))[:, :channels].flatten(0, 1)


def _architecture(checkpoint: Checkpoint, suite: Suite, options: ConversionOptions) -> tuple[dict[str, Any], str]:
    """Keyword arguments of `SiT` by the parameters' shapes, and where dmf_depth was found."""
    path, state = checkpoint.path, checkpoint.flow
    width, channels, patch, _ = shape_of(path, state, "x_embedder.proj.weight", 4)
    size = math.isqrt(shape_of(path, state, "pos_embed", 3)[1]) * patch
    if (channels, size, size) != tuple(suite.latent_shape):
        wanted = "x".join(map(str, suite.latent_shape))
        raise UserError(f"{path} is for latents of {channels}x{size}x{size}; those of the suite {suite.name} are {wanted}.")
    blocks = [name.split(".")[1] for name in state if name.startswith("blocks.")]
    depth = 1 + max((int(block) for block in blocks if block.isdigit()), default=-1)
    known = next((row for row in WIDTHS.values() if row["hidden_size"] == width), None)
    heads = options.num_heads or (known["num_heads"] if known else None)
    if heads is None:
        raise UserError(f"{path}: num_heads is needed, as SiT has no network of width {width}.")
    dmf_depth, where = _dmf_depth(checkpoint, depth, known, options)
    return {
        "input_size": size,
        "patch_size": patch,
        "in_channels": channels,
        "hidden_size": width,
        "depth": depth,
        "dmf_depth": dmf_depth,
        "num_heads": heads,
        "mlp_ratio": shape_of(path, state, "blocks.0.mlp.fc1.weight", 2)[0] / width,
        "num_classes": suite.num_classes,
    }, where


def _expected_shapes(path: Path, architecture: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Shapes of the parameters of `SiT(**architecture)`; one block stands for all, as a whole network takes seconds to make."""
    depth = architecture["depth"]
    if architecture["dmf_depth"] > depth:
        raise UserError(f"{path}: dmf_depth must be between 1 and {depth}, the number of blocks.")
    try:
        network = SiT(**{**architecture, "depth": 1, "dmf_depth": 1})
    except ValueError as error:
        raise UserError(f"{path}: {error}.") from error
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    first = {name: shapes.pop(name) for name in list(shapes) if name.startswith("blocks.0.")}
    blocks = {f"blocks.{block}.{name.removeprefix('blocks.0.')}": first[name] for block in range(depth) for name in first}
    return shapes | blocks


def _dmf_depth(
    checkpoint: Checkpoint, depth: int, known: Mapping[str, int] | None, options: ConversionOptions
) -> tuple[int, str]:
    if options.dmf_depth is not None:
        return options.dmf_depth, "as stated"
    own = checkpoint.settings.get("dmf_depth")
    if isinstance(own, int) and own > 0:
        # In the published code a depth beyond the last block is no error.
        return min(own, depth), "from the training's options in the file"
    if known is not None and known["depth"] == depth:
        return known["dmf_depth"], "assumed by size; without effect on a plain SiT at r = t"
    return max(1, round(2 * depth / 3)), "assumed as two thirds of the depth; without effect on a plain SiT at r = t"


def _problems(path: Path, count: int, suite: Suite, options: ConversionOptions) -> dict[str, Any]:
    """Manifest entries on the tasks that the adapter's ids stand for, with the suite's own options."""
    if len(options.problems) != count:
        given = ", ".join(options.problems)
        raise UserError(f"{path}: problems: the adapter has {count}, to be named in their order; got {given}.")
    tasks = {name: suite.task(name, {}) for name in options.problems}
    return {"problems": list(tasks), "problem_options": {name: dump(task.options) for name, task in tasks.items()}}
