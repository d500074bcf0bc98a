"""A Gaussian prior: posterior and flow map in closed form."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from vfmbench.errors import UserError
from vfmbench.randomness import PhiloxNoise
from vfmbench.tasks.exact.components import GaussianComponents
from vfmbench.tasks.operators.matrix import orthonormal_rows

# Relative size of an asymmetry that is rounding, and of a smallest eigenvalue that counts as zero.
_TOLERANCE = 1e-12


class GaussianPrior(GaussianComponents):
    """N(mean, covariance); one mode.

    Args:
        mean: [d].
        covariance: [d,d], symmetric positive definite.

    Raises:
        UserError: a singular or asymmetric covariance, values that are not finite, or shapes that do not fit.
    """

    def __init__(self, mean: Tensor, covariance: Tensor):
        mean, covariance = mean.double(), covariance.double()
        if mean.ndim != 1 or len(mean) == 0 or not mean.isfinite().all():
            raise UserError(f"mean must be a vector of at least one finite number, not of shape {list(mean.shape)}.")
        if covariance.shape != (len(mean), len(mean)) or not covariance.isfinite().all():
            raise UserError(
                f"covariance must be a finite matrix of shape {[len(mean)] * 2}, as mean has {len(mean)} entries, "
                f"not of shape {list(covariance.shape)}."
            )
        if (covariance - covariance.mT).abs().max() > _TOLERANCE * covariance.abs().max():
            raise UserError("covariance must be symmetric.")
        variances, basis = torch.linalg.eigh(covariance)
        if variances[0] <= _TOLERANCE * variances[-1].abs():
            raise UserError(
                "singular covariance: covariance must be positive definite, "
                f"but its eigenvalues range from {float(variances[0]):g} to {float(variances[-1]):g}."
            )
        self.mean, self.covariance = mean, covariance
        self._variances, self._basis = variances, basis
        # Symmetric roots, because an eigenvector's sign is the library's choice and must not change what is drawn.
        root, inverse_root = (basis * scale @ basis.mT for scale in (variances.sqrt(), variances.rsqrt()))
        super().__init__(mean.new_ones(1), mean[None], root, inverse_root)

    def velocity(self) -> GaussianVelocity:
        """The exact average velocity of the flow that takes N(0, I) to this prior."""
        return GaussianVelocity(self.mean, self._variances, self._basis)


class GaussianVelocity(nn.Module):
    """Average velocity u(x, t, r) over [r, t] of the probability flow of x_t = (1-t) x + t z, for x ~ N(m, C), z ~ N(0, I).

    Along an eigenvector of C with variance l, x_t has the variance a(t)^2 = (1-t)^2 l + t^2, and the flow keeps
    (x_t - (1-t) m) / a(t) constant. Hence u = -m + (a(t) - a(r)) / ((t - r) a(t)) (x_t - (1-t) m), and since
    a(t)^2 - a(r)^2 = (t - r) (t + r - l (2 - t - r)) the difference t - r cancels: what is computed is exact at r = t too,
    where u is the instantaneous velocity. One step from t = 1 to r = 0 takes z to m + C^(1/2) z.

    Args:
        mean: m, float64 [d].
        variances: eigenvalues of C, float64 [d].
        basis: its eigenvectors as columns, float64 [d,d].
    """

    mean: Tensor
    variances: Tensor
    basis: Tensor

    def __init__(self, mean: Tensor, variances: Tensor, basis: Tensor):
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("variances", variances)
        self.register_buffer("basis", basis)

    def forward(self, x: Tensor, t: Tensor, r: Tensor, label: Tensor | None = None) -> Tensor:
        """x [B,d,1,1], t and r [B] -> x's shape and dtype, computed in float64; there are no classes, `label` is ignored."""
        time, end = t.double()[:, None], r.double()[:, None]
        std, std_at_end = self._std(time), self._std(end)
        rate = (time + end - self.variances * (2 - time - end)) / (std * (std + std_at_end))
        centred = x.double().flatten(1) - (1 - time) * self.mean
        velocity = (centred @ self.basis * rate) @ self.basis.mT - self.mean
        return velocity.reshape(x.shape).to(x.dtype)

    def _std(self, time: Tensor) -> Tensor:
        """a(t) along every eigenvector, [B,1] -> [B,d]."""
        return ((1 - time).square() * self.variances + time.square()).sqrt()


def random_gaussian(dimension: int, condition: float = 100.0, seed: int = 0) -> GaussianPrior:
    """A Gaussian with a mean of standard normals, and variances from 1 down to 1 / condition along random directions.

    The variances are evenly spaced on the logarithmic scale; in one dimension there is only 1.

    Args:
        dimension: at least 1.
        condition: largest over smallest variance, at least 1.
        seed: of mean and directions.

    Raises:
        UserError: values out of range.
    """
    if dimension < 1:
        raise UserError(f"dimension must be at least 1, not {dimension}.")
    if not 1 <= condition < math.inf:
        raise UserError(f"condition must be finite and at least 1, not {condition:g}.")
    noise = PhiloxNoise(seed, "random_gaussian", torch.arange(dimension))
    variances = condition ** -torch.linspace(0, 1, dimension, dtype=torch.float64)
    directions = orthonormal_rows(noise.normal((dimension,), 0).double())
    covariance = directions.mT * variances @ directions
    return GaussianPrior(noise.normal((), 1), (covariance + covariance.mT) / 2)
