import logging
import math

import numpy as np
import pytest

from vfmbench.domains import IMAGES, POINTS
from vfmbench.errors import UserError
from vfmbench.metrics.calibration import calibration, spread_skill, tarp
from vfmbench.metrics.compute import compute_metrics, default_metrics, stale_metrics
from vfmbench.metrics.frechet import fid
from vfmbench.metrics.image import psnr, ssim
from vfmbench.metrics.kernels import kid, mmd
from vfmbench.metrics.metric import metric
from vfmbench.metrics.posterior import classifier_agreement, crps, diversity, residual
from vfmbench.metrics.values import MetricValue
from vfmbench.registry import metrics
from vfmbench.results.schema import HIGHER, LOWER, MetricRow, MetricSpec, Section

ALL = {
    "psnr": psnr,
    "ssim": ssim,
    "crps": crps,
    "fid": fid,
    "kid": kid,
    "mmd": mmd,
    "classifier_agreement": classifier_agreement,
    "residual": residual,
    "diversity": diversity,
    "calibration": calibration,
    "tarp": tarp,
    "spread_skill": spread_skill,
}


def declared(compute):
    """A metric of one value `m` that says nothing else about itself."""
    return metric(MetricSpec(name="m"))(compute)


def broken(message: str, kind: type[Exception]):
    @declared
    def fails(evaluation):
        raise kind(message)

    return fails


def computed(evaluation, metrics):
    return [result.row for result in compute_metrics(evaluation, metrics)]


def test_a_failing_metric_leaves_the_others(make_set, caplog):
    metrics = {"first": broken("no such thing", UserError), "second": broken("bug", ValueError), "psnr": psnr}
    values = computed(make_set(), metrics)
    assert [value.name for value in values] == ["first", "second", "psnr", "psnr_mean"]
    assert [value.reason for value in values] == ["no such thing", "ValueError: bug", None, None]
    assert [value.value is None for value in values] == [True, True, False, False]
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    assert "second" in caplog.text


def test_a_plugin_that_returns_no_list_is_missing(make_set):
    (value,) = computed(make_set(), {"odd": declared(lambda evaluation: 3.0)})
    assert value.value is None
    assert "TypeError" in value.reason


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_no_silent_nan_or_infinity(make_set, number):
    (value,) = computed(make_set(), {"m": declared(lambda evaluation: [MetricValue("m", number, number, number, 12)])})
    assert (value.value, value.low, value.high, value.n) == (None, None, None, 0)
    assert value.reason == f"the result is {number}"
    (value,) = computed(make_set(), {"m": declared(lambda evaluation: [MetricValue("m", 1.0, math.nan, 2.0, 12)])})
    assert (value.value, value.low, value.high) == (1, None, None)


def test_an_explained_infinity_stays(make_set):
    result = compute_metrics(make_set(noise=0), {"psnr": psnr})[0]
    # JSON has no infinity.
    assert result.row.value is None
    assert "reproduced exactly" in result.row.reason
    assert np.isinf(result.per_image).all()


def test_fewer_images_than_planned_are_told(make_set, pixel_space):
    evaluation = make_set(planned=15, feature_spaces={"pixels": pixel_space()})
    for value in computed(evaluation, ALL):
        assert (value.value is None) != ("only 12 of 15 planned images" in value.settings)
    assert all("planned" not in value.settings for value in computed(make_set(), ALL))


@pytest.mark.parametrize(("n", "count"), [(1, 1), (1, 3), (2, 1), (2, 2), (5, 3)])
def test_small_sets_give_finite_numbers_or_reasons(make_set, pixel_space, n, count):
    evaluation = make_set(n, count, feature_spaces={"pixels": pixel_space(), "inception": "no weights"})
    values = computed(evaluation, ALL)
    assert len({value.name for value in values}) == len(values)
    for value in values:
        assert (value.value is None) == (value.reason is not None)
        assert value.n == (0 if value.value is None else n)
        assert all(number is None or math.isfinite(number) for number in (value.value, value.low, value.high))
        assert (value.low is None) == (value.high is None) == (value.value is None or n == 1)


def test_a_value_that_is_missing_in_a_space_that_is_there_names_its_weights(make_set, pixel_space):
    evaluation = make_set(1, feature_spaces={"pixels": pixel_space(), "inception": "no weights"})
    found = {value.name: value for value in computed(evaluation, {"fid": fid})}
    assert found["fid@pixels"].value is found["fid@inception"].value is None
    assert found["fid@pixels"].feature_weights_sha256 == pixel_space.weights_sha256
    assert found["fid@inception"].feature_weights_sha256 is None


def test_settings_begin_with_those_of_the_feature_space(make_set, pixel_space):
    space = pixel_space()
    space.settings = "six pixels"
    values = computed(make_set(feature_spaces={"pixels": space}), {"fid": fid, "psnr": psnr})
    assert values[0].settings.startswith("six pixels; raw features")
    assert values[1].settings.startswith("dB")


def test_without_feature_spaces(make_set):
    values = computed(make_set(), {"fid": fid, "crps": crps})
    assert [value.name for value in values] == ["fid", "crps@pixel", "crps_fair@pixel"]
    assert "no feature space" in values[0].reason


def test_rows_bear_the_specification_of_their_value(make_set, pixel_space):
    rows = {row.name: row for row in computed(make_set(feature_spaces={"pixels": pixel_space()}), ALL)}
    assert rows["crps_fair@pixels"].spec.name == "crps_fair"
    assert rows["psnr_mean"].direction == HIGHER
    assert rows["fid@pixels"].direction == LOWER
    assert str(rows["interval_coverage@pixel"].direction) == "→ 0.6"
    assert rows["diversity@pixel"].direction is None
    assert [rows[name].metric for name in ("psnr_mean", "interval_coverage@pixels")] == ["psnr", "calibration"]
    assert {row.source_sha256 for row in rows.values()} == {None}


def test_a_value_that_was_not_declared_is_missing(make_set):
    (row,) = computed(make_set(), {"mine": declared(lambda evaluation: [MetricValue("other", 1.0)])})
    assert (row.value, row.broken) == (None, True)
    assert row.reason == "the specification of mine has no value named other"


def test_a_metric_of_points_is_missing_for_images(make_set):
    of_points = metric(MetricSpec(name="m", domains=("points",)))(lambda evaluation: [MetricValue("m", 1.0)])
    (row,) = computed(make_set(), {"mine": of_points})
    assert row.value is None
    assert row.reason == "mine needs points, and the data are images"


@pytest.mark.parametrize(
    ("changed", "stale"),
    [
        ({}, []),
        ({"version": 2}, ["mine"]),
        ({"direction": HIGHER}, ["mine"]),
        ({"section": Section.POSTERIOR}, ["mine"]),
    ],
)
def test_what_another_version_of_a_metric_gave_is_stale(make_set, changed, stale):
    def compute(evaluation):
        return [MetricValue("m@pixel", 1.0)]

    spec = MetricSpec(name="m")
    rows = computed(make_set(), {"mine": metric(spec)(compute), "psnr": psnr})
    today = {"mine": metric(spec.model_copy(update=changed))(compute), "psnr": psnr}
    assert stale_metrics(today, rows) == stale
    assert stale_metrics({**today, "ssim": ssim}, rows) == [*stale, "ssim"]
    assert stale_metrics({"psnr": psnr}, rows) == []


def test_networks_and_bugs_make_stale_what_was_missing(make_set, pixel_space):
    space = pixel_space()
    rows = computed(make_set(feature_spaces={"pixels": "no weights"}), {"fid": fid, "bug": broken("bug", ValueError)})
    today = {"fid": fid, "bug": broken("bug", ValueError)}
    assert stale_metrics(today, rows) == []
    assert stale_metrics(today, rows, {"pixels": "no weights"}) == ["bug"]
    assert stale_metrics(today, rows, {"pixels": space}) == ["fid", "bug"]


def test_metrics_in_another_feature_space_are_stale(pixel_space):
    today = {"psnr": psnr, "fid": fid, "mmd": mmd, "ssim": ssim}
    in_space = {"feature_space": "pixels", "value": 1.0}
    rows = [
        MetricRow(name="psnr", metric="psnr", value=1.0, spec=psnr.specs[0]),
        MetricRow(name="fid@pixels", metric="fid", feature_weights_sha256="old", spec=fid.specs[0], **in_space),
        MetricRow(name="mmd@pixels", metric="mmd", spec=mmd.specs[0], **in_space),
    ]
    assert stale_metrics(today, rows, {"pixels": pixel_space()}) == ["fid", "mmd", "ssim"]
    assert stale_metrics(today, rows, {"pixels": "its weights are missing"}) == ["fid", "ssim"]


def test_default_metrics_are_those_of_the_domain():
    images, points = default_metrics(IMAGES), default_metrics(POINTS)
    assert {"psnr", "fid", "crps", "nlpd"} <= set(images)
    assert {"mmd_posterior", "sacc_prior", "crps", "nlpd"} <= set(points)
    assert not {"mmd_posterior", "sacc_prior"} & set(images)
    assert not {"psnr", "fid"} & set(points)
    assert set(images) - set(default_metrics(IMAGES, without_run=True)) == {"nlpd", "residual", "classifier_agreement"}


def test_a_function_without_a_specification_is_refused():
    with pytest.raises(UserError, match=r"'bare' is a function, not a Metric; decorate its function with .*metric\(MetricSpec"):
        metrics.register("bare", lambda evaluation: [])
    assert "bare" not in default_metrics(IMAGES)
