import itertools

import numpy as np
import pytest
import torch

from vfmbench.metrics.ranks import rank_shares
from vfmbench.results.ranks import (
    calibration_error,
    central_coverage,
    central_levels,
    expected_coverage,
    kolmogorov_test,
    largest_deviation,
    rank_levels,
    uniformity_p_value,
)


def shares_of(truth, samples):
    return rank_shares(truth, samples).numpy()


def gaussian(n, count, quantities, scale=1.0, bias=0.0, seed=0):
    """Truth and samples of a Gaussian posterior per image, whose quantities have correlation 0.5."""
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape):
        shared = torch.randn((*shape, 1), generator=generator)
        return (shared + torch.randn((*shape, quantities), generator=generator)) / 2**0.5

    mean = 3 * torch.randn((n, quantities), generator=generator)
    return mean + noise(n), mean[:, None] + bias + scale * noise(n, count)


def test_rank_shares_equal_a_loop_over_ways_to_break_ties():
    generator = torch.Generator().manual_seed(0)
    truth = torch.randint(0, 4, (3, 7), generator=generator, dtype=torch.uint8)
    samples = torch.randint(0, 4, (3, 5, 7), generator=generator, dtype=torch.uint8)
    expected = np.zeros((3, 6))
    for image, pixel in itertools.product(range(3), range(7)):
        values = samples[image, :, pixel].tolist()
        below = sum(value < truth[image, pixel] for value in values)
        ranks = range(below, below + sum(value == truth[image, pixel] for value in values) + 1)
        for rank in ranks:
            expected[image, rank] += 1 / len(ranks) / 7
    shares = rank_shares(truth, samples)
    np.testing.assert_allclose(shares, expected, atol=1e-12)
    torch.testing.assert_close(shares.sum(1), torch.ones(3).double())


def test_extreme_ranks():
    samples = torch.arange(1.0, 4)[None, :, None]
    assert rank_shares(torch.zeros(1, 1), samples).tolist() == [[1, 0, 0, 0]]
    assert rank_shares(torch.full((1, 1), 9.0), samples).tolist() == [[0, 0, 0, 1]]
    assert rank_shares(torch.ones(1, 1), torch.ones(1, 3, 1)).tolist() == [pytest.approx([0.25] * 4)]


@pytest.mark.parametrize(
    ("count", "levels"),
    [
        (2, [1 / 3]),
        (3, [0.5]),
        (4, [0.2, 0.6]),
        (10, [1 / 11, 3 / 11, 5 / 11, 7 / 11, 9 / 11]),
        (19, [k / 10 for k in range(1, 10)]),
    ],
)
def test_central_levels(count, levels):
    assert central_levels(count).tolist() == pytest.approx(levels)


@pytest.mark.parametrize("count", [2, 3, 10, 19])
def test_coverage_is_the_share_between_order_statistics(count):
    truth, samples = gaussian(40, count, 3)
    coverage = central_coverage(shares_of(truth, samples)).mean(0)
    ordered = samples.sort(dim=1).values
    for level, observed in zip(central_levels(count), coverage, strict=True):
        j = round((count + 1) * (1 - float(level)) / 2)
        inside = (truth > ordered[:, j - 1]) & (truth < ordered[:, count - j])
        assert float(observed) == pytest.approx(float(inside.double().mean()))


@pytest.mark.parametrize("count", [2, 5, 10, 50])
def test_exchangeable_draws_cover_exactly_at_any_number_of_samples(count):
    n = 20_000
    truth, samples = gaussian(n, count, 1)
    coverage, levels = central_coverage(shares_of(truth, samples)).mean(0), central_levels(count)
    deviation = (coverage - levels) / np.sqrt(levels * (1 - levels) / n)
    assert np.abs(deviation).max() < 3.5


def test_uniform_and_degenerate_shares():
    uniform = np.full(11, 1 / 11)
    assert float(calibration_error(uniform)) == pytest.approx(0, abs=1e-12)
    assert float(largest_deviation(uniform)) == pytest.approx(0, abs=1e-12)
    outside = np.eye(11)[0]
    assert float(calibration_error(outside)) == pytest.approx(5 / 11)
    assert float(largest_deviation(outside)) == pytest.approx(10 / 11)
    np.testing.assert_allclose(expected_coverage(uniform), rank_levels(10))


def test_uniformity_test_rejects_calibrated_samplers_at_its_level():
    """100 images whose 30 quantities are strongly dependent: were they counted as independent, most sets would be rejected."""
    p_values = np.array([uniformity_p_value(shares_of(*gaussian(100, 10, 30, seed=seed))) for seed in range(300)])
    assert 0.02 <= (p_values < 0.05).mean() <= 0.09
    assert p_values.mean() == pytest.approx(0.5, abs=0.06)
    pooled = np.stack([shares_of(*gaussian(100, 10, 30, seed=seed)).mean(0) for seed in range(300)])
    chi_squared = 100 * 30 * 11 * ((pooled - 1 / 11) ** 2).sum(1)
    assert (chi_squared > 18.31).mean() > 0.3


@pytest.mark.parametrize("change", [{"scale": 0.8}, {"scale": 1.2}, {"bias": 0.3}, {"bias": -0.3}])
def test_uniformity_test_detects(change):
    p_values = [uniformity_p_value(shares_of(*gaussian(360, 10, 30, **change, seed=seed))) for seed in range(5)]
    assert max(p_values) < 0.01


def test_uniformity_test_of_few_or_constant_images():
    shares = shares_of(*gaussian(3, 4, 5))
    assert uniformity_p_value(shares[:2]) is None
    assert 0 <= uniformity_p_value(shares) <= 1
    uniform = np.full((9, 5), 0.2)
    assert uniformity_p_value(uniform) == 1
    assert uniformity_p_value(np.eye(5)[np.zeros(9, dtype=int)]) == 0
    ends = np.eye(5)[np.arange(40) % 2 * 4]
    assert uniformity_p_value(ends) < 1e-12


def test_kolmogorov_law_equals_enumeration():
    """All 3**4 outcomes of four ranks among two samples."""
    observed = np.eye(3)[[0, 0, 0, 1]]
    bound = float(largest_deviation(observed.mean(0)))
    distances = [float(largest_deviation(np.eye(3)[list(ranks)].mean(0))) for ranks in itertools.product(range(3), repeat=4)]
    p_value, expected = kolmogorov_test(observed)
    assert p_value == pytest.approx(np.mean(np.array(distances) >= bound - 1e-9), abs=0.015)
    assert expected == pytest.approx(np.mean(distances), abs=0.005)


def test_kolmogorov_p_values_of_uniform_ranks():
    ranks = np.random.default_rng(0).integers(0, 11, (60, 200))
    p_values = np.array([kolmogorov_test(np.eye(11)[row])[0] for row in ranks])
    assert (p_values < 0.05).mean() <= 0.12
    assert p_values.mean() == pytest.approx(0.5, abs=0.12)
