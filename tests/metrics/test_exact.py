"""Distances from an exact posterior against double loops, SciPy, closed forms and exact draws."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from vfmbench.errors import MissingError, UserError
from vfmbench.metrics import exact as module
from vfmbench.metrics.compute import compute_metrics
from vfmbench.metrics.exact import mmd_of_each, mmd_posterior, mode_error, sacc_posterior, sliced_distances, sliced_wasserstein
from vfmbench.metrics.kernels import median_squared_distance_across, squared_mmd_of_each

ALL = {"mmd_posterior": mmd_posterior, "sliced_wasserstein": sliced_wasserstein, "mode_error": mode_error}


@pytest.fixture
def pairs() -> tuple[torch.Tensor, torch.Tensor]:
    """Five pairs of sets of eight points in three dimensions, of different widths."""
    generator = torch.Generator().manual_seed(0)
    width = torch.tensor([0.01, 0.3, 1.0, 5.0, 20.0])[:, None, None].double()
    x, y = torch.randn((2, 5, 8, 3), generator=generator).double()
    return width * x, width * (0.8 * y + 0.4)


def floor(value) -> float:
    return float(re.search(r"exact samples themselves: ([\d.]+)", value.settings)[1])


def test_mmd_equals_a_double_loop(pairs):
    found = mmd_of_each(*pairs)
    squared = squared_mmd_of_each(*pairs, median_squared_distance_across(*pairs))
    for row, (x, y) in enumerate(zip(*(part.numpy() for part in pairs), strict=True)):
        length = np.median([((a - b) ** 2).sum() for a in x for b in y])

        def kernel(a, b, length=length):
            return np.exp(-((a - b) ** 2).sum() / (2 * length))

        within = sum(kernel(p[i], p[j]) for p in (x, y) for i in range(8) for j in range(8) if i != j)
        expected = within / 56 - 2 * np.mean([kernel(a, b) for a in x for b in y])
        assert float(squared[row]) == pytest.approx(expected, rel=1e-9)
        assert float(found[row]) == pytest.approx(max(0, expected) ** 0.5, rel=1e-9)
    assert (squared > 0).any()


def test_squared_mmd_is_unbiased():
    """Standard normals, one shifted, whose squared MMD has a closed form; few points, so that a bias of O(1/n) would show."""
    length, shift, d = 2.0, 0.5, 2
    expected = 2 * (length / (length + 2)) ** (d / 2) * (1 - np.exp(-d * shift**2 / (2 * (length + 2))))
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn((2, 40_000, 5, d), generator=generator).double()
    found = squared_mmd_of_each(x, y + shift, torch.full((40_000,), length))
    assert float(found.mean()) == pytest.approx(expected, abs=4 * float(found.std()) / 200)


def test_squared_mmd_of_equal_laws_is_zero_on_average(make_points):
    """With the median heuristic, whose dependence on the data matters only for sets of a few points."""
    evaluation = make_points(n=2000, count=40)
    x, y = (evaluation.exact_samples(copy).flatten(2).double() for copy in (0, 1))
    squared = squared_mmd_of_each(x, y, median_squared_distance_across(x, y))
    assert abs(float(squared.mean())) < 4 * float(squared.std()) / 2000**0.5


def test_sets_that_coincide_in_one_point_are_at_no_distance():
    points = torch.ones(3, 4, 2).double()
    assert mmd_of_each(points, points).tolist() == [0, 0, 0]
    assert mmd_of_each(points, points + 1).tolist() == pytest.approx([(2 - 2 * np.exp(-0.5)) ** 0.5] * 3)


def test_sliced_distance_equals_scipy(pairs):
    x, y = pairs
    directions = torch.nn.functional.normalize(torch.randn(3, 7, generator=torch.Generator().manual_seed(1)).double(), dim=0)
    for row, found in enumerate(sliced_distances(x, y, directions)):
        each = [
            stats.wasserstein_distance((x[row] @ axis).numpy(), (y[row] @ axis).numpy()) for axis in directions.unbind(1)
        ]  # fmt: skip
        assert float(found) == pytest.approx(np.mean(each), rel=1e-12)


def test_sliced_distance_of_a_shift(make_points):
    """A shift by v moves every projection by |v . direction|, whose mean over the circle is 2 |v| / pi."""
    evaluation = make_points(n=4, count=50)
    shifted = evaluation.exact_samples(0) + torch.tensor([30.0, 40.0])[:, None, None]
    (value,) = sliced_wasserstein(replace(evaluation, samples=shifted))
    assert value.value == pytest.approx(100 / np.pi, rel=0.1)
    assert "1-Wasserstein" in value.settings


def test_exact_samples_are_common_to_all_methods(make_points):
    first, second = make_points(n=6, count=5), make_points(n=6, count=5, scale=2.0, seed=3)
    for copy in (0, 1):
        assert torch.equal(first.exact_samples(copy), second.exact_samples(copy))
    assert not torch.equal(first.exact_samples(0), first.exact_samples(1))
    assert first.exact_samples(0) is first.exact_samples(0)


@pytest.mark.parametrize("name", list(ALL))
def test_exact_draws_reach_the_floor(make_points, name):
    """Draws of the posterior, which are independent of those that they are compared with."""
    for value in ALL[name](make_points(n=600, count=20)):
        error = float(value.per_image.std()) / 600**0.5
        assert value.value == pytest.approx(floor(value), abs=4.5 * error)
        assert value.low < value.value < value.high
        assert value.n == 600
    for value in ALL[name](make_points(n=600, count=20, scale=1.5)):
        assert value.low > 1.2 * floor(value)


def test_metrics_equal_loops_over_observations(make_points, monkeypatch):
    evaluation = make_points(n=9, count=6, scale=1.2)
    exact, others = (evaluation.exact_samples(copy).flatten(2).double() for copy in (0, 1))
    monkeypatch.setattr(module, "_BLOCK_VALUES", 2 * 6 * 100)
    (mmd,), (wasserstein,) = mmd_posterior(evaluation), sliced_wasserstein(evaluation)
    directions = module.random_directions(2).double()
    for i, points in enumerate(evaluation.samples.flatten(2).double()):
        torch.testing.assert_close(mmd.per_image[i], mmd_of_each(points[None], exact[i : i + 1])[0])
        torch.testing.assert_close(wasserstein.per_image[i], sliced_distances(points[None], exact[i : i + 1], directions)[0])
    assert floor(mmd) == pytest.approx(float(mmd_of_each(others, exact).mean()), abs=1e-4)
    assert floor(wasserstein) == pytest.approx(float(sliced_distances(others, exact, directions).mean()), abs=1e-4)


def test_only_the_first_observations_are_compared(make_points, monkeypatch):
    evaluation = make_points(n=9, count=6)
    everything = [metric(evaluation)[0].per_image for metric in (mmd_posterior, sliced_wasserstein)]
    monkeypatch.setattr(module, "_MOST_OBSERVATIONS", 5)
    for metric, per_image in zip((mmd_posterior, sliced_wasserstein), everything, strict=True):
        (value,) = metric(evaluation)
        assert value.n == 5
        assert "first 5 of 9 observations" in value.settings
        torch.testing.assert_close(value.per_image, per_image[:5])


@pytest.mark.parametrize(
    ("shift", "first", "variation", "largest"),
    [(0.0, 0.5, 0.5, 0.5), (2.0, 0.3, 0.3, 0.3), (0.0, 0.3, 0.7, 0.7), (100.0, 0.3, 1.0, 0.7), (0.0, 1.0, 0.0, 0.0)],
    ids=["one mode of two", "the larger mode", "the smaller mode", "outside", "the only mode"],
)
def test_mode_error_of_samples_in_one_place(make_points, shift, first, variation, largest):
    samples = torch.rand((12, 10, 2, 1, 1), generator=torch.Generator().manual_seed(0))
    samples[:, :, 0] += shift
    found = mode_error(make_points(first=first, samples=samples))
    assert [value.name for value in found] == ["mode_error", "mode_share_error"]
    assert [value.value for value in found] == pytest.approx([variation, largest])


def test_mode_error_is_a_total_variation_with_the_outside_as_a_mode(make_points):
    """Six of ten samples in the first square, one in the second, three outside; exact are 0.3 and 0.7."""
    samples = torch.tensor([[0.5] * 6 + [2.5] + [1.5] * 3] * 12)
    samples = torch.stack([samples, torch.full_like(samples, 0.5)], -1)[..., None, None]
    found = mode_error(make_points(samples=samples))
    assert found[0].value == pytest.approx((abs(0.6 - 0.3) + abs(0.1 - 0.7) + 0.3) / 2)
    assert found[1].value == pytest.approx(0.6)
    (value,) = sacc_posterior(make_points(samples=samples))
    assert value.value == pytest.approx(0.7)


def test_floor_of_the_mode_error_is_the_binomial_mean_deviation(make_points):
    value = mode_error(make_points(n=4000, count=10))[0]
    outcomes = np.arange(11)
    expected = (stats.binom.pmf(outcomes, 10, 0.3) * np.abs(outcomes / 10 - 0.3)).sum()
    assert floor(value) == pytest.approx(expected, abs=0.005)
    assert value.value == pytest.approx(expected, abs=0.005)


def test_mode_shares_do_not_depend_on_blocks(make_points, monkeypatch):
    evaluation = make_points(n=7, count=9, scale=1.3)
    whole = [value.per_image for value in [*mode_error(evaluation), *sacc_posterior(evaluation)]]
    monkeypatch.setattr(module, "_SHARE_VALUES", 2 * 7 * 2)
    parts = [value.per_image for value in [*mode_error(evaluation), *sacc_posterior(evaluation)]]
    torch.testing.assert_close(whole, parts)


def test_all_inside_is_an_interval_not_a_certainty(make_points):
    (value,) = sacc_posterior(make_points(n=100))
    assert value.value == 1
    assert 0.9 < value.low < value.high == 1


def test_missing_where_the_posterior_is_not_known(make_points, make_set):
    metrics = {**ALL, "sacc_posterior": sacc_posterior}
    evaluations = {
        make_points(exact=None): "not known",
        make_set(): "needs points",
        make_points(count=1, exact=None): "not known",
    }
    for evaluation, reason in evaluations.items():
        for result in compute_metrics(evaluation, metrics):
            assert (result.row.value, result.row.broken) == (None, False)
            assert reason in result.row.reason
    with pytest.raises(MissingError):
        make_set().exact_samples(0)


def test_too_few_samples_or_modes(make_points):
    with pytest.raises(UserError, match="at least 2 points"):
        mmd_posterior(make_points(count=1))
    assert sliced_wasserstein(make_points(count=1))[0].value > 0
    evaluation = make_points()
    evaluation.exact.mode_weights = lambda: torch.ones(12, 1)
    with pytest.raises(UserError, match="single mode"):
        mode_error(evaluation)
