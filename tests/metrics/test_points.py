"""Metrics of images and of numbers alike, on points."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from vfmbench.domains import POINTS
from vfmbench.errors import UserError
from vfmbench.metrics.calibration import calibration, random_cycle, spread_skill, tarp
from vfmbench.metrics.compute import chosen_metrics, compute_metrics
from vfmbench.metrics.evaluation import EvaluationSet
from vfmbench.metrics.posterior import crps, diversity, nlpd, residual
from vfmbench.registry import metrics


@pytest.fixture
def gaussian_points():
    """`gaussian_points(n, S, scale, offset)`: normal posteriors in the plane, about means of their own far from the origin."""

    def make(n=400, count=10, scale=1.0, offset=1000.0):
        generator = torch.Generator().manual_seed(0)
        mean = offset + torch.randn((n, 2, 1, 1), generator=generator)
        truth = mean + 0.1 * torch.randn((n, 2, 1, 1), generator=generator)
        samples = mean[:, None] + scale * 0.1 * torch.randn((n, count, 2, 1, 1), generator=generator)
        return EvaluationSet(domain=POINTS, truth=truth, samples=samples, planned=n)

    return make


def by_name(values):
    return {value.name: value for value in values}


@pytest.mark.parametrize("offset", [0.0, 1e5])
def test_crps_equals_a_double_loop_far_from_the_origin(gaussian_points, offset):
    evaluation = gaussian_points(n=15, count=6, offset=offset)
    found = by_name(crps(evaluation))
    assert list(found) == ["crps@point", "crps_fair@point"]
    truth, samples = evaluation.truth.double().numpy()[..., 0, 0], evaluation.samples.double().numpy()[..., 0, 0]
    for x, own, biased, fair in zip(
        truth, samples, found["crps@point"].per_image, found["crps_fair@point"].per_image, strict=True
    ):
        distance = np.mean([np.linalg.norm(a - x) for a in own])
        spread = sum(np.linalg.norm(a - b) for a in own for b in own)
        assert float(biased) == pytest.approx(distance - spread / 72, rel=1e-9)
        assert float(fair) == pytest.approx(distance - spread / 60, rel=1e-9)
    assert "mean over all K^2 pairs" in found["crps@point"].settings


def test_crps_of_one_point_from_many_equal_samples(gaussian_points):
    evaluation = gaussian_points(n=5, count=4)
    equal = evaluation.samples[:, :1].repeat(1, 4, 1, 1, 1)
    expected = (equal[:, 0].double() - evaluation.truth.double()).flatten(1).norm(dim=1)
    for value in crps(replace(evaluation, samples=equal)):
        torch.testing.assert_close(value.per_image, expected, rtol=1e-7, atol=0)


def test_calibrated_points_pass(gaussian_points):
    evaluation = gaussian_points(n=2000, offset=0.0)
    found = by_name([*calibration(evaluation), *tarp(evaluation), *spread_skill(evaluation)])
    assert list(found) == ["interval_coverage@point", "calibration_error@point", "tarp@point", "spread_skill@point"]
    assert found["interval_coverage@point"].low < 9 / 11 < found["interval_coverage@point"].high
    assert found["calibration_error@point"].value < 0.02
    assert found["tarp@point"].value < 0.035
    assert found["spread_skill@point"].low < 1 < found["spread_skill@point"].high
    assert "grey levels" not in found["interval_coverage@point"].settings
    assert "2 coordinates" in found["interval_coverage@point"].settings


def test_spread_that_is_too_small_is_seen(gaussian_points):
    """Error of the mean sigma^2 (1 + s^2 / S), spread s^2 sigma^2; diversity is s sigma by the normal law's c4 of 10 draws."""
    evaluation = gaussian_points(n=4000, scale=0.5)
    found = by_name([*calibration(evaluation), *spread_skill(evaluation), *diversity(evaluation)])
    assert found["interval_coverage@point"].high < 9 / 11
    assert found["spread_skill@point"].value == pytest.approx((1.1 * 0.25 / 1.025) ** 0.5, rel=0.02)
    assert found["diversity@point"].value == pytest.approx(0.97266 * 0.05, rel=0.01)
    expected = evaluation.samples.numpy().astype(float).std(1, ddof=1).mean((1, 2, 3))
    np.testing.assert_allclose(found["diversity@point"].per_image.numpy(), expected)


def test_a_deterministic_method_has_no_spread(gaussian_points):
    evaluation = gaussian_points(n=30, count=7)
    deterministic = replace(evaluation, samples=evaluation.samples[:, :1].repeat(1, 7, 1, 1, 1))
    assert spread_skill(deterministic)[0].value == 0
    assert diversity(deterministic)[0].value == 0


def test_tarp_equals_a_loop(gaussian_points):
    evaluation = gaussian_points(n=25, count=4, scale=0.6, offset=0.0)
    truth, samples = evaluation.truth.flatten(1).double(), evaluation.samples.flatten(2).double()
    successor, shares = random_cycle(25).tolist(), []
    for image in range(25):
        reference = truth[successor[image]]
        own = float((truth[image] - reference).norm())
        shares.append(sum(float((sample - reference).norm()) < own for sample in samples[image]) / 4)
    deviations = [abs(np.mean(np.array(shares) < k / 4 - 1e-9) - k / 5) for k in range(1, 5)]
    assert tarp(evaluation)[0].value == pytest.approx(max(deviations))


def test_what_was_stored_beside_the_points(make_points):
    stored = torch.linspace(0.5, 1.5, 120).reshape(12, 10)
    evaluation = make_points(residual=stored, log_likelihood=-stored)
    assert residual(evaluation)[0].value == pytest.approx(1)
    expected = -(-stored.double()).exp().mean(1).log()
    torch.testing.assert_close(nlpd(evaluation)[0].per_image, expected)


def test_all_metrics_give_a_number_or_a_reason(make_points):
    evaluation = make_points(n=40, residual=torch.ones(40, 10), log_likelihood=torch.zeros(40, 10))
    found = by_name([result.row for result in compute_metrics(evaluation, chosen_metrics(metrics.names()))])
    assert not any(value.broken for value in found.values())
    missing = {name: value.reason for name, value in found.items() if value.value is None}
    of_features = {"classifier_agreement", "feature_distance", "fid", "fid_infinity", "kid", "mmd", "prdc"}
    assert set(missing) == {"psnr", "ssim", "lpips", *of_features}
    assert all("needs images, and the data are points" in reason for reason in missing.values())
    assert not any("pixel" in name for name in found)
    of_points = ("crps", "crps_fair", "interval_coverage", "calibration_error", "tarp", "spread_skill", "diversity")
    of_runs = ("residual", "nlpd", "mmd_posterior", "sliced_wasserstein", "mode_error", "mode_share_error")
    of_priors = ("sacc_posterior", "mmd_prior", "sacc_prior")
    assert {*(f"{name}@point" for name in of_points), *of_runs, *of_priors} == set(found) - set(missing)


def test_image_metrics_refuse_points(make_points, pixel_space):
    evaluation = make_points(feature_spaces={"pixels": pixel_space()})
    for attribute in ("truth_unit", "samples_unit", "mean_unit"):
        with pytest.raises(UserError, match="needs images"):
            getattr(evaluation, attribute)
    for compute in (evaluation.features, evaluation.ask_predictions):
        with pytest.raises(UserError, match="needs images"):
            compute("pixels")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: {"truth": s.truth.double(), "samples": s.samples.double()}, "points of torch.float32"),
        (lambda s: {"truth": s.truth.double()}, "points of torch.float32"),
        (lambda s: {"exact": type(s.exact)(torch.ones(3))}, "12 images need as many exact posteriors, not 3"),
        (lambda s: {"prior": s.prior[:, :4]}, "prior samples"),
        (lambda s: {"prior": s.prior.double()}, "prior samples"),
    ],
)
def test_points_that_do_not_fit_are_refused(make_points, change, message):
    evaluation = make_points()
    with pytest.raises(UserError, match=message):
        replace(evaluation, **change(evaluation))
