"""What batching and half precision do to sampling: time per step, and whether metrics notice.

    python benchmarks/sampling.py [--batch 16] [--images 180] [--threads 1]

First table: milliseconds per sample and step, one image after the other and all in one batch. Second: VFM and Latent DPS
(tuned) on Gaussian deblurring, validation images of the suite digits, 10 samples each, in float32 and in bfloat16 from the same
noise; a difference has its paired 95 % bootstrap interval over images. Quote ratios: times on a shared machine vary by two
between runs.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from vfmbench import RunConfig
from vfmbench.randomness import PhiloxNoise, sample_rows
from vfmbench.results.stored import StoredRun
from vfmbench.running.plan import plan
from vfmbench.running.runner import Run, run

TASK = "gaussian_deblur"
# Steps enough for the time of one to stand out from what a call costs besides.
STEPS = {"vfm": 1, "latent_dps": 10, "psld": 10, "mpgd": 10, "flowchef": 10, "flowdps": 10, "latent_daps": 3}
PRECISIONS = ("float32", "bfloat16")
METRICS = {"psnr": "psnr", "crps@pixel": "crps", "crps@digitnet": "crps", "fid@digitnet": "fid"}
RESAMPLES = 2000


def seconds(call: Callable[[], object], repeats: int = 3) -> float:
    """The best of several calls, after one that does not count."""
    call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def milliseconds(method: str, precision: str, batch: int, out: Path) -> tuple[float, float]:
    """Per sample and step: one image after the other, and all in one batch."""
    options = {"method": {"steps": STEPS[method]}}
    checked = plan(
        RunConfig(method=method, task=TASK, options=options, split="validation", precision=precision, out=out)  # type: ignore[arg-type]
    )
    sampler = checked.sampler()

    def draw(positions: list[int]) -> None:
        _, measurement = checked.measure(positions)
        sampler.sample(measurement, 1, PhiloxNoise(0, "sampling", *sample_rows(measurement.index, range(1))))

    def draw_one_by_one() -> None:
        for row in range(batch):
            draw([row])

    unit = 1e3 / batch / STEPS[method]
    return seconds(draw_one_by_one) * unit, seconds(lambda: draw(list(range(batch)))) * unit


def batching(batch: int, out: Path) -> None:
    print(f"{'method':12} {'precision':9} {'one by one, ms':>15} {f'batch of {batch}, ms':>18} {'ratio':>6}")
    for method in STEPS:
        for precision in PRECISIONS:
            single, together = milliseconds(method, precision, batch, out)
            print(f"{method:12} {precision:9} {single:15.3f} {together:18.3f} {single / together:6.1f}", flush=True)


def precision(images: int, out: Path) -> None:
    print(f"\n{'method':12} {'metric':20} {'float32':>10} {'bfloat16':>10} {'difference':>12}  95 % interval of the difference")
    for method in ("vfm", "latent_dps"):
        runs = [
            run(
                RunConfig(
                    method=method,
                    task=TASK,
                    split="validation",
                    num_images=images,
                    preset="tuned",
                    precision=precision,
                    metrics=tuple(dict.fromkeys(METRICS.values())),
                    out=out,
                )
            )
            for precision in PRECISIONS
        ]
        for name in METRICS:
            values = [result.metrics().set_index("name").loc[name, "value"] for result in runs]
            low, high = interval(runs, name)
            difference = values[1] - values[0]
            print(f"{method:12} {name:20} {values[0]:10.4f} {values[1]:10.4f} {difference:12.5f}  {low:.5f} .. {high:.5f}")
        times = [result.cost()["seconds"] * 1e3 for result in runs]
        print(f"{method:12} {'ms per sample':20} {times[0]:10.3f} {times[1]:10.3f} {times[1] - times[0]:12.3f}", flush=True)
        pixels = [torch.from_numpy(result.samples().read("images")).int() for result in runs]
        changes = (pixels[1] - pixels[0]).abs().float()
        print(
            f"{method:12} levels of 255 changed by {changes.mean():.2f} on average, {math.ceil(changes.quantile(0.99))} (99 %)"
        )


def interval(runs: list[Run], name: str) -> tuple[float, float]:
    """95 % percentile interval of the second run's value less the first's, resampling images alike in both."""
    first, second = (StoredRun.read(result.results()) for result in runs)
    if name in first.per_image:
        difference = second.per_image[name] - first.per_image[name]
        chosen = np.random.default_rng(0).integers(len(difference), size=(RESAMPLES, len(difference)))
        replicates = difference[chosen].mean(1)
    else:
        replicates = second.replicates[name] - first.replicates[name]
    low, high = np.percentile(replicates, [2.5, 97.5])
    return float(low), float(high)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--images", type=int, default=180)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        batching(arguments.batch, Path(folder))
        precision(arguments.images, Path(folder))
