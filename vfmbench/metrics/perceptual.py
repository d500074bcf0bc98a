"""LPIPS of single samples and of the mean of K samples."""

from __future__ import annotations

from functools import partial

from torch import Tensor

from vfmbench.errors import MissingError
from vfmbench.interfaces import PerceptualDistance
from vfmbench.metrics.evaluation import EvaluationSet
from vfmbench.metrics.metric import metric
from vfmbench.metrics.values import Later, attempt, mean_value, together
from vfmbench.results.schema import LOWER, MetricSpec, Section


# A network's name is its value's.
@metric(MetricSpec(name="*", section=Section.RECONSTRUCTION, direction=LOWER, position=30, domains=("images",)))
def lpips(evaluation: EvaluationSet) -> Later:
    """`lpips_alex`, `lpips_vgg`: LPIPS of one sample; `lpips_alex_mean`, ... (S > 1): of the mean of an image's samples."""
    if not evaluation.perceptual:
        raise MissingError("no network is set for these images (LPIPS needs RGB images of at least 31x31 pixels)")
    networks = []
    for name in evaluation.perceptual:
        names = [name, f"{name}_mean"] if evaluation.num_samples > 1 else [name]
        networks.append(attempt(names, partial(_by_network, evaluation, name), name))
    return together(*networks)


def _by_network(evaluation: EvaluationSet, name: str) -> Later:
    network, count = evaluation.perceptual_distance(name), evaluation.num_samples

    def of_samples(truth: Tensor, samples: Tensor) -> Tensor:
        repeated = truth.repeat_interleave(count, 0)
        return _distance(network, repeated, samples.flatten(0, 1)).unflatten(0, (-1, count)).mean(1)

    def of_mean(truth: Tensor, samples: Tensor) -> Tensor:
        # Sums of 8-bit levels are exact, so that the mean of equal samples is the sample itself; it is not rounded again.
        return _distance(network, truth, samples.double().mean(1))

    asked = {name: (evaluation.per_image(of_samples), f"one sample, averaged over K={count} samples of an image")}
    if count > 1:
        asked[f"{name}_mean"] = (evaluation.per_image(of_mean), f"mean of K={count} samples")
    return lambda: [
        mean_value(value, answer.result(), f"{network.settings}; {about}", network) for value, (answer, about) in asked.items()
    ]


def _distance(network: PerceptualDistance, a: Tensor, b: Tensor) -> Tensor:
    """Distance of images in levels from 0 to 255."""
    return network.distance(*((2 * (levels.double() / 255) - 1).float() for levels in (a, b))).double()
