"""PSNR and SSIM of single samples and of the mean of K samples, on images in [0, 1] after rounding to 8 bits.

Both are computed on 8-bit levels, 0 to 255, whose differences are exact in single precision, and are the same on [0, 1].
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from vfmbench.errors import UserError
from vfmbench.metrics.evaluation import EvaluationSet
from vfmbench.metrics.metric import metric
from vfmbench.metrics.values import Later, MetricValue, mean_value
from vfmbench.results.schema import HIGHER, MetricSpec, Section

_LEVELS = 255
_SSIM_WINDOW = 11
_SSIM_SIGMA = 1.5
_STRIP = 8
_BLOCK_VALUES = 2**19


@metric(
    MetricSpec(name="psnr", section=Section.RECONSTRUCTION, direction=HIGHER, position=10, domains=("images",)),
    MetricSpec(name="psnr_mean", section=Section.RECONSTRUCTION, direction=HIGHER, position=11, domains=("images",)),
)
def psnr(evaluation: EvaluationSet) -> Later:
    """`psnr`: PSNR of one sample, averaged over samples and images; `psnr_mean` (S > 1): of the mean of an image's samples."""
    return _with_mean_of_samples(evaluation, "psnr", peak_signal_to_noise, "dB, range [0,1]", _psnr_value)


@metric(
    MetricSpec(name="ssim", section=Section.RECONSTRUCTION, direction=HIGHER, position=20, domains=("images",)),
    MetricSpec(name="ssim_mean", section=Section.RECONSTRUCTION, direction=HIGHER, position=21, domains=("images",)),
)
def ssim(evaluation: EvaluationSet) -> Later:
    """`ssim`: SSIM of one sample, averaged over samples and images; `ssim_mean` (S > 1): of the mean of an image's samples."""
    window = ssim_window(*evaluation.truth.shape[-2:])
    settings = f"range [0,1], Gaussian window {window}x{window}, sigma {_SSIM_SIGMA}, mean over channels"
    return _with_mean_of_samples(evaluation, "ssim", structural_similarity, settings, mean_value)


def peak_signal_to_noise(truth: Tensor, images: Tensor) -> Tensor:
    """PSNR in dB, truth [N,C,H,W] and images [N,K,C,H,W] in levels 0 to 255 -> float64 [N,K]; infinite for identical images."""
    square = (images - truth[:, None]).square_()
    # Sums of one row of squared levels are exact in single precision up to 258 pixels, and far more digits than needed above.
    mean = square.sum(-1).sum((-1, -2), dtype=torch.float64) / truth[0].numel()
    return 10 * torch.log10(_LEVELS**2 / mean)


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
    """SSIM, truth [N,C,H,W] and images [N,K,C,H,W] in levels 0 to 255 -> float64 [N,K].

    Wang et al. 2004, "Image quality assessment: from error visibility to structural similarity", eq. 13, with their
    constants: Gaussian window of standard deviation 1.5, weighted population covariance, K1 = 0.01, K2 = 0.03, averaged
    over the positions where the whole window lies inside the image, each channel by itself. Single precision is within 1e-6
    of double, and several times faster.
    """
    height, width = truth.shape[-2:]
    planes, draws = truth.flatten(0, 1)[:, None], images.transpose(1, 2).flatten(0, 1)
    # Blocks that stay in a processor's cache: larger ones are slower.
    room = _BLOCK_VALUES // (height * width)
    count = max(1, min(images.shape[1], (room - 1) // 3))
    size = max(1, room // (1 + 3 * count))
    window = _Window(min(size, len(planes)) * (1 + 3 * count) * height, width, ssim_window(height, width), images)
    similarity = [
        torch.cat([_plane_similarity(x, some, window) for some in y.split(count, 1)], 1)
        for x, y in zip(planes.split(size), draws.split(size), strict=True)
    ]
    return torch.cat(similarity).double().unflatten(0, truth.shape[:2]).mean(1)


def _plane_similarity(truth: Tensor, images: Tensor, window: _Window) -> Tensor:
    """SSIM of single channels, truth [P,1,H,W] and images [P,K,H,W] -> [P,K]. In place wherever memory can be used again."""
    planes, count, height, width = images.shape
    centre, c1, c2 = _LEVELS / 2, (0.01 * _LEVELS) ** 2, (0.03 * _LEVELS) ** 2
    sizes = [planes * height, *[planes * count * height] * 3]
    maps = window.rows[: sum(sizes)]
    x, y, product, squares = (part.view(planes, -1, height, width) for part in maps.split(sizes))
    # Variances do not change with an offset, and around zero their difference of squares loses fewer digits.
    torch.sub(truth, centre, out=x)
    torch.sub(images, centre, out=y)
    torch.mul(x, y, out=product)
    torch.mul(y, y, out=squares).addcmul_(x, x)
    window.average(len(maps))
    covariance = product.addcmul_(x, y, value=-1)
    variances = squares.addcmul_(x, x, value=-1).addcmul_(y, y, value=-1)
    structure = covariance.mul_(2).add_(c2).div_(variances.add_(c2))
    x += centre
    y += centre
    luminance = (x * y).mul_(2).add_(c1).div_(y.square_().addcmul_(x, x).add_(c1))
    return structure.mul_(luminance)[..., : height - window.reach, : width - window.reach].mean((-1, -2))


class _Window:
    """Gaussian weighted means over windows of images that lie below each other in one buffer.

    Down the columns, strips of eight rows are products with a banded matrix; along the rows, sums of shifted memory: on a CPU
    several times faster than a convolution of one channel, and without a GPU's reduced-precision convolutions.

    Attributes:
        rows: the buffer, [at least R,W].
        reach: side of the window - 1.
    """

    def __init__(self, rows: int, width: int, side: int, like: Tensor):
        self.reach = side - 1
        weights = torch.exp(-torch.arange(-(side // 2), side // 2 + 1).double().square() / (2 * _SSIM_SIGMA**2))
        self._weights = (weights / weights.sum()).tolist()
        self._band = like.new_zeros(_STRIP, _STRIP + self.reach)
        for shift, weight in enumerate(self._weights):
            self._band.diagonal(shift).fill_(weight)
        # A strip more than there are rows, for the last one to reach into.
        self.rows = like.new_zeros(rows + _STRIP, width)
        self._columns = torch.empty_like(self.rows)

    def average(self, count: int) -> None:
        """Replaces each pixel of the first `count` rows by the mean over the window that begins there, to its right and below.

        Pixels whose window leaves their image become numbers without a meaning.
        """
        strips = self.rows[: count + _STRIP].unfold(0, _STRIP + self.reach, _STRIP).mT
        columns = self._columns[: len(strips) * _STRIP]
        torch.bmm(self._band.expand(len(strips), -1, -1), strips, out=columns.view(strips.shape[0], _STRIP, -1))
        source, target = columns.view(-1), self.rows[:count].view(-1)
        length = min(len(source), len(target)) - self.reach
        total = torch.mul(source[:length], self._weights[0], out=target[:length])
        for shift, weight in enumerate(self._weights[1:], start=1):
            total.add_(source[shift : shift + length], alpha=weight)


def _with_mean_of_samples(
    evaluation: EvaluationSet,
    name: str,
    measure: Callable[[Tensor, Tensor], Tensor],
    settings: str,
    build: Callable[[str, Tensor, str], MetricValue],
) -> Later:
    """A metric of each single sample, averaged over an image's samples, and the metric of the samples' mean."""
    count = evaluation.num_samples

    def of_each(truth: Tensor, samples: Tensor) -> Tensor:
        return measure(truth.float(), samples.float()).mean(1)

    def of_mean(truth: Tensor, samples: Tensor) -> Tensor:
        # The sum of levels is exact, so that the mean of equal samples is the sample itself.
        return measure(truth.float(), samples.sum(1, keepdim=True, dtype=torch.float32) / count)[:, 0]

    asked = {
        name: (evaluation.per_image(of_each), f"{settings}; one sample, averaged over K={count} samples of an image"),
    }
    if count > 1:
        asked[f"{name}_mean"] = (evaluation.per_image(of_mean), f"{settings}; mean of K={count} samples")
    return lambda: [build(value, answer.result(), about) for value, (answer, about) in asked.items()]


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
