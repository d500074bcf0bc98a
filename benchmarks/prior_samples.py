"""How good photos64's prior is: samples of N(0, I) with few and many steps against held-out patches of its own photographs.

    python benchmarks/prior_samples.py PHOTOGRAPHS --weights DIR [--stage flow_matching] [--out results/photos64/prior]

Writes OUT.csv, a row for each number of steps with the Frechet distance in photonet's features to the held-out patches (the
test split of the folder, `data.held_out`), and OUT.png, one row of samples for each from the same noise, held-out patches last.
The row `training patches` is a floor: what real patches of the photographs that are trained on have.

A network of the stage `flow_matching` is a velocity field and takes Euler steps; any other is a flow map and takes its own, and
has its Euler steps as a second kind. Of a training that still runs, DIR's checkpoint is taken and its averaged weights.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

import pandas as pd
import torch
from PIL import Image
from torch import Tensor, nn

from vfmbench.domains import IMAGES
from vfmbench.interfaces import Suite
from vfmbench.metrics.frechet import frechet_distance
from vfmbench.models.networks import flow_network
from vfmbench.randomness import PhiloxNoise
from vfmbench.registry import suites
from vfmbench.training.flow import sit_architecture

CPU = torch.device("cpu")
BATCH, SHOWN = 128, 16


def averaged_network(suite: Suite, stage: str) -> tuple[nn.Module, int]:
    """The stage's averaged flow network and the number of updates it has had."""
    path = suite.weights.directory / stage / "checkpoint.pt"
    if path.exists():
        state = torch.load(path, map_location=CPU, weights_only=True)
        architecture = sit_architecture(suite, state["options"]["architecture"])
        network = flow_network(suite.latent_shape, architecture)
        network.load_state_dict(state["ema"]["flow"])
        return network.eval(), state["step"]
    stored = suite.weights.load(stage)
    network = flow_network(suite.latent_shape, stored.entry["architecture"]["flow"])
    stored.fill(network, "flow")
    return network.eval(), stored.entry["training"]["options"]["steps"]


def sampled(network: nn.Module, z: Tensor, steps: int, euler: bool) -> Tensor:
    """Latents of noise [B,c,h,w] in equal steps."""
    times = torch.linspace(1, 0, steps + 1)
    label = torch.zeros(len(z), dtype=torch.int64)
    for t, r in itertools.pairwise(times):
        later, earlier = t.expand(len(z)), (t if euler else r).expand(len(z))
        z = z - (t - r) * network(z, later, earlier, label)
    return z


def grid(rows: list[Tensor]) -> Image.Image:
    """uint8 images [B,3,H,W] of each row side by side, enlarged twice."""
    whole = torch.cat([torch.cat(list(row), 2) for row in rows], 1)
    picture = Image.fromarray(whole.permute(1, 2, 0).numpy())
    return picture.resize((2 * picture.width, 2 * picture.height), Image.Resampling.NEAREST)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photographs", type=Path)
    parser.add_argument("--weights", type=Path, metavar="DIR", help="other weights of photos64 than the shipped ones")
    parser.add_argument("--stage", default="flow_matching")
    parser.add_argument("--steps", default="1,2,4,25")
    parser.add_argument("--samples", type=int, default=1024)
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32", help="of the flow network's passes")
    parser.add_argument("--out", type=Path, default=Path("results/photos64/prior"))
    options = parser.parse_args()
    weights = {"path": options.weights} if options.weights else {}
    suite = suites.get("photos64")({"data": {"path": options.photographs}, "weights": weights})
    network, updates = averaged_network(suite, options.stage)
    codec, space = suite.backbone(CPU).codec, suite.feature_space("photonet", CPU)
    held_out = suite.dataset("test").load(range(options.samples))[0]
    truth = space.features(held_out).double()
    train = suite.dataset("train")
    seen = train.load(torch.linspace(0, len(train) - 1, options.samples).long().tolist())[0]
    noise = PhiloxNoise(0, "prior", torch.arange(options.samples)).normal(suite.latent_shape, 0)

    def row(kind: str, steps: int, images: Tensor) -> dict[str, object]:
        distance = frechet_distance(truth, space.features(images).double())[0]
        print(f"{kind:16s} {steps:3d} steps: {distance:.2f}", flush=True)
        return {"stage": options.stage, "updates": updates, "kind": kind, "steps": steps, "fid@photonet": round(distance, 3)}

    table, shown = [row("training patches", 0, seen)], []
    kinds = ["euler"] if options.stage == "flow_matching" else ["map", "euler"]
    for kind in kinds:
        for steps in map(int, options.steps.split(",")):
            with torch.autocast("cpu", torch.bfloat16, enabled=options.precision == "bfloat16"):
                latents = torch.cat([sampled(network, z, steps, kind == "euler") for z in noise.split(BATCH)])
            images = IMAGES.store(torch.cat([codec.decode(part) for part in latents.split(BATCH)]))
            table.append(row(kind, steps, images))
            shown.append(images[:SHOWN])
    options.out.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(table).to_csv(options.out.with_suffix(".csv"), index=False)
    grid([*shown, held_out[:SHOWN]]).save(options.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
