"""PSNR and SSIM of single samples and of the mean of K samples, on images in [0, 1] after rounding to 8 bits."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from vfmbench.interfaces import MetricValue, UserError
from vfmbench.metrics.evaluation import EvaluationSet
from vfmbench.metrics.values import mean_value

_SSIM_WINDOW = 11
_SSIM_SIGMA = 1.5


def psnr(evaluation: EvaluationSet) -> list[MetricValue]:
    """`psnr`: PSNR of one sample, averaged over samples and images; `psnr_mean` (S > 1): of the mean of an image's samples."""
    return _with_mean_of_samples(evaluation, "psnr", peak_signal_to_noise, "dB, range [0,1]", _psnr_value)


def ssim(evaluation: EvaluationSet) -> list[MetricValue]:
    """`ssim`: SSIM of one sample, averaged over samples and images; `ssim_mean` (S > 1): of the mean of an image's samples."""
    window = ssim_window(*evaluation.truth.shape[-2:])
    settings = f"range [0,1], Gaussian window {window}x{window}, sigma {_SSIM_SIGMA}, mean over channels"
    return _with_mean_of_samples(evaluation, "ssim", _single_precision_ssim, settings, mean_value)


def peak_signal_to_noise(truth: Tensor, images: Tensor) -> Tensor:
    """PSNR in dB of images in [0, 1], [...,C,H,W] -> [...]; infinite for identical images."""
    return -10 * torch.log10((images - truth).square().flatten(-3).mean(-1))


def ssim_window(height: int, width: int) -> int:
    """Side of the SSIM window: 11, or the largest odd number of pixels that fits.

    Raises:
        UserError: the image is narrower than 3 pixels.
    """
    side = min(height, width)
    if side < 3:
        raise UserError(f"SSIM needs images of at least 3x3 pixels, not {height}x{width}")
    return min(_SSIM_WINDOW, side - 1 + side % 2)


def structural_similarity(truth: Tensor, images: Tensor) -> Tensor:
    """SSIM of images in [0, 1], broadcastable [...,C,H,W] -> [...], in the floating-point type that comes in.

    Wang et al. 2004, "Image quality assessment: from error visibility to structural similarity", eq. 13, with their
    constants: Gaussian window of standard deviation 1.5, weighted population covariance, K1 = 0.01, K2 = 0.03, averaged
    over the positions where the whole window lies inside the image, each channel by itself.
    """
    radius = ssim_window(*truth.shape[-2:]) // 2
    window = torch.exp(-torch.arange(-radius, radius + 1).double().square() / (2 * _SSIM_SIGMA**2))
    weights = (window / window.sum()).tolist()
    c1, c2 = 0.01**2, 0.03**2
    # Variances do not change with an offset, and around zero their difference of squares loses fewer digits.
    truth, images = truth - 0.5, images - 0.5
    mean_truth, mean_images = _window_mean(truth, weights), _window_mean(images, weights)
    covariance = _window_mean(truth * images, weights) - mean_truth * mean_images
    variances = _window_mean(images.square() + truth.square(), weights) - mean_images.square() - mean_truth.square()
    mean_truth, mean_images = mean_truth + 0.5, mean_images + 0.5
    structure = (2 * covariance + c2) / (variances + c2)
    luminance = (2 * mean_truth * mean_images + c1) / (mean_truth.square() + mean_images.square() + c1)
    return (luminance * structure).flatten(-3).mean(-1)


def _single_precision_ssim(truth: Tensor, images: Tensor) -> Tensor:
    """Several times faster than in float64, and within 1e-6 of it."""
    return structural_similarity(truth.float(), images.float())


def _window_mean(x: Tensor, weights: list[float]) -> Tensor:
    """Separable weighted mean over windows that fit inside the image, [...,H,W] -> [...,H-k+1,W-k+1].

    Sums of shifted images: several times faster on a CPU than a convolution of one channel.
    """
    for dim in (-2, -1):
        length = x.shape[dim] - len(weights) + 1
        total = x.narrow(dim, 0, length) * weights[0]
        for shift, weight in enumerate(weights[1:], start=1):
            total.add_(x.narrow(dim, shift, length), alpha=weight)
        x = total
    return x


def _with_mean_of_samples(
    evaluation: EvaluationSet,
    name: str,
    measure: Callable[[Tensor, Tensor], Tensor],
    settings: str,
    build: Callable[[str, Tensor, str], MetricValue],
) -> list[MetricValue]:
    """A metric of each single sample, averaged over an image's samples, and the metric of the samples' mean."""
    count = evaluation.num_samples
    single = evaluation.over_blocks(lambda block: measure(block.truth_unit[:, None], block.samples_unit).mean(1))
    values = [build(name, single, f"{settings}; one sample, averaged over K={count} samples of an image")]
    if count > 1:
        of_mean = evaluation.over_blocks(lambda block: measure(block.truth_unit, block.mean_unit))
        values.append(build(f"{name}_mean", of_mean, f"{settings}; mean of K={count} samples"))
    return values


def _psnr_value(name: str, per_image: Tensor, settings: str) -> MetricValue:
    """An exact image has infinite PSNR and makes the mean infinite: said so, beside the mean of the other images."""
    exact = per_image.isposinf()
    if not exact.any():
        return mean_value(name, per_image, settings)
    others = per_image[~exact]
    rest = f"the mean of the other {len(others)} is {float(others.mean()):.2f} dB" if len(others) else "there are no others"
    return MetricValue(
        name=name,
        value=float("inf"),
        n=len(per_image),
        settings=settings,
        reason=f"{int(exact.sum())} of {len(per_image)} images are reproduced exactly, which makes the mean infinite; {rest}",
        per_image=per_image.cpu(),
    )
