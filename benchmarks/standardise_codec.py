"""Gives a trained codec of photos64 standardised latents, without training it again.

    python benchmarks/standardise_codec.py PHOTOGRAPHS --out DIR [--weights DIR] [--images 8192]

Measures mean and deviation of every channel of the latents of training patches, and writes the codec with these constants to
DIR, beside the feature space as it is: a folder in which `vfmbench train flow_matching --suite photos64 --out DIR` starts.
The manifest says what was measured; a codec that is trained with `architecture: {standardised: true}` needs none of this.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from vfmbench.domains import IMAGES
from vfmbench.interfaces import Suite
from vfmbench.models.patch_autoencoder import PatchDecoder, PatchEncoder, patch_autoencoder, standardise
from vfmbench.provenance import git_commit
from vfmbench.registry import suites


def psnr(encoder: PatchEncoder, decoder: PatchDecoder, images: torch.Tensor) -> float:
    """Mean over images of the reconstruction's, in dB."""
    decoded = torch.cat([decoder(encoder(piece)) for piece in images.split(256)])
    return (10 * torch.log10(4 / (decoded.clamp(-1, 1) - images).square().flatten(1).mean(1))).mean().item()


def everything(suite: Suite) -> torch.Tensor:
    """All test images."""
    dataset = suite.dataset("test")
    return IMAGES.restore(dataset.load(range(len(dataset)))[0])


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photographs", type=Path, help="folder of training photographs")
    parser.add_argument("--weights", type=Path, metavar="DIR", help="other weights of photos64 than the shipped ones")
    parser.add_argument("--images", type=int, default=8192, help="training patches, at even distances")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    weights = {"path": options.weights} if options.weights else {}
    suite = suites.get("photos64")({"data": {"path": options.photographs}, "weights": weights})
    stored = suite.weights.load("codec")
    before = stored.entry["architecture"]["codec"]
    architecture = {**before, "standardised": True}
    old, new = patch_autoencoder(before), patch_autoencoder(architecture)
    for name, network, target in zip(("encoder", "decoder"), old, new, strict=True):
        stored.fill(network, name)
        target.load_state_dict({**target.state_dict(), **network.state_dict()})
    train = suite.dataset("train")
    images = IMAGES.restore(train.load(torch.linspace(0, len(train) - 1, options.images).long().tolist())[0])
    standardise(*new, images)
    test = {"psnr": everything(suites.get("photos64")({})), "psnr/held_out": everything(suite)}
    constants = new[0].standardisation
    assert constants is not None
    entry = {
        **{key: value for key, value in stored.entry.items() if key not in ("file", "sha256")},
        "architecture": {"codec": architecture},
        "standardised": {
            "command": " ".join(["python", *sys.argv]),
            "commit": git_commit(),
            "from codec": stored.sha256,
            "training data": train.sha256,
            "images": options.images,
            "mean": [round(value, 5) for value in constants.mean.tolist()],
            "std": [round(value, 5) for value in constants.std.tolist()],
        },
        # The first on the embedded photographs, as before.
        "test": {name: round(psnr(*new, images), 3) for name, images in test.items()},
        "test before": {name: round(psnr(*old, images), 3) for name, images in test.items()},
    }
    store = suite.with_weights(options.out).weights
    tensors = {
        f"{name}.{key}": value
        for name, end in zip(("encoder", "decoder"), new, strict=True)
        for key, value in end.state_dict().items()
    }
    store.save("codec", tensors, entry)
    store.copy("features", suite.weights)
    print(f"mean {constants.mean.tolist()}\nstd  {constants.std.tolist()}\n{entry['test']}, before {entry['test before']}")


if __name__ == "__main__":
    main()
