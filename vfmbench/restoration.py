"""What a linear measurement says about its image under a white Gaussian prior: a reference, and an adapter's input."""

from __future__ import annotations

import torch
from torch import Tensor

from vfmbench.measurement import Measurement

# Below this, rounding in float32 drowns what a regularised inverse still resolves.
_SMALLEST_WEIGHT = 1e-6


def regularised_inverse(measurement: Measurement, prior_std: float = 0.5) -> Tensor:
    """The posterior mean of x under the prior N(m, prior_std^2 I): ridge regression with Gaussian noise.

    It is m + argmin_d |A d - (y - A m)|^2 + w |d|^2 with w = (noise_std / prior_std)^2, see `Operator.tikhonov`.

    m is the mean of each channel over y; where pixels are missing, the mean of the observed ones weighted by the inverse
    fourth power of their distance (Shepard 1968), so that holes are filled from their surroundings; 0 where measurements
    are not images of the same channels. Noise of several levels counts with its root mean square over the observed entries,
    and w is at least 1e-6, so that a noise-free measurement has an inverse too.

    Args:
        prior_std: of each pixel around m, positive.

    Returns:
        [B,C,H,W]. Raises UserError for an operator that is not linear.
    """
    operator, y = measurement.operator, measurement.y
    shape, observed = operator.image_shape, measurement.observed_entries()
    mean = y.new_zeros(len(measurement), *shape)
    if operator.observed is not None and y.shape[1:] == shape:
        mean = _interpolated(y, observed)
    elif y.ndim == 4 and y.shape[1] == shape[0]:
        mean = y.mean((2, 3), keepdim=True).expand_as(mean)
    squared = (measurement.noise_std.square() * observed).flatten(1).sum(1) / observed.flatten(1).sum(1).clamp_min(1)
    weight = (squared / prior_std**2).clamp_min(_SMALLEST_WEIGHT)[:, None, None, None]
    return mean + operator.tikhonov(-measurement.residual(mean), weight)


def _interpolated(y: Tensor, observed: Tensor) -> Tensor:
    """Inverse-distance weighting: the mean of the observed pixels with weights 1 / (1 + distance^2)^2, [B,C,H,W].

    Args:
        y, observed: [B,C,H,W]; observed is 1 or 0.
    """
    height, width = y.shape[-2:]
    # Twice the size, so that the cyclic convolution does not wrap around.
    rows, columns = (torch.fft.fftfreq(2 * n, 1 / (2 * n), dtype=y.dtype, device=y.device) for n in (height, width))
    kernel = (1 + rows[:, None].square() + columns.square()).pow(-2)
    transform = torch.fft.rfft2(kernel)
    both = torch.fft.rfft2(torch.cat([y * observed, observed], 1), s=(2 * height, 2 * width))
    total, weight = torch.fft.irfft2(both * transform, s=(2 * height, 2 * width))[..., :height, :width].chunk(2, 1)
    return total / weight.clamp_min(1e-6)
