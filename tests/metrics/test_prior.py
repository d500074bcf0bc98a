"""MMD between priors against dense sums in float64, and the share of prior draws inside the support."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

from vfmbench.errors import MissingError, UserError
from vfmbench.metrics import kernels
from vfmbench.metrics import prior as module
from vfmbench.metrics.compute import compute_metrics
from vfmbench.metrics.prior import mmd_prior, sacc_prior, series_terms, squared_mmds


def dense(x: np.ndarray, y: np.ndarray, squared_length: float) -> float:
    n = len(x)
    sums = [np.exp(-cdist(a, b, "sqeuclidean") / (2 * squared_length)).sum() for a, b in ((x, x), (y, y), (x, y))]
    return (sums[0] + sums[1] - 2 * n) / (n * (n - 1)) - 2 * sums[2] / n**2


@pytest.mark.parametrize("d", [1, 2, 3])
@pytest.mark.parametrize("width", [0.1, 1.0, 2.3], ids=["narrow", "as the kernel", "wide"])
@pytest.mark.parametrize("farthest", [7.0, 0.0], ids=["series", "matrices"])
def test_squared_mmds_equal_dense_sums(d, width, farthest, monkeypatch):
    monkeypatch.setattr(module, "_FARTHEST", farthest)
    generator = torch.Generator().manual_seed(0)
    x, draws = (
        width * torch.randn((300, d), generator=generator).double(),
        torch.randn((4, 300, d), generator=generator).double(),
    )
    draws = width * (0.9 * draws + 0.2).clamp(-2.9, 2.9)
    found = squared_mmds(x.clamp(-2.9 * width, 2.9 * width), draws, torch.tensor([1.44], dtype=torch.float64))
    expected = [dense(x.clamp(-2.9 * width, 2.9 * width).numpy(), y.numpy(), 1.44) for y in draws]
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-12)


def test_the_series_is_exact_to_the_farthest_point():
    """Pairs of all signs at the edge, where terms are many and alternate."""
    for reach in (0.01, 0.5, 3.0, 7.0):
        x = torch.linspace(-reach, reach, 41).double()[:, None]
        features = [module.feature_sum(point[None], [series_terms(reach**2)]) for point in x]
        found = torch.stack(features) @ torch.stack(features).mT
        torch.testing.assert_close(found, torch.exp(-(x - x.mT).square() / 2), rtol=0, atol=1e-12)
    assert series_terms(0.01) < series_terms(1.0) < series_terms(49.0) < 120


def test_points_far_away_are_compared_by_matrices(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn((2, 40, 2), generator=generator).double()
    y[3] = 1e6
    length = torch.tensor([1.0]).double()
    assert float(squared_mmds(x, y[None], length)[0]) == pytest.approx(dense(x.numpy(), y.numpy(), 1.0), abs=1e-9)
    monkeypatch.setattr(kernels, "_MEDIAN_POINTS", 10)
    assert float(squared_mmds(x, y[None], length)[0]) == pytest.approx(dense(x[::4].numpy(), y[::4].numpy(), 1.0), abs=1e-9)


def test_squared_mmds_are_unbiased():
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(400):
        x, y = torch.randn((2, 20, 2), generator=generator).double()
        found.append(float(squared_mmds(x, y[None], torch.tensor([2.0]).double())[0]))
    assert abs(np.mean(found)) < 4 * np.std(found) / 20


def test_value_equals_a_loop_over_repetitions(make_points):
    evaluation = make_points(n=200, count=6)
    stretched = replace(evaluation, prior=1.5 * evaluation.prior + 1000, truth=evaluation.truth + 1000)
    (value,) = mmd_prior(stretched)
    truth, draws = stretched.truth.flatten(1).double().numpy(), stretched.prior.flatten(2).double().numpy()
    length = np.median(cdist(truth, draws[:, :, :].transpose(1, 0, 2).reshape(-1, 2), "sqeuclidean"))
    each = [max(0, dense(truth, draws[:, j], length)) ** 0.5 for j in range(6)]
    assert value.value == pytest.approx(np.mean(each), rel=1e-6)
    assert value.low < value.value < value.high
    assert value.n == 200
    assert "6 repetitions of 200 draws" in value.settings
    assert value.per_image is None


def test_a_single_repetition_has_no_interval(make_points):
    (value,) = mmd_prior(make_points(n=30, count=1))
    assert (value.low, value.high) == (None, None)


def test_share_of_prior_draws_in_the_support(make_points):
    evaluation = make_points(n=20, count=5)
    assert sacc_prior(evaluation)[0].value == 1
    prior = evaluation.prior.clone()
    prior[:, 3:] += 50
    (value,) = sacc_prior(replace(evaluation, prior=prior))
    assert value.value == pytest.approx(0.6)
    assert "100 draws" in value.settings


def test_missing_without_prior_draws(make_points, make_set):
    for evaluation, reason in ((make_points(prior=None), "no prior samples"), (make_set(), "needs points")):
        for result in compute_metrics(evaluation, {"mmd_prior": mmd_prior, "sacc_prior": sacc_prior}):
            assert (result.row.value, result.row.broken) == (None, False)
            assert reason in result.row.reason
    with pytest.raises(MissingError, match="posterior is not known"):
        sacc_prior(make_points(exact=None))
    assert mmd_prior(make_points(exact=None))[0].value is not None


def test_draws_that_are_not_finite_and_single_points(make_points):
    prior = make_points().prior.clone()
    prior[3, 2, 1] = float("inf")
    for metric in (mmd_prior, sacc_prior):
        with pytest.raises(UserError, match="1 prior samples are not finite"):
            metric(make_points(prior=prior))
    with pytest.raises(UserError, match="at least 2 points"):
        mmd_prior(make_points(n=1))
