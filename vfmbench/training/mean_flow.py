"""Flow-matching and mean-flow losses, per sample.

Sources: flow matching (Lipman et al., arXiv 2210.02747), mean flow (Geng et al., arXiv 2505.13447), decoupled mean flow
(arXiv 2510.24474); the coupling with a noise adapter is Variational Flow Maps (arXiv 2603.07276) eq. 12-19.
"""

from __future__ import annotations

import warnings
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from vfmbench.options import Options
from vfmbench.training.batches import Batch

# torch's own forward-mode code still uses it; users can do nothing about the warning.
warnings.filterwarnings("ignore", message="`torch.jit.script` is deprecated", category=FutureWarning)

Tangent = Literal["conditional", "network", "none"]
Reduction = Literal["mean", "sum"]


class MeanFlowOptions(Options):
    """How times are drawn and how the target is formed; defaults are the paper's image experiments."""

    label_dropout: float = Field(default=0.1, ge=0, le=1, description="share of samples that see the null label")
    guidance_omega: float = Field(
        default=0.5, ge=0, description="model guidance: the target velocity gains omega (u_label - u_null)"
    )
    tangent: Tangent = Field(
        default="conditional",
        description="direction of du/dt in the mean-flow target: the pair's own velocity z - x, as in the paper; the network's "
        "velocity u(x_t,t,t), of which z - x is a noisy sample; or none, a regression of z - x on (x_t, t, r)",
    )
    one_step_share: float = Field(default=0.0, ge=0, le=1, description="share of mean-flow samples at exactly (t, r) = (1, 0)")
    fm_time_mean: float = Field(default=0.0, description="mean of the normal under the sigmoid that draws t for flow matching")
    t_time_mean: float = Field(default=0.4, description="the same for the later time of the mean-flow loss")
    r_time_mean: float = Field(default=-1.2, description="the same for the earlier time")


class CoupledFlowOptions(Options):
    """How (t, r) are drawn where flow matching and mean flow are one loss (VFM appendix B.1)."""

    distinct_share: float = Field(
        default=0.25,
        ge=0,
        le=1,
        description="share of the batch where t and r are the larger and the smaller of two uniforms, else r = t",
    )


def _rows(value: Tensor) -> Tensor:
    return value[:, None, None, None]


def reduced(entries: Tensor, reduction: Reduction) -> Tensor:
    """The mean or the sum over all entries of each row, [B,...] -> [B]."""
    rows = entries.flatten(1)
    return rows.mean(1) if reduction == "mean" else rows.sum(1)


def draw_fm_time(rows: int, options: MeanFlowOptions, generator: torch.Generator) -> Tensor:
    return torch.sigmoid(torch.randn(rows, generator=generator) + options.fm_time_mean)


def draw_mean_flow_times(rows: int, options: MeanFlowOptions, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """t >= r, each [rows]."""
    first = torch.sigmoid(torch.randn(rows, generator=generator) + options.t_time_mean)
    second = torch.sigmoid(torch.randn(rows, generator=generator) + options.r_time_mean)
    one_step = torch.rand(rows, generator=generator) < options.one_step_share
    t = torch.where(one_step, 1.0, torch.maximum(first, second))
    r = torch.where(one_step, 0.0, torch.minimum(first, second))
    return t, r


def draw_coupled_times(rows: int, distinct_share: float, generator: torch.Generator) -> tuple[Tensor, Tensor, int]:
    """t >= r, each [rows], and how many rows from the first on have t > r: all others have r = t."""
    first, second = torch.rand(2, rows, generator=generator)
    t, distinct = torch.maximum(first, second), round(distinct_share * rows)
    return t, torch.cat([torch.minimum(first, second)[:distinct], t[distinct:]]), distinct


def drop_labels(label: Tensor, null_label: int, probability: float, batch: Batch) -> Tensor:
    """The labels of a batch's rows, each replaced by the null label with this probability."""
    return torch.where(batch.uniform() < probability, null_label, label)


def one_step(network: nn.Module, z: Tensor, label: Tensor) -> Tensor:
    """f(z) = z - u(z, 1, 0, label), the flow map from noise to data."""
    one = torch.ones(len(z), device=z.device)
    return z - network(z, one, torch.zeros_like(one), label)


@torch.no_grad()
def guided_velocity(
    network: nn.Module, x_t: Tensor, t: Tensor, v: Tensor, label: Tensor, null_label: int, omega: float
) -> Tensor:
    """v + omega (u(x_t,t,t,label) - u(x_t,t,t,null)), unchanged for samples whose label was dropped."""
    if omega == 0:
        return v
    null = torch.full_like(label, null_label)
    both = network(torch.cat([x_t, x_t]), torch.cat([t, t]), torch.cat([t, t]), torch.cat([label, null]))
    conditional, unconditional = both.chunk(2)
    return torch.where(_rows(label != null_label), v + omega * (conditional - unconditional), v)


def flow_matching_loss(
    network: nn.Module,
    x: Tensor,
    z: Tensor,
    t: Tensor,
    label: Tensor,
    null_label: int,
    omega: float,
    reduction: Reduction = "mean",
) -> Tensor:
    """|u(x_t,t,t) - v|^2, [B]; the gradient also reaches x and z, through x_t only."""
    x_t, v = torch.lerp(x, z, _rows(t)), z - x
    target = guided_velocity(network, x_t.detach(), t, v.detach(), label, null_label, omega)
    return reduced((network(x_t, t, t, label) - target).square(), reduction)


def mean_flow_loss(
    network: nn.Module,
    x: Tensor,
    z: Tensor,
    t: Tensor,
    r: Tensor,
    label: Tensor,
    null_label: int,
    omega: float,
    tangent: Tangent = "conditional",
    reduction: Reduction = "mean",
    distinct: int | None = None,
) -> Tensor:
    """|u(x_t,t,r) - sg(v - (t - r) du/dt)|^2, [B], with du/dt along (w, 1, 0) by forward mode.

    The guided velocity v serves as target; `tangent` says what w is. Both choices have the same expectation given x_t where the
    network's velocity has converged, because du/dt is linear in w; the network's has no variance given x_t (improved mean flow,
    Geng et al., arXiv 2512.02012). The gradient reaches x and z through x_t, never through the target.

    Args:
        distinct: number of rows, from the first on, with r < t; where r = t the target is v. None: all.
    """
    x_t = torch.lerp(x, z, _rows(t))
    with torch.no_grad():
        v = guided_velocity(network, x_t, t, z - x, label, null_label, omega)
        target = v
        rows = slice(distinct)
        if tangent != "none" and distinct != 0:
            direction = v[rows] if tangent == "conditional" else network(x_t[rows], t[rows], t[rows], label[rows]).to(x_t.dtype)
            inputs = (x_t.detach()[rows], t[rows], r[rows])
            derivative = torch.func.jvp(
                lambda x, t, r: network(x, t, r, label[rows], fused_attention=False),
                inputs,
                (direction, torch.ones_like(inputs[1]), torch.zeros_like(inputs[2])),
            )[1]
            target = torch.cat([v[rows] - _rows(t - r)[rows] * derivative, v[len(derivative) :]])
    return reduced((network(x_t, t, r, label) - target).square(), reduction)


def adaptive_scale(loss: Tensor, power: float = 1.0, constant: float = 0.01, size: Tensor | None = None) -> Tensor:
    """loss / stopgrad(loss + c)^p, entry by entry (VFM section 3.4).

    Args:
        size: stands for the loss in the denominator: for a part of a batch, the loss of the whole.
    """
    return loss / ((loss if size is None else size).detach() + constant) ** power
