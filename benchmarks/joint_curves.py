"""Curves of several joint trainings in one table and one picture: does the one-step map hold?

Reads what `vfmbench train vfm --out DIR` left in DIR/vfm/curves.csv. The picture shows, for each training, the PSNR of one
one-step sample on the validation patches, averaged over the tasks, its KL term, and the flow loss before any scaling (a running
median: single batches reach many times that).

    python benchmarks/joint_curves.py LABEL=DIR [LABEL=DIR ...] [--out results/photos64/joint_curves]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib
import pandas as pd

matplotlib.use("Agg")
from matplotlib import pyplot as plt

VALIDATION = "validation/"


def curves(label: str, folder: Path) -> pd.DataFrame:
    """Losses of every logged step, and validation numbers where there are any."""
    table = pd.read_csv(folder / "vfm" / "curves.csv")
    table.insert(0, "training", label)
    return table


def draw(table: pd.DataFrame, path: Path) -> None:
    figure, (quality, divergence, loss) = plt.subplots(1, 3, figsize=(15, 5), layout="constrained")
    for label, curve in table.groupby("training", sort=False):
        validated = curve.dropna(subset=[f"{VALIDATION}kl"])
        mean = validated.filter(like=f"{VALIDATION}psnr/").mean(axis=1)
        quality.plot(validated.step, mean, marker=".", label=label)
        divergence.plot(validated.step, validated[f"{VALIDATION}kl"], marker=".")
        loss.plot(curve.step, curve.flow.rolling(9, min_periods=1, center=True).median())
    quality.set(title="PSNR of one sample, mean of the tasks (validation)", xlabel="step", ylabel="dB")
    divergence.set(title="KL(q || N(0,I)) for each entry (validation)", xlabel="step", ylabel="nat")
    loss.set(title="flow loss, unscaled (training)", xlabel="step", yscale="log")
    for axes in (quality, divergence, loss):
        axes.grid(alpha=0.4)
    figure.legend(loc="outside lower center", ncols=2)
    figure.savefig(path, dpi=90)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trainings", nargs="+", metavar="LABEL=DIR")
    parser.add_argument("--out", type=Path, default=Path("results/photos64/joint_curves"), help="without .csv and .png")
    options = parser.parse_args()
    pairs = [training.rpartition("=") for training in options.trainings]
    table = pd.concat([curves(label, Path(folder)) for label, _, folder in pairs])
    options.out.parent.mkdir(parents=True, exist_ok=True)
    table.round(4).to_csv(options.out.with_suffix(".csv"), index=False)
    draw(table, options.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
