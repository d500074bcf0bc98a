"""LPIPS of single samples and of the mean of K samples."""

from __future__ import annotations

from functools import partial

from torch import Tensor

from vfmbench.errors import MissingError
from vfmbench.interfaces import PerceptualDistance
from vfmbench.metrics.evaluation import EvaluationSet
from vfmbench.metrics.metric import metric
from vfmbench.metrics.values import MetricValue, attempt, mean_value
from vfmbench.results.schema import LOWER, MetricSpec, Section


# A network's name is its value's.
@metric(MetricSpec(name="*", section=Section.RECONSTRUCTION, direction=LOWER, position=30, domains=("images",)))
def lpips(evaluation: EvaluationSet) -> list[MetricValue]:
    """`lpips_alex`, `lpips_vgg`: LPIPS of one sample; `lpips_alex_mean`, ... (S > 1): of the mean of an image's samples."""
    if not evaluation.perceptual:
        raise MissingError("no network is set for these images (LPIPS needs RGB images of at least 31x31 pixels)")
    values: list[MetricValue] = []
    for name in evaluation.perceptual:
        names = [name, f"{name}_mean"] if evaluation.num_samples > 1 else [name]
        values += attempt(names, partial(_by_network, evaluation, name), name)
    return values


def _by_network(evaluation: EvaluationSet, name: str) -> list[MetricValue]:
    network, count = evaluation.perceptual_distance(name), evaluation.num_samples

    def of_samples(block: EvaluationSet) -> Tensor:
        truth = block.truth_unit.repeat_interleave(count, 0)
        return _distance(network, truth, block.samples_unit.flatten(0, 1)).unflatten(0, (-1, count)).mean(1)

    single = evaluation.over_blocks(of_samples)
    settings = f"{network.settings}; one sample, averaged over K={count} samples of an image"
    values = [mean_value(name, single, settings, network)]
    if count > 1:
        of_mean = evaluation.over_blocks(lambda block: _distance(network, block.truth_unit, block.mean_unit))
        values.append(mean_value(f"{name}_mean", of_mean, f"{network.settings}; mean of K={count} samples", network))
    return values


def _distance(network: PerceptualDistance, a: Tensor, b: Tensor) -> Tensor:
    """Distance of images in [0, 1]."""
    return network.distance((2 * a - 1).float(), (2 * b - 1).float()).double()
