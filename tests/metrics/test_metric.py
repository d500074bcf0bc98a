"""What is declared of metrics: where they stand in tables, which way they are better, and whose code they are."""

import warnings

import pytest
import torch

from vfmbench.domains import IMAGES, POINTS
from vfmbench.metrics.compute import chosen_metrics, compute_metrics
from vfmbench.metrics.image import psnr
from vfmbench.metrics.metric import metric
from vfmbench.metrics.perceptual import lpips
from vfmbench.registry import metrics
from vfmbench.results.schema import MetricSpec, Section


def test_every_built_in_metric_declares_what_it_gives(make_set, pixel_space):
    evaluation = make_set(16, 3, feature_spaces={"pixels": pixel_space()}, label=torch.zeros(16, dtype=torch.long))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rows = [result.row for result in compute_metrics(evaluation, chosen_metrics(metrics.names()))]
    assert [row.reason for row in rows if row.broken] == []
    for row in rows:
        assert row.spec.section != Section.OTHER, row.name
        assert row.spec.position < MetricSpec(name="a plugin's metric").position, row.name


@pytest.mark.parametrize(
    ("names", "name", "found"),
    [
        (["psnr", "psnr_mean"], "psnr", "psnr"),
        (["psnr", "psnr_mean"], "psnr_mean", "psnr_mean"),
        (["crps", "crps_fair"], "crps_fair@digitnet", "crps_fair"),
        (["crps"], "crps_fair@digitnet", None),
        (["crps"], "crp", None),
        (["*"], "lpips_alex_mean", "*"),
    ],
)
def test_a_value_finds_its_specification_by_its_base_name(names, name, found):
    declared = metric(*(MetricSpec(name=entry) for entry in names))(lambda evaluation: [])
    spec = declared.spec(name)
    assert (spec.name if spec else None) == found


def test_a_metric_is_its_function(make_set):
    assert psnr.__name__ == "psnr"
    assert psnr.__doc__.startswith("`psnr`: PSNR of one sample")
    assert [value.name for value in psnr(make_set())] == ["psnr", "psnr_mean"]
    assert lpips.is_for(IMAGES)
    assert not lpips.is_for(POINTS)


def test_only_foreign_metrics_have_a_hash_of_their_source():
    assert psnr.source_sha256 is None
    mine = metric(MetricSpec(name="mine"))(test_a_metric_is_its_function)
    assert len(mine.source_sha256) == 64


def test_a_metric_without_values_is_no_metric():
    with pytest.raises(ValueError, match="needs a MetricSpec"):
        metric()
