import itertools

import numpy as np
import pytest
import scipy.linalg
import torch
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

from vfmbench.errors import UserError
from vfmbench.metrics.distribution import linearised_replicates
from vfmbench.metrics.frechet import extrapolated_frechet_distance, fid, fid_infinity, frechet_distance
from vfmbench.results.statistics import normal_interval, resampling_counts


def pair(n: int, d: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Two overlapping clouds of decaying variances; a row of the second resembles the same row of the first."""
    scale = torch.arange(1, d + 1).double() ** -0.5
    x, noise = torch.randn((2, n, d), generator=generator).double() * scale
    return x, 0.8 * x + 0.4 * noise + 0.1 * scale


def by_matrix_square_root(x: np.ndarray, y: np.ndarray) -> float:
    root = scipy.linalg.sqrtm(np.cov(x, rowvar=False) @ np.cov(y, rowvar=False)).real
    traces = np.trace(np.cov(x, rowvar=False) + np.cov(y, rowvar=False) - 2 * root)
    return float(((x.mean(0) - y.mean(0)) ** 2).sum() + traces)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_distance_equals_matrix_square_root(generator):
    x, y = pair(30, 4, generator)
    assert frechet_distance(x, y)[0] == pytest.approx(by_matrix_square_root(x.numpy(), y.numpy()), rel=1e-8)


def test_distance_of_gaussians_with_known_moments():
    """Commuting covariances: |m|^2 + sum (s_x - s_y)^2, with points whose sample moments are exactly those."""
    corners = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0]).double()] * 3) * (7 / 8) ** 0.5
    s_x, s_y, shift = (torch.tensor(values).double() for values in ([1.0, 2.0, 0.5], [1.5, 0.0, 0.5], [0.3, 0.0, -1.0]))
    expected = shift.square().sum() + (s_x - s_y).square().sum()
    assert frechet_distance(corners * s_x, corners * s_y + shift)[0] == pytest.approx(float(expected), rel=1e-12)


@pytest.mark.parametrize("n", [6, 20])
def test_distance_with_singular_covariances(generator, n):
    """The last trace is the sum of singular values of the product of the centred data, whatever their rank."""
    x, y = pair(n, 20, generator)
    a, b = x - x.mean(0), y - y.mean(0)
    trace = torch.linalg.svdvals(a @ b.mT).sum()
    expected = (x.mean(0) - y.mean(0)).square().sum() + (a.square().sum() + b.square().sum() - 2 * trace) / (n - 1)
    assert frechet_distance(x, y)[0] == pytest.approx(float(expected), rel=1e-6)
    dead = torch.zeros(n, 8 * n).double()
    assert frechet_distance(torch.cat([x, dead], 1), torch.cat([y, dead], 1))[0] == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize(("n", "d"), [(30, 6), (300, 40), (10, 40)])
def test_distance_equals_torch_fidelity(generator, n, d):
    x, y = pair(n, d, generator)
    statistics = [fid_features_to_statistics(part) for part in (x, y)]
    expected = fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    assert frechet_distance(x, y)[0] == pytest.approx(expected, rel=1e-3)


def test_distance_of_equal_and_of_constant_sets(generator):
    for n in (3, 30):
        x, _ = pair(n, 4, generator)
        value, influence = frechet_distance(x, x)
        assert 0 <= value < 1e-6
        assert float(influence.abs().max()) < 1e-6
        constant = torch.ones_like(x)
        value, influence = frechet_distance(constant, constant + 2)
        assert value == pytest.approx(16)
        assert float(influence.abs().max()) == 0


@pytest.mark.parametrize(("n", "d"), [(40, 5), (6, 12)])
def test_influence_is_the_derivative_by_counts(generator, n, d):
    """Against central differences of the distance of weighted data."""
    x, y = pair(n, d, generator)

    def weighted(counts: torch.Tensor) -> float:
        def moments(points):
            mean = counts @ points / n
            return mean, (points - mean).mT @ (counts[:, None] * (points - mean)) / (n - 1)

        (m_x, s_x), (m_y, s_y) = moments(x), moments(y)
        factor = torch.linalg.svd(s_x)
        factor = factor.U * factor.S.sqrt()
        trace = torch.linalg.svdvals(factor.mT @ s_y @ factor).sqrt().sum()
        return float((m_x - m_y).square().sum() + s_x.trace() + s_y.trace() - 2 * trace)

    _, influence = frechet_distance(x, y)
    assert float(influence.sum()) == pytest.approx(0, abs=1e-10)
    for i in range(3):
        step = torch.zeros(n).double()
        # Counts keep their sum, and their derivative is the difference of two influences.
        step[i], step[i + 1] = 1e-4, -1e-4
        slope = (weighted(1 + step) - weighted(1 - step)) / 2e-4
        assert slope == pytest.approx(float(influence[i] - influence[i + 1]), rel=1e-4)


@pytest.mark.parametrize(("n", "d"), [(80, 3), (16, 64)])
def test_spread_matches_repeated_sampling_and_the_bootstrap(generator, n, d):
    values, spreads, bootstrap = [], [], []
    for _ in range(100):
        x, y = pair(n, d, generator)
        value, influence = frechet_distance(x, y)
        values.append(value)
        spreads.append(float(linearised_replicates(value, influence).std()))
        if len(bootstrap) < 5:
            index = torch.randint(0, n, (60, n), generator=generator)
            bootstrap.append(np.std([frechet_distance(x[rows], y[rows])[0] for rows in index]))
    assert 0.8 < np.mean(spreads) / np.std(values) < 1.25
    assert 0.6 < np.mean(spreads) / np.mean(bootstrap) < 1.4


def test_extrapolation_has_no_bias_and_its_interval_covers(generator):
    d, shift = 8, 0.1
    scale = torch.arange(1, d + 1).double() ** -0.5
    expected = float((shift * scale).square().sum() + (scale * (1 - (0.8**2 + 0.4**2) ** 0.5)).square().sum())
    plain, values, covered = [], [], []
    for _ in range(150):
        x, y = pair(5 * d, d, generator)
        plain.append(frechet_distance(x, y)[0])
        value, influence = extrapolated_frechet_distance(x, y)
        low, high = normal_interval(value, linearised_replicates(value, influence).numpy())
        values.append(value)
        covered.append(low <= expected <= high)
    error = np.std(values) / 150**0.5
    assert np.mean(plain) > expected + 10 * error
    assert np.mean(values) == pytest.approx(expected, abs=max(3 * error, 0.1 * (np.mean(plain) - expected)))
    assert 0.88 <= np.mean(covered) <= 0.995


@pytest.mark.parametrize("n", [4, 5])
def test_extrapolation_is_the_line_through_whole_and_halves(generator, n):
    """It equals the intercept for one of all possible splits; of an odd number, one image is in neither half."""
    x, y = pair(n, 3, generator)
    value, influence = extrapolated_frechet_distance(x, y)
    whole = frechet_distance(x, y)[0]
    parts = {rows: frechet_distance(x[list(rows)], y[list(rows)])[0] for rows in itertools.combinations(range(n), 2)}
    intercepts = [
        np.polyfit([1 / n, 1 / 2], [whole, (parts[a] + parts[b]) / 2], 1)[1]
        for a, b in itertools.combinations(parts, 2)
        if not set(a) & set(b)
    ]
    # Of halves of two points the covariances are singular, and roots of their eigenvalues are off by 1e-8.
    assert min(abs(value - intercept) for intercept in intercepts) < 1e-7
    assert float(influence.sum()) == pytest.approx(0, abs=1e-10)


def test_values(make_set, pixel_space):
    evaluation = make_set(40, 2, noise=200, feature_spaces={"pixels": pixel_space(), "inception": "no weights"})
    truth, samples = evaluation.features("pixels")
    value, absent = fid(evaluation)
    assert (value.name, value.n, value.feature_space) == ("fid@pixels", 40, "pixels")
    expected = by_matrix_square_root(truth.double().numpy(), samples[:, 0].double().numpy())
    assert value.value == pytest.approx(expected, rel=1e-6)
    assert 0 <= value.low < value.value < value.high
    assert "raw features" in value.settings
    assert "infinitesimal jackknife" in value.settings
    assert "WARNING" not in value.settings
    _, influence = frechet_distance(truth.double(), samples[:, 0].double())
    torch.testing.assert_close(value.replicates, value.value + torch.from_numpy(resampling_counts(40) - 1) @ influence)
    assert (absent.name, absent.value, absent.reason) == ("fid@inception", None, "no weights")
    limit, absent = fid_infinity(evaluation)
    assert limit.name == "fid_infinity@pixels"
    assert limit.value < value.value
    assert limit.low < limit.value < limit.high
    assert "n = 40 and both halves" in limit.settings
    assert absent.reason == "no weights"


def test_few_images(make_set, pixel_space):
    evaluation = make_set(6, 1, feature_spaces={"pixels": pixel_space(dimension=6)})
    assert "n = 6 images for d = 6 features" in fid(evaluation)[0].settings
    (limit,) = fid_infinity(evaluation)
    assert limit.value is None
    assert "needs 30 of them for d = 6 features, not 6" in limit.reason
    evaluation = make_set(1, 2, feature_spaces={"pixels": pixel_space()})
    for metric in (fid, fid_infinity):
        assert "at least 2 images" in metric(evaluation)[0].reason


def test_constant_features(make_set, pixel_space):
    space = pixel_space()
    space.features = lambda images: torch.ones(len(images), 3)
    (distance,) = fid(make_set(feature_spaces={"pixels": space}))
    assert (distance.value, distance.low, distance.high) == (0, 0, 0)


def test_sets_that_do_not_fit_are_refused():
    for x, y in ((torch.ones(3, 2), torch.ones(4, 2)), (torch.ones(1, 2), torch.ones(1, 2)), (torch.ones(3), torch.ones(3))):
        with pytest.raises(UserError, match="two equal sets of at least 2"):
            frechet_distance(x, y)
