import math

import numpy as np
import pytest
import torch
from skimage.data import astronaut
from skimage.metrics import peak_signal_noise_ratio
from skimage.metrics import structural_similarity as skimage_ssim

from vfmbench.errors import UserError
from vfmbench.metrics import image
from vfmbench.metrics.evaluation import EvaluationSet
from vfmbench.metrics.image import peak_signal_to_noise, psnr, ssim, ssim_window, structural_similarity

WANG = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1, "channel_axis": 0}


@pytest.fixture(scope="module")
def photographs() -> EvaluationSet:
    """Three crops of a photograph, two noisy samples of each; flat regions and edges included."""
    image = torch.from_numpy(astronaut()).permute(2, 0, 1)
    truth = torch.stack([image[:, top : top + 40, 200:236] for top in (0, 60, 120)])
    generator = torch.Generator().manual_seed(0)
    noise = torch.tensor([3.0, 40.0]).view(1, 2, 1, 1, 1) * torch.randn((3, 2, 3, 40, 36), generator=generator)
    samples = (truth[:, None] + noise).clamp(0, 255).round().to(torch.uint8)
    samples[0, 0] = 128
    return EvaluationSet(truth=truth, samples=samples, planned=3)


def loop(function, truth, samples):
    return np.array([[function(x, y) for y in draws] for x, draws in zip(truth.numpy(), samples.numpy(), strict=True)])


def test_psnr_equals_skimage(photographs):
    expected = loop(lambda x, y: peak_signal_noise_ratio(x, y, data_range=255), photographs.truth, photographs.samples)
    of_mean = [
        peak_signal_noise_ratio(x, y, data_range=1)
        for x, y in zip(photographs.truth.numpy() / 255, photographs.samples.numpy().mean(1) / 255, strict=True)
    ]
    single, mean = psnr(photographs)
    assert (single.name, mean.name) == ("psnr", "psnr_mean")
    np.testing.assert_allclose(single.per_image.numpy(), expected.mean(1), rtol=1e-12)
    assert single.value == pytest.approx(expected.mean(), rel=1e-12)
    np.testing.assert_allclose(mean.per_image.numpy(), of_mean, atol=1e-6)
    assert single.low < single.value < single.high
    assert "K=2" in single.settings
    assert "K=2" in mean.settings


def test_ssim_equals_skimage(photographs):
    truth, samples = photographs.truth_unit, photographs.samples_unit
    expected = loop(lambda x, y: skimage_ssim(x, y, **WANG), truth, samples)
    levels = photographs.truth.double(), photographs.samples.double()
    np.testing.assert_allclose(structural_similarity(*levels).numpy(), expected, atol=1e-12)
    single, mean = ssim(photographs)
    np.testing.assert_allclose(single.per_image.numpy(), expected.mean(1), atol=1e-6)
    of_mean = loop(lambda x, y: skimage_ssim(x, y, **WANG), truth, samples.mean(1, keepdim=True))
    np.testing.assert_allclose(mean.per_image.numpy(), of_mean[:, 0], atol=1e-6)
    assert "11x11" in single.settings


@pytest.mark.parametrize(
    ("size", "block"), [((40, 36), 1), ((40, 36), 3 * 7 * 40 * 36), ((13, 19), 2**19), ((11, 11), 5 * 121)]
)
def test_ssim_in_blocks_equals_skimage(monkeypatch, size, block):
    """One plane and sample at a time, some at a time, all at once; sides that are no multiple of a strip."""
    monkeypatch.setattr(image, "_BLOCK_VALUES", block)
    truth, samples = torch.randint(0, 256, (5 * 7 + 5, 2, *size), generator=torch.Generator().manual_seed(0)).split([5, 35])
    samples = ((samples.unflatten(0, (5, 7)) + 2 * truth[:, None]) / 3).round()
    expected = loop(lambda x, y: skimage_ssim(x, y, **{**WANG, "data_range": 255}), truth.double(), samples.double())
    for precision, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-6)):
        found = structural_similarity(truth.to(precision), samples.to(precision))
        assert found.dtype == torch.float64
        np.testing.assert_allclose(found.numpy(), expected, atol=tolerance)


def test_ssim_of_small_images_uses_the_largest_odd_window(make_set):
    evaluation = make_set(2, 1)
    x, y = evaluation.truth_unit[0, 0].numpy(), evaluation.samples_unit[0, 0, 0].numpy()
    offsets = np.arange(-3, 4)
    weights = np.exp(-(offsets[:, None] ** 2 + offsets[None, :] ** 2) / (2 * 1.5**2))
    weights /= weights.sum()
    local = []
    for top in range(2):
        for left in range(2):
            a, b = x[top : top + 7, left : left + 7], y[top : top + 7, left : left + 7]
            mean_a, mean_b = (weights * a).sum(), (weights * b).sum()
            covariance = (weights * (a - mean_a) * (b - mean_b)).sum()
            variances = (weights * ((a - mean_a) ** 2 + (b - mean_b) ** 2)).sum()
            local.append(
                (2 * mean_a * mean_b + 1e-4) * (2 * covariance + 9e-4) / ((mean_a**2 + mean_b**2 + 1e-4) * (variances + 9e-4))
            )
    (value,) = ssim(evaluation)
    assert float(value.per_image[0]) == pytest.approx(np.mean(local), abs=1e-6)
    assert "7x7" in value.settings


@pytest.mark.parametrize(("size", "window"), [((3, 9), 3), ((10, 64), 9), ((11, 11), 11), ((256, 256), 11)])
def test_ssim_window(size, window):
    assert ssim_window(*size) == window


def test_ssim_refuses_images_without_neighbourhood(make_set):
    with pytest.raises(UserError, match="3x3"):
        ssim(make_set(shape=(1, 1, 2)))


def test_identical_images_have_infinite_psnr_and_say_so(make_set):
    evaluation = make_set(5, 2)
    evaluation.samples[1] = evaluation.truth[1]
    single, mean = psnr(evaluation)
    others = torch.arange(5) != 1
    finite = peak_signal_to_noise(evaluation.truth[others].float(), evaluation.samples[others].float()).mean()
    assert math.isinf(single.value)
    assert math.isinf(mean.value)
    assert (single.low, single.high, single.n) == (None, None, 5)
    assert "1 of 5 images" in single.reason
    assert f"{float(finite):.2f} dB" in single.reason
    assert float(ssim(evaluation)[0].per_image[1]) == pytest.approx(1, abs=1e-7)


def test_all_images_identical(make_set):
    assert "no others" in psnr(make_set(noise=0))[0].reason


def test_single_sample_has_no_mean_and_single_image_no_interval(make_set):
    (value,) = psnr(make_set(1, 1))
    assert value.name == "psnr"
    assert value.value is not None
    assert (value.low, value.high, value.n) == (None, None, 1)
