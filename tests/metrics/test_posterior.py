import numpy as np
import pytest
import scoringrules
import torch

from vfmbench.errors import MissingError, UserError
from vfmbench.metrics import posterior
from vfmbench.metrics.posterior import classifier_agreement, crps, diversity, energy_score, residual


@pytest.fixture
def draws() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn((20, 5), generator=generator), 0.5 * torch.randn((20, 7, 5), generator=generator)


@pytest.mark.parametrize("fair", [False, True])
def test_energy_score_is_crps_in_one_dimension(draws, fair):
    truth, samples = draws[0][:, :1], draws[1][:, :, :1]
    expected = scoringrules.crps_ensemble(
        truth[:, 0].numpy(), samples[:, :, 0].numpy(), estimator="fair" if fair else "nrg", backend="numpy"
    )
    np.testing.assert_allclose(energy_score(truth, samples, fair=fair).numpy(), expected, rtol=1e-5)


@pytest.mark.parametrize("fair", [False, True])
@pytest.mark.parametrize("block", [3 * 7 * 7, 2 * 7], ids=["three images", "two dimensions"])
def test_energy_score_equals_library_and_loop(draws, fair, block, monkeypatch):
    truth, samples = (part.double() for part in draws)
    monkeypatch.setattr(posterior, "_BLOCK_VALUES", block)
    scores = energy_score(truth, samples, fair=fair).numpy()
    expected = scoringrules.es_ensemble(truth.numpy(), samples.numpy(), estimator="fair" if fair else "nrg", backend="numpy")
    np.testing.assert_allclose(scores, expected, rtol=1e-10)
    x, own = truth[4].numpy(), samples[4].numpy()
    pairs = [np.linalg.norm(a - b) for i, a in enumerate(own) for j, b in enumerate(own) if i != j or not fair]
    assert scores[4] == pytest.approx(np.mean([np.linalg.norm(a - x) for a in own]) - np.mean(pairs) / 2)


def test_fair_estimator_has_no_bias_from_few_samples():
    """Truth and samples standard normal in 2D: the expected score is E||a - b|| / 2 = sqrt(pi) / 2, for any S."""
    generator = torch.Generator().manual_seed(1)
    truth, samples = torch.randn((40_000, 2), generator=generator), torch.randn((40_000, 2, 2), generator=generator)
    assert float(energy_score(truth, samples, fair=True).mean()) == pytest.approx(np.pi**0.5 / 2, abs=0.015)
    assert float(energy_score(truth, samples).mean()) == pytest.approx(0.75 * np.pi**0.5, abs=0.015)


def test_crps_values(make_set, pixel_space):
    evaluation = make_set(feature_spaces={"pixels": pixel_space(), "inception": "no weights"})
    values = {value.name: value for value in crps(evaluation)}
    assert list(values) == [
        "crps@pixel", "crps_fair@pixel", "crps@pixels", "crps_fair@pixels", "crps@inception", "crps_fair@inception",
    ]  # fmt: skip
    signed = 2 * evaluation.truth_unit - 1, 2 * evaluation.samples_unit - 1
    expected = energy_score(signed[0].flatten(1), signed[1].flatten(2))
    torch.testing.assert_close(values["crps@pixel"].per_image, expected)
    expected = energy_score(*evaluation.features("pixels", normalised=True), fair=True)
    torch.testing.assert_close(values["crps_fair@pixels"].per_image, expected)
    assert values["crps@pixels"].feature_weights_sha256 == "0" * 64
    assert "L2-normalised" in values["crps@pixels"].settings
    assert "K=4" in values["crps@pixel"].settings
    for name in ("crps@inception", "crps_fair@inception"):
        assert (values[name].value, values[name].reason) == (None, "no weights")
        assert values[name].feature_space == "inception"


def test_identical_samples_on_the_truth_score_zero(make_set):
    for value in crps(make_set(noise=0)):
        assert (value.value, value.low, value.high) == (0, 0, 0)


def test_single_samples_have_no_spread(make_set, pixel_space):
    evaluation = make_set(count=1, feature_spaces={"pixels": pixel_space()})
    assert all(value.value is None and "2 samples" in value.reason for value in crps(evaluation))
    with pytest.raises(UserError, match="at least 2"):
        diversity(evaluation)


def test_diversity_is_the_unbiased_pixel_standard_deviation(make_set):
    evaluation = make_set()
    (value,) = diversity(evaluation)
    signed = evaluation.samples.numpy() / 127.5 - 1
    np.testing.assert_allclose(value.per_image.numpy(), signed.std(1, ddof=1).mean((1, 2, 3)))


def test_residual_averages_over_samples(make_set):
    values = 1 + torch.arange(48).reshape(12, 4) / 48
    (value,) = residual(make_set(residual=values))
    assert value.value == pytest.approx(float(values.mean()))
    assert value.low < value.value < value.high
    with pytest.raises(MissingError, match="not stored"):
        residual(make_set())


def test_residual_that_is_not_finite_names_the_image(make_set):
    values = torch.ones(12, 4)
    values[5, 1] = float("nan")
    with pytest.raises(UserError, match="image 5"):
        residual(make_set(residual=values))


def test_classifier_agreement(make_set, pixel_space):
    space = pixel_space()
    evaluation = make_set(noise=60, feature_spaces={"pixels": space})
    label = space.classify(evaluation.truth)
    (value,) = classifier_agreement(make_set(noise=60, feature_spaces={"pixels": space}, label=label))
    expected = np.mean([
        [int(space.classify(sample[None])[0] == label[i]) for sample in evaluation.samples[i]] for i in range(12)
    ])  # fmt: skip
    assert 0 < expected < 1
    assert value.name == "classifier_agreement@pixels"
    assert value.value == pytest.approx(expected)


def test_classifier_agreement_needs_labels_and_a_classifier(make_set, pixel_space):
    space = pixel_space()
    assert classifier_agreement(make_set(feature_spaces={"pixels": space}))[0].reason == "the data has no class labels"
    space.classify = lambda images: None
    (value,) = classifier_agreement(make_set(feature_spaces={"pixels": space}, label=torch.zeros(12, dtype=torch.long)))
    assert value.value is None
    assert "no classifier" in value.reason
