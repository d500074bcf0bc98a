"""The layout of SiT's published networks, and their weights in our convention: t = 1 is noise, and u predicts z - x.

A network trained with t = 0 as noise becomes u(x,t,r) = -net(x, 1-t, 1-r) by its weights alone, so that nothing later has to
know where they came from. SiT (willisma/SiT) has t = 0 as noise and a head with learned sigma; REPA and DMF have t = 1 as noise
and no such head; VFM's release starts from SiT's weights and keeps both. All feed the embedder with t itself, not 1000 t.

DiT's published weights have SiT's layout to the last shape but predict noise: no check can tell, so do not convert them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vfmbench.errors import UserError
from vfmbench.interfaces import Suite
from vfmbench.methods.published import PublishedOptions
from vfmbench.models.sit import WIDTHS, SiT, time_frequencies
from vfmbench.weights.conversion import check_layout, shape_of

# Parameters that only their training needed: REPA's projection heads, DMF's weighting of its loss.
TRAINING_ONLY = ("projectors.", "logvar_linear.")

# Part of a name -> what a network with such parameters is.
_OTHER_NETWORKS = {
    "q_norm": "it normalises queries and keys (qk-norm), which this SiT does not; DMF's 512x512 models do",
    "decoder_blocks": "it is an early REPA layout with separate decoder blocks",
    "w12": "its MLPs are gated (SwiGLU), as LightningDiT's",
    "r_embedder": "it embeds r by parameters of its own, which the decoupled form (DMF) has not",
    "cross_attn": "it is conditioned on text",
}


def convert_flow(
    path: Path, published: Mapping[str, Tensor], trained_dmf_depth: object, suite: Suite, options: PublishedOptions
) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, Any]]:
    """The flow map's state dict in our convention, keyword arguments of `SiT` that it fits, and notes on what was done.

    Args:
        path: for messages.
        trained_dmf_depth: what the training's own options call dmf_depth; None where the file has none.

    Raises UserError if it is not a SiT for the suite's latents and classes.
    """
    state = {name: tensor for name, tensor in published.items() if not name.startswith(TRAINING_ONLY)}
    left_out = sorted(published.keys() - state.keys())
    architecture, depth_source = _architecture(path, published, trained_dmf_depth, suite, options)
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

    check_layout(path, f"a SiT for the suite {suite.name}", state, _expected_shapes(path, architecture), _OTHER_NETWORKS)

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


def reverse_time(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
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


def _architecture(
    path: Path, state: Mapping[str, Tensor], trained_dmf_depth: object, suite: Suite, options: PublishedOptions
) -> tuple[dict[str, Any], str]:
    """Keyword arguments of `SiT` by the parameters' shapes, and where dmf_depth was found."""
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
    dmf_depth, where = _dmf_depth(trained_dmf_depth, depth, known, options)
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


def _dmf_depth(trained: Any, depth: int, known: Mapping[str, int] | None, options: PublishedOptions) -> tuple[int, str]:
    if options.dmf_depth is not None:
        return options.dmf_depth, "as stated"
    if isinstance(trained, int) and trained > 0:
        # In the published code a depth beyond the last block is no error.
        return min(trained, depth), "from the training's options in the file"
    if known is not None and known["depth"] == depth:
        return known["dmf_depth"], "assumed by size; without effect on a plain SiT at r = t"
    return max(1, round(2 * depth / 3)), "assumed as two thirds of the depth; without effect on a plain SiT at r = t"
