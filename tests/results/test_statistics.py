import itertools
import warnings

import numpy as np
import pytest
import torch
from scipy import stats

from vfmbench.errors import UserError
from vfmbench.metrics.distribution import linearised_replicates
from vfmbench.metrics.frechet import frechet_distance
from vfmbench.metrics.kernels import cubic_kernel, squared_mmd
from vfmbench.results.statistics import (
    FEWEST_IMAGES,
    beyond,
    holm,
    mean_interval,
    normal_interval,
    paired_difference,
    paired_p_values,
    paired_set_difference,
    resampling_counts,
    share_interval,
    wilson_interval,
)


def test_published_numbers_do_not_move():
    """Values of 60 normal draws and of others, as the release before this room computed them with torch."""
    rng = np.random.default_rng(7)
    a, b = rng.standard_normal(60) + 0.2, rng.standard_normal(60)
    shares, x, y = rng.random(40), *(rng.standard_normal((2, 200)) * 0.1 + 1)
    assert mean_interval(a) == pytest.approx((-0.23932776939857275, 0.2269242380149612), rel=1e-12)
    assert mean_interval(a.astype(np.float32)) == pytest.approx((-0.23932777636873126, 0.22692423974875042), rel=1e-12)
    assert mean_interval(np.exp(a)) == pytest.approx((1.1555762923894035, 1.9685463592471981), rel=1e-12)
    assert share_interval(shares) == pytest.approx((0.452812144445635, 0.6212426647716521), rel=1e-12)
    assert normal_interval(1.0, x) == pytest.approx((0.8159771356969817, 1.1840228643030182), rel=1e-12)
    difference = paired_difference(a, b)
    assert (difference.low, difference.high) == pytest.approx((-0.22404530923096427, 0.3601667072058217), rel=1e-12)
    assert difference.p_value == 0.6367
    assert paired_difference(a[:8], b[:8]).p_value == 0.640625
    of_set = paired_set_difference(1.0, 1.1, x, y + 0.1, 60)
    assert (of_set.low, of_set.high) == pytest.approx((-0.3720524285047733, 0.17205242850477315), rel=1e-12)
    assert of_set.p_value == pytest.approx(0.46493786750732624, rel=1e-12)
    from_target = paired_set_difference(1.3, 0.9, x + 0.3, y - 0.1, 60, 1.0)
    assert (from_target.low, from_target.high) == pytest.approx((-0.06009625028643922, 0.46009625028643936), rel=1e-12)
    assert from_target.p_value == pytest.approx(0.12923423283223168, rel=1e-12)
    assert resampling_counts(60)[[0, 199], :5].tolist() == [[1, 0, 0, 0, 2], [1, 0, 0, 0, 4]]


@pytest.mark.parametrize(("law", "expected"), [("standard_normal", 0.0), ("standard_exponential", 1.0)])
def test_interval_of_the_mean_covers_in_about_95_percent(law, expected):
    draw = getattr(np.random.default_rng(0), law)
    intervals = [mean_interval(draw(80)) for _ in range(300)]
    coverage = np.mean([low <= expected <= high for low, high in intervals])
    assert 0.90 <= coverage <= 0.985


@pytest.mark.slow
@pytest.mark.parametrize(("n", "bounds"), [(20, (0.90, 0.985)), (150, (0.93, 0.97))], ids=["n20", "n150"])
@pytest.mark.parametrize(
    ("draw", "expected"),
    [
        (np.random.Generator.standard_normal, 0.0),
        (np.random.Generator.standard_exponential, 1.0),
        (lambda rng, size: rng.integers(2, size=size), 0.5),
    ],
    ids=["normal", "exponential", "coins"],
)
def test_interval_of_the_mean_covers_in_95_percent_of_many_sets(draw, expected, n, bounds):
    """1000 sets: a coverage of 95 % is measured to +- 1.4 %. At 20 images BCa is a few points off."""
    rng = np.random.default_rng(1)
    intervals = [mean_interval(draw(rng, n)) for _ in range(1000)]
    low, high = bounds
    assert low <= np.mean([bottom <= expected <= top for bottom, top in intervals]) <= high


@pytest.mark.slow
def test_normal_interval_of_a_ratio_covers_in_95_percent():
    """sqrt of a ratio of means, as the spread-skill ratio is, from 100 images."""
    rng = np.random.default_rng(0)
    covered = []
    for _ in range(1000):
        pairs = rng.standard_exponential((100, 2))
        replicates = resampling_counts(100) @ pairs
        value = float(np.sqrt(pairs[:, 0].sum() / pairs[:, 1].sum()))
        low, high = normal_interval(value, np.sqrt(replicates[:, 0] / replicates[:, 1]))
        covered.append(low <= 1 <= high)
    assert 0.925 <= np.mean(covered) <= 0.965


def test_interval_is_repeatable_and_has_the_normal_width():
    values = np.random.default_rng(0).standard_normal(500)
    low, high = mean_interval(values)
    assert (low, high) == mean_interval(values)
    assert high - low == pytest.approx(2 * 1.96 * float(values.std()) / 500**0.5, rel=0.1)


def test_interval_of_skewed_data_reaches_further_to_the_long_tail():
    values = np.random.default_rng(0).standard_exponential(40)
    low, high = mean_interval(values)
    assert high - float(values.mean()) > 1.1 * (float(values.mean()) - low)


def test_degenerate_data_gives_no_warning_and_no_nan():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert mean_interval(np.full(9, 0.25)) == (0.25, 0.25)
        assert mean_interval(np.zeros(3)) == (0, 0)
        assert mean_interval(np.array([0.1 + 0.2] * 5 + [0.3] * 4)) == pytest.approx((0.3, 0.3))
        assert mean_interval(np.ones(1)) == (None, None)
        for values in ([0.0, 1.0], [0.0] * 30 + [1.0], [1e9, 1e9 + 1, 1e9]):
            low, high = mean_interval(np.array(values))
            assert low < high


def test_share_interval_of_all_or_none_is_wilsons():
    """Closed form: n / (n + z^2) is the lower end for n of n."""
    z = 1.959964
    assert share_interval(np.ones(360)) == pytest.approx((360 / (360 + z**2), 1))
    assert share_interval(np.zeros(40)) == pytest.approx((0, z**2 / (40 + z**2)))
    mixed = np.array([0.0, 0.5, 1.0, 1.0, 0.2])
    assert share_interval(mixed) == mean_interval(mixed)
    assert share_interval(np.ones(1)) == (None, None)


@pytest.mark.parametrize("share", [0.9, 0.99])
def test_wilson_interval_covers(share):
    """Exact coverage over the binomial law of 60 trials."""
    covered = sum(
        stats.binom.pmf(k, 60, share) for k in range(61) if wilson_interval(k, 60)[0] <= share <= wilson_interval(k, 60)[1]
    )
    assert 0.93 <= covered <= 0.985


def test_resampling_counts():
    counts = resampling_counts(50)
    assert counts.shape == (200, 50)
    assert (counts.sum(1) == 50).all()
    assert float(counts.std()) == pytest.approx((1 - 1 / 50) ** 0.5, rel=0.05)


def test_normal_interval():
    low, high = normal_interval(2.0, np.array([1.0, 3.0, 5.0]))
    assert (low, high) == pytest.approx((2 - 3.92, 2 + 3.92))


def test_paired_difference_sees_what_unpaired_intervals_hide():
    rng = np.random.default_rng(0)
    difficulty = 10 * rng.standard_normal(100)
    a = difficulty + 0.3 + 0.5 * rng.standard_normal(100)
    result = paired_difference(a, difficulty)
    assert result.difference == pytest.approx(float((a - difficulty).mean()), rel=1e-5)
    assert 0 < result.low < result.difference < result.high
    assert result.p_value == pytest.approx(1e-4)
    assert result.n == 100
    swapped = paired_difference(difficulty, a)
    assert (swapped.difference, swapped.p_value) == pytest.approx((-result.difference, result.p_value))


def test_exact_sign_flips_of_few_images():
    """All five differences positive: 2 of the 32 sign patterns are at least as extreme."""
    assert paired_difference(np.arange(1, 6), np.zeros(5)).p_value == pytest.approx(2 / 32)


def test_random_sign_flips_equal_scipy():
    difference = np.random.default_rng(0).standard_normal(40) + 0.25
    expected = stats.permutation_test(
        (difference,), np.mean, permutation_type="samples", vectorized=True, n_resamples=9999, rng=1
    )
    assert 0.02 < expected.pvalue < 0.5
    assert paired_difference(difference, np.zeros(40)).p_value == pytest.approx(expected.pvalue, abs=0.015)


def test_many_paired_p_values_are_those_of_each():
    rng = np.random.default_rng(0)
    differences = [rng.standard_normal(n) + 0.1 for n in (30, 5, 30, 1, 30, 5)]
    p_values = paired_p_values(differences)
    assert p_values[3] is None
    for difference, p_value in zip(differences, p_values, strict=True):
        assert p_value == paired_difference(difference, np.zeros(len(difference))).p_value
    assert paired_p_values([]) == []


def replicates_of_mean(values):
    return resampling_counts(len(values)) @ values / len(values)


@pytest.mark.parametrize(
    ("count", "bounds"), [(150, (0.09, 0.03)), pytest.param(2000, (0.065, 0.009), marks=pytest.mark.slow)], ids=["few", "many"]
)
@pytest.mark.parametrize("n", [FEWEST_IMAGES, 80])
@pytest.mark.parametrize("means", [(2.0, 2.0), (2.0, 0.0), (1.2, 0.8), (1.2, 1.2), (1.0, 1.0)])
def test_distances_from_a_target_differ_no_more_often_than_chance(means, n, count, bounds):
    """Two methods equally far from the target 1, on both sides of it and on one, at nominal levels of 5 % and 0.5 %."""
    rng = np.random.default_rng(0)
    p_values = []
    for _ in range(count):
        columns = rng.standard_normal((2, n)) + np.array(means)[:, None]
        values, replicates = columns.mean(1).tolist(), [replicates_of_mean(column) for column in columns]
        p_values.append(paired_set_difference(*values, *replicates, n=n, target=1.0).p_value)
    assert np.mean(np.array(p_values) < 0.05) <= bounds[0]
    assert np.mean(np.array(p_values) < 0.005) <= bounds[1]


def spread_skill_of(truth, samples):
    moments = torch.stack([truth.square().mean(1), samples.square().mean(1)], dim=1).numpy()
    means = np.concatenate([np.ones((1, len(truth))), resampling_counts(len(truth))]) @ moments
    ratios = np.sqrt(means[:, 0] / means[:, 1])
    return float(ratios[0]), ratios[1:]


def frechet_of(truth, samples):
    value, influence = frechet_distance(truth, samples)
    return value, linearised_replicates(value, influence).numpy()


def kernel_of(truth, samples):
    counts = torch.cat([torch.ones(1, len(truth)).double(), torch.from_numpy(resampling_counts(len(truth)))])
    estimates = squared_mmd(truth, samples, cubic_kernel, counts)[1]
    return float(estimates[0]), estimates[1:].numpy()


@pytest.mark.slow
@pytest.mark.parametrize("n", [FEWEST_IMAGES, 60])
@pytest.mark.parametrize(
    ("statistic", "target"),
    [(frechet_of, None), (kernel_of, None), (spread_skill_of, None), (spread_skill_of, 0.7)],
    ids=["frechet", "kernel", "ratio", "ratio_and_target"],
)
def test_statistics_of_equal_methods_differ_as_often_as_chance(statistic, target, n):
    """1500 pairs of methods with the same law, at nominal levels of 5 % and 0.5 %, each measured to +- 1.1 % and +- 0.4 %."""
    generator = torch.Generator().manual_seed(0)
    p_values = []
    for _ in range(1500):
        truth, *noises = torch.randn(3, n, 4, generator=generator, dtype=torch.float64)
        (a, of_a), (b, of_b) = (statistic(truth, 1 + 0.2 * truth + 0.5 * noise) for noise in noises)
        p_values.append(paired_set_difference(a, b, of_a, of_b, n, target).p_value)
    assert 0.015 <= np.mean(np.array(p_values) < 0.05) <= 0.065
    assert np.mean(np.array(p_values) < 0.005) <= 0.012


def test_p_values_of_equal_methods_are_uniform():
    rng = np.random.default_rng(0)
    pairs = (rng.standard_normal((2, 25)) for _ in range(200))
    p_values = np.array([paired_difference(a, b).p_value for a, b in pairs])
    assert 0.01 <= (p_values < 0.05).mean() <= 0.09
    assert p_values.mean() == pytest.approx(0.5, abs=0.08)


def test_paired_difference_of_equal_values_and_of_one_image():
    values = np.arange(6.0)
    result = paired_difference(values, values)
    assert (result.difference, result.low, result.high, result.p_value) == (0, 0, 0, 1)
    result = paired_difference(values[:1], values[1:2])
    assert (result.difference, result.low, result.high, result.p_value, result.n) == (-1, None, None, None, 1)


def test_paired_difference_refuses_what_it_cannot_compare():
    with pytest.raises(UserError, match="same images"):
        paired_difference(np.zeros(3), np.zeros(4))
    with pytest.raises(UserError, match="finite"):
        paired_difference(np.array([1.0, np.inf]), np.zeros(2))


def test_paired_set_difference_uses_only_what_does_not_cancel():
    """Two Frechet-like statistics that share the noise of the choice of images and differ by 0.1."""
    shared, own = np.random.default_rng(0).standard_normal((2, 200))
    result = paired_set_difference(1.1, 1.0, 1.1 + shared, 1.0 + shared + 0.01 * own, n=50)
    assert result.difference == pytest.approx(0.1)
    assert result.p_value < 1e-6
    assert result.high - result.low == pytest.approx(2 * 1.96 * 0.01, rel=0.2)
    unpaired = paired_set_difference(1.1, 1.0, 1.1 + shared, 1.0 + own, n=50)
    assert unpaired.p_value > 0.5
    assert paired_set_difference(1.0, 1.0, shared, shared, n=50).p_value == 1
    assert paired_set_difference(1.0, 1.1, shared, shared, n=50).p_value is None
    with pytest.raises(UserError, match="200 and 100"):
        paired_set_difference(1.0, 1.0, shared, shared[:100], n=50)


def test_paired_set_difference_of_means_is_the_paired_t_test():
    a, b = np.random.default_rng(0).standard_normal((2, FEWEST_IMAGES))
    expected = stats.ttest_rel(a, b)
    result = paired_set_difference(float(a.mean()), float(b.mean()), replicates_of_mean(a), replicates_of_mean(b), len(a))
    interval = expected.confidence_interval()
    assert result.p_value == pytest.approx(expected.pvalue, abs=0.05)
    assert result.high - result.low == pytest.approx(interval.high - interval.low, rel=0.15)


def test_paired_set_difference_of_few_images_has_an_interval_and_no_p_value():
    a, b = np.random.default_rng(0).standard_normal((2, FEWEST_IMAGES - 1))
    for others in (b, a):
        means, replicates = (float(a.mean()), float(others.mean())), (replicates_of_mean(a), replicates_of_mean(others))
        result = paired_set_difference(*means, *replicates, len(a))
        assert result.low <= result.difference <= result.high
        assert result.p_value is None
    result = paired_set_difference(1.0, 2.0, np.ones(200), 2 * np.ones(200), n=1)
    assert (result.difference, result.low, result.p_value) == (-1, None, None)


def test_set_statistics_on_both_sides_of_a_target():
    """1.5 and 0.6 are 0.5 and 0.4 from 1: the interval is of 0.1, not of 0.9."""
    above, below = np.random.default_rng(0).standard_normal((2, 200))
    result = paired_set_difference(1.5, 0.6, 1.5 + 0.1 * above, 0.6 + 0.1 * below, n=100, target=1.0)
    assert result.difference == pytest.approx(0.1)
    assert (result.low + result.high) / 2 == pytest.approx(0.1)
    assert result.p_value == pytest.approx(2 * stats.norm.sf(0.1 / 0.1 / 2**0.5), abs=0.1)
    np.testing.assert_array_equal(beyond(1.0, 0.6, np.array([0.5, 1.5])), [0.5, -0.5])


def test_holm_by_hand():
    """Sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1, made monotone."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1, 1]
    assert holm([0.2]) == [0.2]
    assert holm([]) == []


def test_holm_is_the_closed_test_of_bonferroni():
    """An hypothesis is rejected when every intersection of hypotheses that contains it is: the definition, by brute force."""
    p_values = np.random.default_rng(0).random(5) ** 3
    for position, corrected in enumerate(holm(list(p_values))):
        others = [k for k in range(5) if k != position]
        families = [(position, *more) for size in range(5) for more in itertools.combinations(others, size)]
        expected = max(min(1, len(family) * min(p_values[k] for k in family)) for family in families)
        assert corrected == pytest.approx(expected)


def test_holm_keeps_the_chance_of_any_false_call():
    rng = np.random.default_rng(0)
    shared, own = rng.standard_normal((2000, 1)), rng.standard_normal((2000, 6))
    p_values = 2 * stats.norm.sf(np.abs((shared + own) / 2**0.5))
    assert np.mean([min(holm(list(row))) < 0.05 for row in p_values]) <= 0.06
