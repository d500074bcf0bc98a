"""Times the metrics against the libraries that the field quotes, in one run on one machine.

    python benchmarks/metrics.py [--pairs 1024] [--size 256] [--threads 1]

A row shows the seconds of either side, their ratio (above 1: ours is faster) and the largest relative difference of the
results; for PSNR and SSIM the largest absolute one. "Ours" is what a run computes, with intervals; the libraries give values
only. A library's loop over images is timed on as many of them as the row names, and scaled up. The features are random ReLU
features of random images, 2048 of them, as many as Inception's. Peak memory is that of the whole process, which begins with the
metrics on features.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import scipy.linalg
import scoringrules
import torch
from skimage.metrics import peak_signal_noise_ratio
from skimage.metrics import structural_similarity as skimage_ssim
from torch import Tensor
from torch_fidelity.metric_fid import fid_statistics_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import calculate_precision_recall_full

from vfmbench.metrics.evaluation import EvaluationSet
from vfmbench.metrics.frechet import fid
from vfmbench.metrics.image import psnr, ssim
from vfmbench.metrics.kernels import kid, mmd
from vfmbench.metrics.manifold import prdc
from vfmbench.metrics.metric import Metric
from vfmbench.metrics.posterior import crps
from vfmbench.metrics.values import MetricValue

DIMENSION = 2048
SAMPLES = 10
LOOPED = 32
WANG = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255, "channel_axis": 0}

Row = tuple[str, str, float, float, float]
Measure = Callable[[np.ndarray, np.ndarray], float]


class ReluFeatures:
    """Random features of small images."""

    name, weights_sha256, settings = "relu", "", ""

    def __init__(self, inputs: int):
        self.weights = torch.randn(inputs, DIMENSION) / inputs**0.5

    def features(self, images: Tensor) -> Tensor:
        return ((images.flatten(1).float() / 128 - 1) @ self.weights).relu()

    def classify(self, images: Tensor) -> Tensor | None:
        return None


def noisy_set(count: int, samples: int, size: int, **fields: Any) -> EvaluationSet:
    """Random images, and samples that are the truth at less contrast with noise of 40 levels."""
    truth = torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8)
    noisy = torch.randn(count, samples, 3, size, size).mul_(40).add_(truth[:, None], alpha=0.6)
    return EvaluationSet(truth=truth, samples=noisy.clamp_(0, 255).byte(), planned=count, **fields)


def seconds(function: Callable[[], Any]) -> tuple[float, Any]:
    """Wall time of one call, and its result."""
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result


def relative(ours: Any, theirs: Any) -> float:
    """Largest relative difference."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    return float(np.max(np.abs(ours - theirs) / np.abs(theirs)))


def peak_gib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def feature_rows(count: int) -> Iterator[Row]:
    """Metrics in a feature space, of `count` images with ten samples each."""
    evaluation = noisy_set(count, SAMPLES, 8, feature_spaces={"relu": ReluFeatures(3 * 8 * 8)})
    truth, samples = evaluation.features("relu")
    print(f"peak memory with {count} x {1 + SAMPLES} x {DIMENSION} features in place: {peak_gib():.2f} GiB")
    first = samples[:, 0]

    def value(values: list[MetricValue], name: str) -> MetricValue:
        return next(value for value in values if value.name == name)

    ours, values = seconds(lambda: crps(evaluation))
    unit_truth, unit_samples = (part.double().numpy() for part in evaluation.features("relu", normalised=True))
    theirs, expected = seconds(
        lambda: [
            scoringrules.es_ensemble(x, y, backend="numpy") for x, y in zip(unit_truth[:LOOPED], unit_samples, strict=False)
        ]
    )
    found = value(values, "crps@relu").per_image
    assert found is not None
    yield (
        f"CRPS, {SAMPLES} samples",
        f"scoringrules, loop over {LOOPED}",
        ours,
        theirs * count / LOOPED,
        relative(found[:LOOPED], expected),
    )
    print(f"peak memory after CRPS: {peak_gib():.2f} GiB")

    mmd_time, _ = seconds(lambda: mmd(evaluation))
    ours, values = seconds(lambda: kid(evaluation))
    print(f"MMD with its interval: {mmd_time:.2f} s; peak memory after MMD and KID: {peak_gib():.2f} GiB")
    pair = truth.double(), first.double()
    theirs, result = seconds(lambda: kid_features_to_metric(*pair, kid_subsets=1, kid_subset_size=count, verbose=False))
    error = relative(value(values, "kid@relu").value, result["kernel_inception_distance_mean"])
    yield "KID", "torch-fidelity, one subset", ours, theirs, error

    ours, values = seconds(lambda: prdc(evaluation))
    theirs, scores = seconds(lambda: calculate_precision_recall_full(first, truth, neighborhood=5))
    found_scores = [value(values, f"{name}@relu").value for name in ("precision", "recall")]
    yield "precision ... coverage", "torch-fidelity, first two", ours, theirs, relative(found_scores, scores)
    print(f"peak memory after precision, recall, density and coverage: {peak_gib():.2f} GiB")

    ours, values = seconds(lambda: fid(evaluation))
    yield from frechet_rows(ours, float(value(values, "fid@relu").value or 0), *pair)


def frechet_rows(ours: float, found: float, x: Tensor, y: Tensor) -> Iterator[Row]:
    """FID with its interval against values by a general matrix square root and by a general eigen-solver."""

    def statistics(points: Tensor) -> dict[str, np.ndarray]:
        return {"mu": points.mean(0).numpy(), "sigma": np.cov(points.numpy(), rowvar=False)}

    def by_square_root() -> float:
        a, b = statistics(x), statistics(y)
        root = scipy.linalg.sqrtm(a["sigma"] @ b["sigma"]).real
        return float(((a["mu"] - b["mu"]) ** 2).sum() + np.trace(a["sigma"] + b["sigma"] - 2 * root))

    name = f"FID, n = {len(x)}"
    theirs, expected = seconds(by_square_root)
    yield name, "SciPy, sqrtm", ours, theirs, relative(found, expected)
    theirs, result = seconds(lambda: fid_statistics_to_metric(statistics(x), statistics(y), verbose=False))
    yield name, "torch-fidelity, eigvals", ours, theirs, relative(found, result["frechet_inception_distance"])


def large_frechet_rows() -> Iterator[Row]:
    """More images than features, so that the covariances have full rank."""
    evaluation = noisy_set(2 * DIMENSION, 1, 8, feature_spaces={"relu": ReluFeatures(3 * 8 * 8)})
    truth, samples = evaluation.features("relu")
    ours, values = seconds(lambda: fid(evaluation))
    yield from frechet_rows(ours, float(values[0].value or 0), truth.double(), samples[:, 0].double())


def pixel_row(task: str, metric: Metric, reference: Measure, evaluation: EvaluationSet) -> Row:
    truth, samples = evaluation.truth[:].numpy(), evaluation.samples[:].numpy()

    def loop(images: range) -> list[float]:
        return [reference(truth[i], samples[i, 0]) for i in images]

    # Half of the loop before ours and half after, because a shared machine's speed drifts.
    before, first = seconds(lambda: loop(range(LOOPED // 2)))
    ours, values = seconds(lambda: metric(evaluation))
    after, second = seconds(lambda: loop(range(LOOPED // 2, LOOPED)))
    error = float(np.max(np.abs(values[0].per_image[:LOOPED].numpy() - np.array(first + second))))
    return task, f"scikit-image, loop over {LOOPED}", ours, (before + after) * len(evaluation) / LOOPED, error


def pixel_rows(pairs: int, size: int) -> Iterator[Row]:
    """PSNR and SSIM of one sample an image, and the energy score of pixels with ten samples of a few images."""
    evaluation = noisy_set(pairs, 1, size)
    loops: dict[str, tuple[Metric, Measure]] = {
        "PSNR": (psnr, lambda a, b: peak_signal_noise_ratio(a, b, data_range=255)),
        "SSIM": (ssim, lambda a, b: skimage_ssim(a, b, **WANG)),
    }
    rows = [pixel_row(f"{name}, {pairs} pairs", *both, evaluation) for name, both in loops.items()]
    yield from rows
    yield "PSNR and SSIM", rows[0][1], sum(row[2] for row in rows), sum(row[3] for row in rows), max(row[4] for row in rows)

    few = 16
    evaluation = noisy_set(few, SAMPLES, size)
    ours, values = seconds(lambda: crps(evaluation))
    signed = [
        part[:].double().flatten(axis).numpy() / 127.5 - 1 for part, axis in ((evaluation.truth, 1), (evaluation.samples, 2))
    ]
    theirs, expected = seconds(lambda: [scoringrules.es_ensemble(a, b, backend="numpy") for a, b in zip(*signed, strict=True)])
    error = relative(values[0].per_image, expected)
    yield f"CRPS pixels, {few} x {SAMPLES}", "scoringrules, loop", ours, theirs, error


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=1024)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    rows = [*feature_rows(arguments.pairs), *large_frechet_rows(), *pixel_rows(arguments.pairs, arguments.size)]
    print(f"{arguments.pairs} images, {arguments.size} px, {DIMENSION} features, CPU, {arguments.threads} thread(s)")
    print(f"{'task':25} {'library':28} {'ours s':>8} {'theirs s':>9} {'ratio':>7} {'max diff':>9}")
    for task, library, ours, theirs, error in rows:
        print(f"{task:25} {library:28} {ours:8.2f} {theirs:9.2f} {theirs / ours:7.1f} {error:9.1e}")


if __name__ == "__main__":
    main()
