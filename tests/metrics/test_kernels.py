import itertools

import numpy as np
import pytest
import torch
from torch_fidelity.metric_kid import kid_features_to_metric

from vfmbench.errors import UserError
from vfmbench.metrics import kernels
from vfmbench.metrics.kernels import cubic_kernel, gaussian_kernel, kid, median_squared_distance, mmd, squared_mmd
from vfmbench.results.statistics import normal_interval, resampling_counts


@pytest.fixture
def sets() -> tuple[torch.Tensor, torch.Tensor]:
    """Two overlapping clouds, and a row of the second resembles the same row of the first."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn((30, 4), generator=generator).double() * torch.tensor([1.0, 2.0, 0.5, 1.0])
    return x, 0.8 * x + 0.5 * torch.randn((30, 4), generator=generator) + 0.3


def original(x: torch.Tensor) -> torch.Tensor:
    return torch.ones(1, len(x)).double()


@pytest.mark.parametrize("name", ["gaussian", "cubic"])
def test_squared_mmd_equals_double_loop(sets, name, monkeypatch):
    x, y = (part.numpy() for part in sets)
    if name == "gaussian":
        kernel, scalar = gaussian_kernel(3.0), lambda a, b: np.exp(-((a - b) ** 2).sum() / 6)
    else:
        kernel, scalar = cubic_kernel, lambda a, b: (a @ b / 4 + 1) ** 3
    counts = torch.cat([original(sets[0]), torch.from_numpy(resampling_counts(30)[:2])])
    monkeypatch.setattr(kernels, "_BLOCK_VALUES", 7 * 30)
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
        counts = torch.cat([original(x), torch.from_numpy(resampling_counts(50))])
        results = squared_mmd(x, 0.95 * x + (1 - 0.95**2) ** 0.5 * z + shift, gaussian_kernel(length), counts)
        usual.append(float(results[0][0]))
        paired.append(float(results[1][0]))
        low, high = normal_interval(paired[-1], results[1][1:].numpy())
        covered.append(low <= expected <= high)
    error = np.std(paired) / 150**0.5
    assert np.mean(paired) == pytest.approx(expected, abs=3 * error)
    assert np.mean(usual) < expected - 6 * error
    assert 0.88 <= np.mean(covered) <= 0.99


def test_kid_is_the_expectation_over_random_subsets(sets):
    """Mean over all pairs of subsets of four of eight rows, drawn from each set by itself as torch-fidelity draws them."""
    x, y = (part[:8] for part in sets)
    values = []
    for rows in itertools.combinations(range(8), 4):
        for others in itertools.combinations(range(8), 4):
            a, b = x[list(rows)], y[list(others)]
            within = sum(float((k := cubic_kernel(p, p)).sum() - k.trace()) for p in (a, b)) / 12
            values.append(within - 2 * float(cubic_kernel(a, b).mean()))
    assert float(squared_mmd(x, y, cubic_kernel, original(x))[0]) == pytest.approx(np.mean(values), rel=1e-9)


def test_kid_equals_torch_fidelity(sets):
    result = kid_features_to_metric(*sets, kid_subsets=1, kid_subset_size=30, verbose=False)
    expected = result["kernel_inception_distance_mean"]
    assert float(squared_mmd(*sets, cubic_kernel, original(sets[0]))[0]) == pytest.approx(expected, rel=1e-9)


def test_median_squared_distance(sets):
    points = torch.cat(sets).numpy()
    distances = [((a - b) ** 2).sum() for i, a in enumerate(points) for b in points[:i]]
    assert median_squared_distance(torch.cat(sets)) == pytest.approx(np.median(distances))


def test_median_uses_evenly_spaced_points(sets, monkeypatch):
    monkeypatch.setattr(kernels, "_MEDIAN_POINTS", 10)
    x, _ = sets
    assert median_squared_distance(x) == pytest.approx(median_squared_distance(x[::3]))


def test_values(make_set, pixel_space):
    evaluation = make_set(40, 2, noise=200, feature_spaces={"pixels": pixel_space(), "inception": "no weights"})
    values = {value.name: value for metric in (kid, mmd) for value in metric(evaluation)}
    names = ["kid", "kid_paired", "mmd", "mmd_paired"]
    assert set(values) == {f"{name}@{space}" for name in names for space in ("pixels", "inception")}
    truth, samples = evaluation.features("pixels")
    x, y = truth.double(), samples[:, 0].double()
    usual, paired = squared_mmd(x, y, gaussian_kernel(median_squared_distance(x)), original(x))
    assert values["mmd@pixels"].value == pytest.approx(float(usual) ** 0.5)
    assert values["mmd_paired@pixels"].value == pytest.approx(float(paired) ** 0.5)
    assert values["mmd_paired@pixels"].replicates is None
    usual, paired = squared_mmd(x, y, cubic_kernel, original(x))
    assert values["kid@pixels"].value == pytest.approx(float(usual))
    assert values["kid_paired@pixels"].value == pytest.approx(float(paired))
    assert values["kid_paired@pixels"].replicates.shape == (200,)
    for name in names:
        value = values[f"{name}@pixels"]
        assert value.n == 40
        assert value.low <= value.value <= value.high
        assert "raw features" in value.settings
        assert "bootstrap standard deviations" in value.settings
        assert values[f"{name}@inception"].value is None
        assert values[f"{name}@inception"].reason == "no weights"
    assert "the expectation of the mean over random subsets" in values["kid@pixels"].settings


def test_single_image_is_missing_with_reason(make_set, pixel_space):
    evaluation = make_set(1, 2, feature_spaces={"pixels": pixel_space()})
    for metric in (kid, mmd):
        assert all(value.value is None and "at least 2 images" in value.reason for value in metric(evaluation))


def test_constant_features(make_set, pixel_space):
    space = pixel_space()
    space.features = lambda images: torch.ones(len(images), 3)
    evaluation = make_set(feature_spaces={"pixels": space})
    assert kid(evaluation)[0].value == pytest.approx(0, abs=1e-12)
    assert all(value.value is None and "median distance" in value.reason for value in mmd(evaluation))
    with pytest.raises(UserError, match="equal"):
        median_squared_distance(torch.ones(4, 2))
