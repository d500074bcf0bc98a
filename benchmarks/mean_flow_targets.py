"""Which regression target turns a flow-matching network into a one-step map, and which destroy it.

Continues photos64's flow-matching network with half of each batch on flow matching and half on a target for u(x_t,t,r), and
follows the one-step map: its mean squared distance to the 25-step Euler solution of the network it started from, from the same
noise, and the flow-matching loss on the validation patches. Minutes a line on one core.

    python benchmarks/mean_flow_targets.py PHOTOGRAPHS [--steps 150] [--out results/photos64/targets.csv]

Targets: `conditional` and `network`, v - (t-r) du/dt along the pair's or the network's velocity, and `none`, v alone
(`vfmbench.training.mean_flow`); `self`, the network's velocity also in place of v; `lagrangian`, u(f,r,r) + (t-r) du/dr at the
point f = x_t - (t-r) u(x_t,t,r), after Boffi et al. (arXiv 2505.18825); `semigroup`, the mean of two half steps, after shortcut
models (Frans et al., arXiv 2410.12557). Each with and without the adaptive scaling of the losses.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import time
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn

from vfmbench.domains import IMAGES
from vfmbench.models.networks import flow_network
from vfmbench.registry import suites
from vfmbench.training.mean_flow import (
    MeanFlowOptions,
    Tangent,
    adaptive_scale,
    draw_fm_time,
    draw_mean_flow_times,
    flow_matching_loss,
    mean_flow_loss,
)

CPU = torch.device("cpu")
BATCH, EVERY, LEARNING_RATE, TRAINING_PATCHES = 64, 50, 5e-4, 12_000
TANGENTS: tuple[Tangent, ...] = ("conditional", "network", "none")
TARGETS = (*TANGENTS, "self", "lagrangian", "semigroup")


def rows(time: Tensor) -> Tensor:
    return time[:, None, None, None]


def labels(x: Tensor) -> Tensor:
    return torch.zeros(len(x), dtype=torch.int64)


def loss_of(target: str, network: nn.Module, x: Tensor, z: Tensor, t: Tensor, r: Tensor) -> Tensor:
    """The squared distance of u(x_t,t,r) to a target, [B]."""
    for tangent in TANGENTS:
        if target == tangent:
            return mean_flow_loss(network, x, z, t, r, labels(x), 0, 0.0, tangent)
    x_t, label = torch.lerp(x, z, rows(t)), labels(x)

    def average(x: Tensor, t: Tensor, r: Tensor) -> Tensor:
        return network(x, t, r, label, fused_attention=False).float()

    with torch.no_grad():
        if target == "self":
            v = average(x_t, t, t)
            directions = (v, torch.ones_like(t), torch.zeros_like(r))
            wanted = v - rows(t - r) * torch.func.jvp(average, (x_t, t, r), directions)[1]
        elif target == "lagrangian":
            u, derivative = torch.func.jvp(lambda r: average(x_t, t, r), (r,), (torch.ones_like(r),))[:2]
            wanted = average(x_t - rows(t - r) * u, r, r) + rows(t - r) * derivative
        else:
            middle = (t + r) / 2
            first = average(x_t, t, middle)
            wanted = (first + average(x_t - rows(t - middle) * first, middle, r)) / 2
    return (average(x_t, t, r) - wanted).square().flatten(1).mean(1)


def curve(target: str, adaptive: bool, start: nn.Module, train: Tensor, validation: Tensor, steps: int) -> list[dict]:
    """A row every 50 steps."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    noise, times = torch.randn(validation.shape, generator=generator), torch.rand(len(validation), generator=generator)
    reference = noise.clone()
    network, averaged = copy.deepcopy(start), copy.deepcopy(start)
    one, zero = torch.ones(len(noise)), torch.zeros(len(noise))

    @torch.no_grad()
    def row(step: int, losses: tuple[float, float]) -> dict:
        x_t = torch.lerp(validation, noise, rows(times))
        matching = (averaged(x_t, times, times, labels(x_t)) - (noise - validation)).square().mean().item()
        distance = (noise - averaged(noise, one, zero, labels(noise)) - reference).square().mean().item()
        result = {"target": target, "adaptive": adaptive, "step": step, "distance": distance, "flow_matching": matching}
        return {**result, "loss_matching": losses[0], "loss_target": losses[1]}

    with torch.no_grad():
        for step in range(25):
            reference -= start(reference, one * (1 - step / 25), one * (1 - step / 25), labels(noise)) / 25
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(parameters, LEARNING_RATE, (0.9, 0.95), weight_decay=0)
    options, half = MeanFlowOptions(one_step_share=0.25), BATCH // 2
    result = [row(0, (float("nan"), float("nan")))]
    for step in range(1, steps + 1):
        x = train[torch.randint(len(train), (BATCH,), generator=generator)]
        z = torch.randn(x.shape, generator=generator)
        t, (later, r) = draw_fm_time(half, options, generator), draw_mean_flow_times(BATCH - half, options, generator)
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
            matching = flow_matching_loss(network, x[:half], z[:half], t, labels(t), 0, 0.0)
            wanted = loss_of(target, network, x[half:], z[half:], later, r)
        losses = torch.cat([matching, wanted])
        optimiser.zero_grad()
        (adaptive_scale(losses) if adaptive else losses).mean().backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        for mean, parameter in zip(averaged.parameters(), network.parameters(), strict=True):
            mean.data.lerp_(parameter.data, 0.03)
        if step % EVERY == 0:
            result.append(row(step, (matching.mean().item(), wanted.mean().item())))
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photographs", help="folder of training photographs")
    parser.add_argument("--weights", metavar="DIR", help="other weights of photos64 than the shipped ones")
    parser.add_argument("--targets", default=",".join(TARGETS))
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--out", type=Path, default=Path("results/photos64/targets.csv"))
    options = parser.parse_args()
    weights = {"path": options.weights} if options.weights else {}
    suite = suites.get("photos64")({"data": {"path": options.photographs}, "weights": weights})
    stored = suite.weights.load("flow_matching")
    start = flow_network(suite.latent_shape, stored.entry["architecture"]["flow"])
    start.load_state_dict(stored.part("flow"))
    codec, split = suite.backbone(CPU).codec, suite.dataset("train")
    with torch.no_grad():
        chosen = torch.randperm(len(split), generator=torch.Generator().manual_seed(0))[:TRAINING_PATCHES]
        train = torch.cat([codec.encode(IMAGES.restore(split.load(part.tolist())[0])) for part in chosen.split(500)])
        validation = codec.encode(IMAGES.restore(suite.dataset("validation").load(range(96))[0]))
    table: list[dict] = []
    for target, adaptive in itertools.product(options.targets.split(","), (True, False)):
        begin = time.perf_counter()
        scaling = "adaptive" if adaptive else "plain"
        table += curve(target, adaptive, start, train, validation, options.steps)
        first, last = table[-1 - options.steps // EVERY], table[-1]
        print(
            f"{target:12s} {scaling:9s} distance {first['distance']:.3f} -> {last['distance']:.3f}  "
            f"flow matching {first['flow_matching']:.3f} -> {last['flow_matching']:.3f}  {time.perf_counter() - begin:.0f} s",
            flush=True,
        )
        options.out.parent.mkdir(parents=True, exist_ok=True)
        pd.DataFrame(table).round(4).to_csv(options.out, index=False)


if __name__ == "__main__":
    main()
