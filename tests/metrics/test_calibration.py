"""Calibration metrics on Gaussian posteriors in 8 bits, whose answers are known."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from vfmbench.errors import UserError
from vfmbench.metrics import calibration as module
from vfmbench.metrics.calibration import (
    calibration,
    data_levels,
    quoted_level,
    random_cycle,
    random_directions,
    spread_skill,
    tarp,
)
from vfmbench.metrics.evaluation import EvaluationSet

DEVIATION = 20


@pytest.fixture
def gaussian_set(pixel_space):
    """`gaussian_set(n, S, scale, bias, seed)`: each image's posterior is normal around a mean of its own, inside 8 bits."""

    def make(n=360, count=10, scale=1.0, bias=0.0, seed=0, side=6):
        generator = torch.Generator().manual_seed(seed)
        shape = (1, side, side)
        mean = 128 + 12 * torch.randn((n, *shape), generator=generator)
        truth = mean + DEVIATION * torch.randn((n, *shape), generator=generator)
        samples = mean[:, None] + bias + scale * DEVIATION * torch.randn((n, count, *shape), generator=generator)
        images = [x.round().clamp(0, 255).to(torch.uint8) for x in (truth, samples)]
        return EvaluationSet(truth=images[0], samples=images[1], planned=n, feature_spaces={"pixels": pixel_space()})

    return make


def values(evaluation, metric):
    return {value.name: value for value in metric(evaluation)}


def p_value(value):
    text = value.settings.partition("p ")[2].split()[1].rstrip(";")
    return float(text)


@pytest.mark.parametrize("count", [2, 5, 10])
def test_calibrated_samples_pass(gaussian_set, count):
    for seed in range(4):
        evaluation = gaussian_set(count=count, seed=seed)
        found = values(evaluation, calibration) | values(evaluation, tarp)
        for space in ("pixel", "pixels"):
            coverage = found[f"interval_coverage@{space}"]
            assert coverage.value == pytest.approx(quoted_level(count), abs=4.5 * float(coverage.per_image.std()) / 360**0.5)
            assert p_value(found[f"calibration_error@{space}"]) > 0.002
            assert p_value(found[f"tarp@{space}"]) > 0.002
        assert found["calibration_error@pixel"].value < 0.012
        assert found["tarp@pixel"].value < 0.1
        skill = spread_skill(evaluation)[0]
        assert skill.low - 0.02 < 1 < skill.high + 0.02


@pytest.mark.parametrize("change", [{"scale": 0.8}, {"scale": 1.2}, {"bias": 6.0}])
def test_wrong_spread_and_bias_are_detected(gaussian_set, change):
    for seed in range(3):
        evaluation = gaussian_set(seed=seed, **change)
        found = values(evaluation, calibration) | values(evaluation, tarp)
        assert p_value(found["calibration_error@pixel"]) <= 1e-4
        assert found["calibration_error@pixel"].low > 0.005
        assert p_value(found["calibration_error@pixels"]) < 0.05
        assert p_value(found["tarp@pixel"]) < 0.01
        coverage = found["interval_coverage@pixel"]
        too_wide = change.get("scale", 0) > 1
        assert (coverage.low > quoted_level(10)) if too_wide else (coverage.high < quoted_level(10))


@pytest.mark.parametrize(("scale", "bias", "count"), [(0.8, 0.0, 10), (1.2, 0.0, 4), (1.0, 10.0, 6), (1.0, 0.0, 2)])
def test_spread_skill_equals_its_closed_form(gaussian_set, scale, bias, count):
    """Mean variance s^2 sigma^2; squared error of the mean sigma^2 (1 + s^2 / S) + b^2."""
    (value,) = spread_skill(gaussian_set(n=4000, count=count, scale=scale, bias=bias))
    variance = (scale * DEVIATION) ** 2
    error = DEVIATION**2 + variance / count + bias**2
    assert value.value == pytest.approx(((count + 1) / count * variance / error) ** 0.5, rel=0.01)
    assert value.low < value.value < value.high
    assert value.replicates.shape == (200,)


def test_coverage_equals_the_normal_law(gaussian_set):
    """Between the smallest and the largest of 10 draws that are too close together."""
    generator = np.random.default_rng(0)
    draws = 0.8 * generator.standard_normal((200_000, 10))
    truth = generator.standard_normal(200_000)
    expected = ((truth > draws.min(1)) & (truth < draws.max(1))).mean()
    found = values(gaussian_set(n=3000, scale=0.8), calibration)["interval_coverage@pixel"]
    assert found.value == pytest.approx(expected, abs=0.006)


def test_tarp_equals_a_loop(gaussian_set):
    evaluation = gaussian_set(n=25, count=4, scale=0.6)
    successor = random_cycle(25).tolist()
    for name, truth, samples in (
        ("pixel", evaluation.truth.flatten(1).double(), evaluation.samples.flatten(2).double()),
        ("pixels", *(features.double() for features in evaluation.features("pixels"))),
    ):
        shares = []
        for image in range(25):
            reference = truth[successor[image]]
            own = float((truth[image] - reference).norm())
            closer = [float((sample - reference).norm()) < own for sample in samples[image]]
            shares.append(sum(closer) / 4)
        deviations = [abs(np.mean(np.array(shares) < k / 4 - 1e-9) - k / 5) for k in range(1, 5)]
        assert values(evaluation, tarp)[f"tarp@{name}"].value == pytest.approx(max(deviations))


def test_references_are_other_images_on_one_cycle():
    successor = random_cycle(50).tolist()
    position, seen = 0, []
    for _ in range(50):
        seen.append(position)
        position = successor[position]
    assert sorted(seen) == list(range(50))
    assert successor != [*range(1, 50), 0]


def test_levels_of_the_data_decide_ties(gaussian_set):
    """Binary images; samples miss both levels by a little, as those of a continuous model do."""
    generator = torch.Generator().manual_seed(0)
    truth, draws = (255 * torch.randint(0, 2, shape, generator=generator) for shape in ((200, 1, 4, 4), (200, 9, 1, 4, 4)))
    missed = (draws + torch.randint(-9, 10, draws.shape, generator=generator)).clamp(0, 255)
    evaluation = EvaluationSet(truth=truth.to(torch.uint8), samples=missed.to(torch.uint8), planned=200)
    found = values(evaluation, calibration)
    assert "rounded to the 2 grey levels" in found["interval_coverage@pixel"].settings
    assert found["calibration_error@pixel"].value < 0.02
    count, nearest = data_levels(torch.arange(256).to(torch.uint8))
    assert (count, nearest.tolist()) == (256, list(range(256)))
    count, nearest = data_levels(torch.tensor([[10, 200], [10, 12]]).to(torch.uint8))
    assert count == 3
    assert nearest[[0, 10, 13, 105, 107, 255]].tolist() == [10, 10, 12, 12, 200, 200]


def test_results_do_not_depend_on_blocks(gaussian_set, monkeypatch):
    evaluation = gaussian_set(n=11, count=3)
    whole = [value for metric in (calibration, tarp) for value in metric(evaluation)]
    monkeypatch.setattr(module, "_BLOCK_VALUES", 2 * evaluation.samples[0].numel())
    blocks = [value for metric in (calibration, tarp) for value in metric(replace(evaluation))]
    for a, b in zip(whole, blocks, strict=True):
        assert a.value == pytest.approx(b.value, abs=1e-12)


def test_what_is_stored_for_figures_and_comparisons(gaussian_set):
    evaluation = gaussian_set(n=30, count=4)
    found = values(evaluation, calibration) | values(evaluation, tarp)
    for name in ("calibration_error@pixel", "calibration_error@pixels", "tarp@pixel", "tarp@pixels"):
        assert found[name].curves.shape == (30, 5)
        torch.testing.assert_close(found[name].curves.sum(1), torch.ones(30).double())
        assert found[name].replicates.shape == (200,)
    assert found["interval_coverage@pixel"].per_image.shape == (30,)
    assert found["tarp@pixels"].feature_space == "pixels"
    assert "0.6 = 3/5 when calibrated" in found["interval_coverage@pixel"].settings
    assert "100 random directions" in found["interval_coverage@pixels"].settings


def test_quoted_level_is_the_nearest_to_90_percent():
    assert [quoted_level(count) for count in (2, 10, 19, 100)] == pytest.approx([1 / 3, 9 / 11, 0.9, 91 / 101])


def test_directions_are_fixed_unit_vectors():
    directions = random_directions(12)
    torch.testing.assert_close(directions.norm(dim=0), torch.ones(100))
    assert torch.equal(directions, random_directions(12))


def test_too_few_samples_or_images(gaussian_set):
    single = gaussian_set(n=5, count=1)
    for metric, verb in ((calibration, "samples need"), (tarp, "TARP needs"), (spread_skill, "spread of .* needs")):
        with pytest.raises(UserError, match=f"{verb} at least 2 samples"):
            metric(single)
    with pytest.raises(UserError, match="at least 3, not 2"):
        tarp(gaussian_set(n=2, count=4))
    (value,) = (value for value in calibration(gaussian_set(n=1, count=4)) if value.name == "calibration_error@pixel")
    assert (value.low, value.high) == (None, None)
    assert "too few images for a test" in value.settings


def test_exact_reconstruction_has_no_spread_skill_ratio(make_set):
    with pytest.raises(UserError, match="no error to compare with"):
        spread_skill(make_set(noise=0))


def test_a_deterministic_method_is_told_so(make_set):
    evaluation = make_set(n=40)
    deterministic = replace(evaluation, samples=evaluation.samples[:, :1].repeat(1, 4, 1, 1, 1))
    assert spread_skill(deterministic)[0].value == 0
    assert values(deterministic, calibration)["interval_coverage@pixel"].value < 0.1
    assert p_value(values(deterministic, tarp)["tarp@pixel"]) <= 1e-4
