import logging
import math

import pytest

from vfmbench.errors import UserError
from vfmbench.interfaces import MetricValue
from vfmbench.metrics.calibration import calibration, spread_skill, tarp
from vfmbench.metrics.compute import compute_metrics
from vfmbench.metrics.frechet import fid
from vfmbench.metrics.image import psnr, ssim
from vfmbench.metrics.kernels import kid, mmd
from vfmbench.metrics.posterior import classifier_agreement, crps, diversity, residual

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


def broken(message: str, kind: type[Exception]):
    def metric(evaluation):
        raise kind(message)

    return metric


def test_a_failing_metric_leaves_the_others(make_set, caplog):
    metrics = {"first": broken("no such thing", UserError), "second": broken("bug", ValueError), "psnr": psnr}
    values = compute_metrics(make_set(), metrics)
    assert [value.name for value in values] == ["first", "second", "psnr", "psnr_mean"]
    assert [value.reason for value in values] == ["no such thing", "ValueError: bug", None, None]
    assert [value.value is None for value in values] == [True, True, False, False]
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    assert "second" in caplog.text


def test_a_plugin_that_returns_no_list_is_missing(make_set):
    (value,) = compute_metrics(make_set(), {"odd": lambda evaluation: 3.0})
    assert value.value is None
    assert "TypeError" in value.reason


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_no_silent_nan_or_infinity(make_set, number):
    (value,) = compute_metrics(make_set(), {"m": lambda evaluation: [MetricValue("m", number, number, number, 12)]})
    assert (value.value, value.low, value.high, value.n) == (None, None, None, 0)
    assert value.reason == f"the result is {number}"
    (value,) = compute_metrics(make_set(), {"m": lambda evaluation: [MetricValue("m", 1.0, math.nan, 2.0, 12)]})
    assert (value.value, value.low, value.high) == (1, None, None)


def test_an_explained_infinity_stays(make_set):
    value = compute_metrics(make_set(noise=0), {"psnr": psnr})[0]
    assert math.isinf(value.value)
    assert "reproduced exactly" in value.reason


def test_fewer_images_than_planned_are_told(make_set, pixel_space):
    evaluation = make_set(planned=15, feature_spaces={"pixels": pixel_space()})
    for value in compute_metrics(evaluation, ALL):
        assert (value.value is None) != ("only 12 of 15 planned images" in value.settings)
    assert all("planned" not in value.settings for value in compute_metrics(make_set(), ALL))


@pytest.mark.parametrize(("n", "count"), [(1, 1), (1, 3), (2, 1), (2, 2), (5, 3)])
def test_small_sets_give_finite_numbers_or_reasons(make_set, pixel_space, n, count):
    evaluation = make_set(n, count, feature_spaces={"pixels": pixel_space(), "inception": "no weights"})
    values = compute_metrics(evaluation, ALL)
    assert len({value.name for value in values}) == len(values)
    for value in values:
        assert (value.value is None) == (value.reason is not None)
        assert value.n == (0 if value.value is None else n)
        assert all(number is None or math.isfinite(number) for number in (value.value, value.low, value.high))
        assert (value.low is None) == (value.high is None) == (value.value is None or n == 1)


def test_a_value_that_is_missing_in_a_space_that_is_there_names_its_weights(make_set, pixel_space):
    evaluation = make_set(1, feature_spaces={"pixels": pixel_space(), "inception": "no weights"})
    found = {value.name: value for value in compute_metrics(evaluation, {"fid": fid})}
    assert found["fid@pixels"].value is found["fid@inception"].value is None
    assert found["fid@pixels"].feature_weights_sha256 == pixel_space.weights_sha256
    assert found["fid@inception"].feature_weights_sha256 is None


def test_settings_begin_with_those_of_the_feature_space(make_set, pixel_space):
    space = pixel_space()
    space.settings = "six pixels"
    values = compute_metrics(make_set(feature_spaces={"pixels": space}), {"fid": fid, "psnr": psnr})
    assert values[0].settings.startswith("six pixels; raw features")
    assert values[1].settings.startswith("dB")


def test_without_feature_spaces(make_set):
    values = compute_metrics(make_set(), {"fid": fid, "crps": crps})
    assert [value.name for value in values] == ["fid", "crps@pixel", "crps_fair@pixel"]
    assert "no feature space" in values[0].reason
