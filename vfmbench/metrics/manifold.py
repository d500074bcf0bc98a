"""Precision, recall, density and coverage: how far two sets of features lie within each other's neighbourhoods."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from vfmbench.errors import UserError
from vfmbench.metrics.distribution import SETTINGS, feature_sets, set_value
from vfmbench.metrics.evaluation import EvaluationSet
from vfmbench.metrics.metric import metric
from vfmbench.metrics.values import Later, MetricValue, in_each_space
from vfmbench.results.schema import HIGHER, MetricSpec, Section

_SEED = 0
_HALVES = 200
_NEIGHBOURS = 5
# Among so many nearest, a random half misses more than all but four with a probability below 1e-13.
_CANDIDATES = 64
_BLOCK_VALUES = 2**22
_NAMES = ("precision", "recall", "density", "coverage")


@metric(
    MetricSpec(name="precision", section=Section.DISTRIBUTION, direction=HIGHER, position=40, domains=("images",)),
    MetricSpec(name="recall", section=Section.DISTRIBUTION, direction=HIGHER, position=41, domains=("images",)),
    MetricSpec(name="density", section=Section.DISTRIBUTION, position=42, domains=("images",)),
    MetricSpec(name="coverage", section=Section.DISTRIBUTION, direction=HIGHER, position=43, domains=("images",)),
)
def prdc(evaluation: EvaluationSet) -> Later:
    """`precision@space`, `recall@space`, `density@space`, `coverage@space`, with balls that reach to the fifth neighbour.

    A sample that resembles its own true image lies in that image's ball, so that good reconstructions bring all four close to
    1, or above it for the density, whatever the variety of the samples; independent sets score less.
    """

    def in_space(name: str) -> list[MetricValue]:
        truth, samples = feature_sets(evaluation, name)
        n = len(truth)
        if n < 2 * (_NEIGHBOURS + 1):
            raise UserError(f"neighbourhoods of k = {_NEIGHBOURS} images need at least {2 * (_NEIGHBOURS + 1)} images, not {n}")
        selections = torch.cat([torch.ones(1, n, dtype=torch.bool), half_samples(n)]).to(truth.device)
        scores = neighbourhood_scores(truth, samples, _NEIGHBOURS, selections).cpu()
        settings = (
            f"{SETTINGS}; k = {_NEIGHBOURS} neighbours; raised by each sample's likeness to its own image; "
            f"interval: +- 1.96 standard deviations over {_HALVES} random halves of the images, clipped"
        )
        results = []
        for score, values in zip(_NAMES, scores, strict=True):
            value, replicates = float(values[0]), values[1:]
            result = set_value(evaluation, score, name, value, replicates, settings)
            results.append(_clipped(result, float("inf") if score == "density" else 1.0))
        return results

    return in_each_space(evaluation, _NAMES, in_space)


def neighbourhood_scores(x: Tensor, y: Tensor, neighbours: int, selections: Tensor) -> Tensor:
    """Scores of generated features y [n,d] against true ones x [n,d], each on the rows that a selection [R,n] leaves of both.

    The ball of a point reaches to its k-th nearest neighbour within its own set, itself not counted, and is closed.
    Kynkäänniemi et al. 2019, "Improved precision and recall metric for assessing generative models", eq. 1 and 2: the share
    of y in a ball of x, and of x in a ball of y. Naeem et al. 2020, "Reliable fidelity and diversity metrics for generative
    models", eq. 1 and 2: the number of balls of x around a point of y, over k, and the share of balls of x with a point
    of y. Distances are built in blocks of rows.

    Args:
        neighbours: k, fewer than the rows of any selection.
        selections: bool.

    Returns:
        precision, recall, density, coverage: float64 [4,R].
    """
    n = len(x)
    # Distances are differences of inner products, and lose the fewest digits around zero.
    x, y = x - x.mean(0), y - x.mean(0)
    reach_x, reach_y = _squared_reach(x, neighbours, selections), _squared_reach(y, neighbours, selections)
    weights = selections.float()
    balls_around = torch.zeros_like(weights)
    in_balls_of_y, holds_y = torch.zeros_like(selections), torch.zeros_like(selections)
    for rows in torch.arange(n, device=x.device).split(max(1, _BLOCK_VALUES // n)):
        distances = _squared_distances(x[rows], y)
        for r, weight in enumerate(weights):
            inside = (distances <= reach_x[r, rows, None]).float()
            balls_around[r] += weight[rows] @ inside
            holds_y[r, rows] = inside @ weight > 0
            in_balls_of_y[r, rows] = (distances <= reach_y[r]).float() @ weight > 0
    per_point = torch.stack([balls_around > 0, in_balls_of_y, balls_around / neighbours, holds_y]).double()
    return (per_point * selections).sum(-1) / selections.sum(-1)


def half_samples(n: int) -> Tensor:
    """Which of n images are in each of 200 random halves, bool [200,n], n // 2 of them each.

    The spread of a statistic over random halves drawn without replacement is that over sets of n images (the jackknife that
    deletes half; Shao and Wu 1989, "A general theory for jackknife variance estimation"). A bootstrap would repeat images, and
    a repeated image is its own neighbour.
    """
    order = np.random.default_rng(_SEED).random((_HALVES, n)).argsort(axis=1)
    return torch.from_numpy(order < n // 2)


def _squared_reach(x: Tensor, neighbours: int, selections: Tensor) -> Tensor:
    """Squared distance of each row of x [n,d] to its k-th nearest other row among the selected ones, [R,n]."""
    n = len(x)
    count = min(n - 1, _CANDIDATES)
    parts = []
    for rows in torch.arange(n, device=x.device).split(max(1, _BLOCK_VALUES // max(n, count * len(selections)))):
        distances = _squared_distances(x[rows], x)
        distances[torch.arange(len(rows), device=x.device), rows] = torch.inf
        nearest, index = distances.topk(count, largest=False)
        enough = selections[:, index].cumsum(-1, dtype=torch.int32) >= neighbours
        enough[..., -1] = True
        first = enough.byte().argmax(-1)
        parts.append(nearest.expand(len(selections), -1, -1).gather(-1, first[..., None])[..., 0])
    return torch.cat(parts, dim=1)


def _squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """[a,d] and [b,d] -> [a,b]; what is only the rounding error of equal rows is zero."""
    squares = x.square().sum(1)[:, None] + y.square().sum(1)[None, :]
    distances = squares - 2 * x @ y.mT
    return distances.masked_fill_(distances < 1e-12 * squares, 0)


def _clipped(result: MetricValue, upper: float) -> MetricValue:
    """Interval within [0, upper]; none where all halves score alike, because that does not make the value certain."""
    if result.low is None or result.high is None or result.low == result.high:
        return replace(result, low=None, high=None)
    return replace(result, low=max(0.0, result.low), high=min(upper, result.high))
