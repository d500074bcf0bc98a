import numpy as np
import pytest
import torch
from torch_fidelity.metric_prc import calculate_precision_recall_full

from vfmbench.metrics import manifold
from vfmbench.metrics.manifold import half_samples, neighbourhood_scores, prdc
from vfmbench.results.statistics import normal_interval


def whole(n: int) -> torch.Tensor:
    return torch.ones(1, n, dtype=torch.bool)


def clouds(n: int, d: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    x, noise = torch.randn((2, n, d), generator=generator).double()
    return x, 0.6 * x + 0.5 * noise + 0.2


def by_loops(x: np.ndarray, y: np.ndarray, k: int) -> list[float]:
    """Precision, recall, density, coverage from their definitions."""

    def reach(points: np.ndarray) -> list[float]:
        return [sorted(np.linalg.norm(a - b) for j, b in enumerate(points) if j != i)[k - 1] for i, a in enumerate(points)]

    reach_x, reach_y = reach(x), reach(y)
    inside_x = np.array([[np.linalg.norm(a - b) <= r for b in y] for a, r in zip(x, reach_x, strict=True)])
    inside_y = np.array([[np.linalg.norm(a - b) <= r for b, r in zip(y, reach_y, strict=True)] for a in x])
    return [inside_x.any(0).mean(), inside_y.any(1).mean(), inside_x.sum() / (k * len(y)), inside_x.any(1).mean()]


@pytest.mark.parametrize("k", [1, 3])
def test_scores_equal_double_loop(k, monkeypatch):
    x, y = clouds(25, 3, torch.Generator().manual_seed(0))
    selections = torch.cat([whole(25), half_samples(25)[:4]])
    monkeypatch.setattr(manifold, "_BLOCK_VALUES", 7 * 25)
    scores = neighbourhood_scores(x, y, k, selections)
    assert scores.shape == (4, 5)
    for column, selected in zip(scores.T, selections, strict=True):
        np.testing.assert_allclose(column.numpy(), by_loops(x[selected].numpy(), y[selected].numpy(), k))


def test_scores_of_more_images_than_candidates_equal_double_loop():
    x, y = clouds(90, 2, torch.Generator().manual_seed(1))
    selections = torch.cat([whole(90), half_samples(90)[:2]])
    for column, selected in zip(neighbourhood_scores(x, y, 5, selections).T, selections, strict=True):
        np.testing.assert_allclose(column.numpy(), by_loops(x[selected].numpy(), y[selected].numpy(), 5))


def test_precision_and_recall_equal_torch_fidelity():
    x, y = clouds(60, 8, torch.Generator().manual_seed(2))
    expected = calculate_precision_recall_full(y, x, neighborhood=3)
    precision, recall, _, _ = neighbourhood_scores(x, y, 3, whole(60))
    assert (float(precision), float(recall)) == pytest.approx(expected)


def test_scores_by_hand():
    """On a line, k = 1: true points at 0, 1, 10, 12 reach 1, 1, 2, 2; samples at 0.5, 0.6, 11, 30 reach 0.1, 0.1, 10.4, 19."""
    x = torch.tensor([0.0, 1.0, 10.0, 12.0]).double()[:, None]
    y = torch.tensor([0.5, 0.6, 11.0, 30.0]).double()[:, None]
    scores = neighbourhood_scores(x, y, 1, whole(4))[:, 0].tolist()
    # The sample at 30 lies in no ball and the other three in two each; the ball around 11 holds 1, 10 and 12, and none holds 0.
    assert scores == pytest.approx([3 / 4, 3 / 4, 6 / 4, 1])


def test_copies_of_one_true_image_are_precise_but_cover_little():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn((40, 6), generator=generator).double()
    precision, recall, _, coverage = neighbourhood_scores(x, x[:1].expand(40, -1).clone(), 5, whole(40))[:, 0].tolist()
    assert (precision, recall) == (1, 1 / 40)
    assert 1 / 40 <= coverage < 0.5
    assert neighbourhood_scores(x, x + 100, 5, whole(40))[:, 0].tolist() == [0, 0, 0, 0]
    assert neighbourhood_scores(x, x, 5, whole(40))[[0, 1, 3], 0].tolist() == [1, 1, 1]


def test_half_samples():
    halves = half_samples(31)
    assert halves.shape == (200, 31)
    assert (halves.sum(1) == 15).all()
    assert float(halves.double().mean(0).std()) < 0.06
    assert torch.equal(halves, half_samples(31))


def test_spread_over_halves_matches_repeated_sampling():
    generator = torch.Generator().manual_seed(0)
    values, spreads = [], []
    for _ in range(40):
        x = torch.randn((80, 4), generator=generator).double()
        y = 0.8 * torch.randn((80, 4), generator=generator).double() + 0.1
        scores = neighbourhood_scores(x, y, 5, torch.cat([whole(80), half_samples(80)[:60]]))
        values.append(scores[:, 0])
        spreads.append(scores[:, 1:].std(1))
    ratio = torch.stack(spreads).mean(0) / torch.stack(values).std(0)
    assert float(ratio.min()) > 0.7
    assert float(ratio.max()) < 1.6


def test_values(make_set, pixel_space):
    evaluation = make_set(40, 2, noise=40, feature_spaces={"pixels": pixel_space(), "inception": "no weights"})
    evaluation.samples.floor_divide_(3)
    values = {value.name: value for value in prdc(evaluation)}
    names = ["precision", "recall", "density", "coverage"]
    assert list(values) == [f"{name}@{space}" for space in ("pixels", "inception") for name in names]
    truth, samples = evaluation.features("pixels")
    expected = by_loops(truth.double().numpy(), samples[:, 0].double().numpy(), 5)
    for name, number in zip(names, expected, strict=True):
        value = values[f"{name}@pixels"]
        assert value.value == pytest.approx(number)
        assert value.n == 40
        assert value.replicates.shape == (200,)
        low, high = normal_interval(value.value, value.replicates.numpy())
        assert (value.low, value.high) == pytest.approx((max(0, low), high if name == "density" else min(1, high)))
        assert "k = 5" in value.settings
        assert "likeness to its own image" in value.settings
        assert values[f"{name}@inception"].reason == "no weights"


def test_scores_that_every_half_shares_have_no_interval(make_set, pixel_space):
    values = {value.name: value for value in prdc(make_set(40, 1, noise=0, feature_spaces={"pixels": pixel_space()}))}
    for name in ("precision", "recall", "coverage"):
        value = values[f"{name}@pixels"]
        assert (value.value, value.low, value.high) == (1, None, None)


def test_too_few_images_are_missing_with_reason(make_set, pixel_space):
    for n, reason in ((1, "at least 2 images"), (11, "at least 12 images, not 11")):
        values = prdc(make_set(n, 1, feature_spaces={"pixels": pixel_space()}))
        assert len(values) == 4
        assert all(value.value is None and reason in value.reason for value in values)
    assert prdc(make_set(12, 1, feature_spaces={"pixels": pixel_space()}))[0].value is not None
