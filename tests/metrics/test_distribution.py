import numpy as np
import pytest
import scipy.linalg
import torch

from vfmbench.interfaces import UserError
from vfmbench.metrics import distribution
from vfmbench.metrics.distribution import (
    cubic_kernel,
    fid,
    frechet_distances,
    gaussian_kernel,
    kid,
    median_squared_distance,
    mmd,
    squared_mmd,
)
from vfmbench.metrics.statistics import normal_interval, resampling_counts


@pytest.fixture
def sets() -> tuple[torch.Tensor, torch.Tensor]:
    """Two overlapping clouds, and a row of the second resembles the same row of the first."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn((30, 4), generator=generator).double() * torch.tensor([1.0, 2.0, 0.5, 1.0])
    return x, 0.8 * x + 0.5 * torch.randn((30, 4), generator=generator) + 0.3


def original(x: torch.Tensor) -> torch.Tensor:
    return torch.ones(1, len(x)).double()


def frechet_by_matrix_square_root(x: np.ndarray, y: np.ndarray) -> float:
    root = scipy.linalg.sqrtm(np.cov(x, rowvar=False) @ np.cov(y, rowvar=False)).real
    traces = np.trace(np.cov(x, rowvar=False) + np.cov(y, rowvar=False) - 2 * root)
    return float(((x.mean(0) - y.mean(0)) ** 2).sum() + traces)


def test_frechet_distance_equals_matrix_square_root(sets, monkeypatch):
    x, y = sets
    counts = torch.cat([original(x), resampling_counts(30)[:5]])
    monkeypatch.setattr(distribution, "_BLOCK_VALUES", 2 * x.numel())
    for row, distance in zip(counts.long(), frechet_distances(x, y, counts), strict=True):
        expected = frechet_by_matrix_square_root(x.repeat_interleave(row, 0).numpy(), y.repeat_interleave(row, 0).numpy())
        assert float(distance) == pytest.approx(expected, rel=1e-8)


def test_frechet_distance_with_fewer_images_than_features():
    """Rank-deficient covariances; the same distance from the singular values of the n x n product of the centred data."""
    x, y = torch.randn((2, 6, 20), generator=torch.Generator().manual_seed(0)).double()
    a, b = x - x.mean(0), y - y.mean(0)
    trace = torch.linalg.svdvals(a @ b.mT).sum() / 5
    expected = (x.mean(0) - y.mean(0)).square().sum() + (a.square().sum() + b.square().sum()) / 5 - 2 * trace
    assert float(frechet_distances(x, y, original(x))[0]) == pytest.approx(float(expected), rel=1e-6)


def test_frechet_distance_of_equal_and_of_constant_sets(sets):
    x, _ = sets
    distances = frechet_distances(x, x, resampling_counts(30))
    assert float(distances.max()) == pytest.approx(0, abs=1e-6)
    assert float(distances.min()) >= 0
    constant = torch.ones_like(x)
    assert float(frechet_distances(constant, constant + 2, original(x))[0]) == pytest.approx(16)


@pytest.mark.parametrize("name", ["gaussian", "cubic"])
def test_squared_mmd_equals_double_loop(sets, name, monkeypatch):
    x, y = (part.numpy() for part in sets)
    if name == "gaussian":
        kernel, scalar = gaussian_kernel(3.0), lambda a, b: np.exp(-((a - b) ** 2).sum() / 6)
    else:
        kernel, scalar = cubic_kernel, lambda a, b: (a @ b / 4 + 1) ** 3
    counts = torch.cat([original(sets[0]), resampling_counts(30)[:2]])
    monkeypatch.setattr(distribution, "_BLOCK_VALUES", 7 * 30)
    usual, paired = squared_mmd(*sets, kernel, counts)
    for r, row in enumerate(counts.long()):
        index = np.repeat(np.arange(30), row)
        within, across, across_others, distinct = 0.0, 0.0, 0.0, 0
        for i in index:
            for j in index:
                across += scalar(x[i], y[j])
                if i != j:
                    distinct += 1
                    within += scalar(x[i], x[j]) + scalar(y[i], y[j])
                    across_others += scalar(x[i], y[j])
        assert float(usual[r]) == pytest.approx(within / distinct - 2 * across / 900, rel=1e-9)
        assert float(paired[r]) == pytest.approx((within - 2 * across_others) / distinct, rel=1e-9)
    assert counts[0].sum() == counts[1].sum() == 30


def test_squared_mmd_is_unbiased_and_its_interval_covers():
    """Gaussians whose squared MMD is known; y depends on x, which only the paired estimate may ignore."""
    length, shift, d = 2.0, 0.6, 3
    expected = 2 * (length / (length + 2)) ** (d / 2) * (1 - np.exp(-d * shift**2 / (2 * (length + 2))))
    generator = torch.Generator().manual_seed(0)
    usual, paired, covered = [], [], []
    for _ in range(150):
        x, z = torch.randn((2, 50, d), generator=generator).double()
        counts = torch.cat([original(x), resampling_counts(50)])
        results = squared_mmd(x, 0.95 * x + (1 - 0.95**2) ** 0.5 * z + shift, gaussian_kernel(length), counts)
        usual.append(float(results[0][0]))
        paired.append(float(results[1][0]))
        low, high = normal_interval(paired[-1], results[1][1:])
        covered.append(low <= expected <= high)
    error = np.std(paired) / 150**0.5
    assert np.mean(paired) == pytest.approx(expected, abs=3 * error)
    assert np.mean(usual) < expected - 6 * error
    assert 0.88 <= np.mean(covered) <= 0.99


def test_bootstrap_spread_of_fid_matches_repeated_sampling():
    generator = torch.Generator().manual_seed(0)
    values, spreads = [], []
    for _ in range(60):
        x, y = torch.randn((2, 80, 3), generator=generator).double()
        results = frechet_distances(x, 1.3 * y + 0.4, torch.cat([original(x), resampling_counts(80)]))
        values.append(float(results[0]))
        spreads.append(float(results[1:].std()))
    assert 0.75 < np.mean(spreads) / np.std(values) < 1.35


def test_median_squared_distance(sets):
    points = torch.cat(sets).numpy()
    distances = [((a - b) ** 2).sum() for i, a in enumerate(points) for b in points[:i]]
    assert median_squared_distance(torch.cat(sets)) == pytest.approx(np.median(distances))


def test_median_uses_evenly_spaced_points(sets, monkeypatch):
    monkeypatch.setattr(distribution, "_MEDIAN_POINTS", 10)
    x, _ = sets
    assert median_squared_distance(x) == pytest.approx(median_squared_distance(x[::3]))


def test_values(make_set, pixel_space):
    evaluation = make_set(40, 2, noise=200, feature_spaces={"pixels": pixel_space(), "inception": "no weights"})
    values = {value.name: value for metric in (fid, kid, mmd) for value in metric(evaluation)}
    names = ["fid", "kid", "kid_paired", "mmd", "mmd_paired"]
    assert set(values) == {f"{name}@{space}" for name in names for space in ("pixels", "inception")}
    truth, samples = evaluation.features("pixels")
    x, y = truth.double(), samples[:, 0].double()
    assert values["fid@pixels"].value == pytest.approx(frechet_by_matrix_square_root(x.numpy(), y.numpy()), rel=1e-6)
    usual, paired = squared_mmd(x, y, gaussian_kernel(median_squared_distance(x)), original(x))
    assert values["mmd@pixels"].value == pytest.approx(float(usual) ** 0.5)
    assert values["mmd_paired@pixels"].value == pytest.approx(float(paired) ** 0.5)
    assert values["kid@pixels"].value == pytest.approx(float(squared_mmd(x, y, cubic_kernel, original(x))[0]))
    for name in names:
        value = values[f"{name}@pixels"]
        assert value.n == 40
        assert value.low <= value.value <= value.high
        assert "raw features" in value.settings
        assert "bootstrap standard deviations" in value.settings
        assert "WARNING" not in value.settings
        assert values[f"{name}@inception"].value is None
        assert values[f"{name}@inception"].reason == "no weights"
    assert "clipped at 0" in values["fid@pixels"].settings


def test_fewer_images_than_features_are_warned_of(make_set, pixel_space):
    evaluation = make_set(6, 1, feature_spaces={"pixels": pixel_space(dimension=6)})
    assert "n = 6 images for d = 6 features" in fid(evaluation)[0].settings


def test_single_image_is_missing_with_reason(make_set, pixel_space):
    evaluation = make_set(1, 2, feature_spaces={"pixels": pixel_space()})
    for metric in (fid, kid, mmd):
        assert all(value.value is None and "at least 2 images" in value.reason for value in metric(evaluation))


def test_constant_features(make_set, pixel_space):
    space = pixel_space()
    space.features = lambda images: torch.ones(len(images), 3)
    evaluation = make_set(feature_spaces={"pixels": space})
    (distance,) = fid(evaluation)
    assert (distance.value, distance.low, distance.high) == (0, 0, 0)
    assert kid(evaluation)[0].value == pytest.approx(0, abs=1e-12)
    assert all(value.value is None and "median distance" in value.reason for value in mmd(evaluation))
    with pytest.raises(UserError, match="equal"):
        median_squared_distance(torch.ones(4, 2))
