import warnings

import pytest
import torch

from vfmbench.metrics.compute import compute_metrics
from vfmbench.metrics.directions import base_name, direction, position
from vfmbench.registry import metrics


def test_every_built_in_metric_has_a_place_in_tables(make_set, pixel_space):
    evaluation = make_set(16, 3, feature_spaces={"pixels": pixel_space()}, label=torch.zeros(16, dtype=torch.long))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        values = compute_metrics(evaluation, {name: metrics.get(name) for name in metrics.names()})
    unknown = position("a plugin's metric")
    # A metric that is missing altogether goes by its registered name.
    assert {value.name for value in values if value.value is not None and position(value.name) == unknown} == set()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("psnr", "↑"),
        ("crps@digitnet", "↓"),
        ("residual", "→ 1"),
        ("interval_coverage@pixel", "→ 0.818"),
        ("spread_skill@pixel", "→ 1"),
    ],
)
def test_directions(name, text):
    assert str(direction(name, 10)) == text


def test_scores():
    assert direction("psnr", 10).is_better(0.1)
    assert not direction("crps@pixel", 10).is_better(0.1)
    target = direction("spread_skill@pixel", 10)
    assert target.score(0.8) == pytest.approx(0.2)
    assert target.is_better(target.score(1.1) - target.score(0.5))
    assert direction("diversity@pixel", 10) is None
    assert direction("a plugin's metric", 10) is None
    assert direction("interval_coverage@pixel", 1) is None
    assert base_name("crps@pixel") == "crps"
