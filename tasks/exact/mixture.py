"""A mixture of isotropic Gaussians: posterior and velocity in closed form."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from vfmbench.errors import UserError
from vfmbench.randomness import PhiloxNoise
from vfmbench.tasks.exact.components import GaussianComponents


class MixturePrior(GaussianComponents):
    """sum_k weights_k N(means_k, std^2 I); its modes are the components.

    Args:
        weights: [K], positive; normalised here.
        means: [K,d].
        std: positive.

    Raises:
        UserError: values out of range, or shapes that do not fit.
    """

    def __init__(self, weights: Tensor, means: Tensor, std: float):
        weights, means = weights.double(), means.double()
        if means.ndim != 2 or means.numel() == 0 or not means.isfinite().all():
            raise UserError(f"means must be finite and have a row for each component, not shape {list(means.shape)}.")
        if weights.shape != means.shape[:1] or not (weights.isfinite() & (weights > 0)).all():
            raise UserError(f"weights must be {len(means)} positive numbers, one for each row of means.")
        if not 0 < std < float("inf"):
            raise UserError(f"std must be positive and finite, not {std:g}.")
        self.weights, self.means, self.std = weights / weights.sum(), means, std
        identity = torch.eye(means.shape[1], dtype=torch.float64, device=means.device)
        super().__init__(self.weights, means, std * identity, identity / std)

    def velocity(self) -> MixtureVelocity:
        """The exact instantaneous velocity of the flow that takes N(0, I) to this prior."""
        return MixtureVelocity(self.weights, self.means, self.std)


class MixtureVelocity(nn.Module):
    """Velocity v(x, t) = E[z - x_0 | x_t = x] of x_t = (1-t) x_0 + t z for x_0 from the mixture and z ~ N(0, I).

    Given component k, x_t ~ N((1-t) m_k, V I) with V = (1-t)^2 std^2 + t^2, and the means of z and x_0 are linear in x_t.
    Averaged over k with the components' probabilities at x_t, v = (t - (1-t) std^2) / V (x - (1-t) m) - m, where m is the
    average of the m_k.

    Args:
        weights: positive with sum 1, float64 [K].
        means: float64 [K,d].
        std: of every component.
    """

    log_weights: Tensor
    means: Tensor

    def __init__(self, weights: Tensor, means: Tensor, std: float):
        super().__init__()
        self.register_buffer("log_weights", weights.log())
        self.register_buffer("means", means)
        self._variance = std**2

    def forward(self, x: Tensor, t: Tensor, r: Tensor, label: Tensor | None = None) -> Tensor:
        """x [B,d,1,1], t and r [B] -> x's shape and dtype, computed in float64; there are no classes, `label` is ignored.

        Raises:
            ValueError: r is not t; the average velocity over a longer time has no closed form.
        """
        if r is not t and not torch.equal(r, t):
            raise ValueError("the velocity of a mixture is known at r = t only")
        time = t.double()[:, None]
        signal = 1 - time
        point = x.double().flatten(1)
        variance = signal.square() * self._variance + time.square()
        # log w_k + log N(x; (1-t) m_k, V I) but for what does not depend on k, without a tensor [B,K,d].
        squares = 0.5 * self.means.square().sum(1)
        log_shares = self.log_weights + signal / variance * (point @ self.means.mT - signal * squares)
        mean = log_shares.softmax(1) @ self.means
        velocity = (time - signal * self._variance) / variance * (point - signal * mean) - mean
        return velocity.reshape(x.shape).to(x.dtype)


def grid_mixture(dimension: int, spacing: float = 0.7, std: float = 0.1, seed: int = 0) -> MixturePrior:
    """25 components (5 in one dimension) with means spacing * (i, j, i, j, ...), i and j from -2 to 2, and random weights.

    The design of Cardoso et al. 2023, "Monte Carlo guided diffusion for Bayesian linear inverse problems", whose means are 8
    standard deviations apart; here a coordinate's variance is about 1 (2 spacing^2 + std^2 at equal weights). The weights are
    uniformly distributed on the simplex (theirs are normalised squares of normals).

    Args:
        dimension: at least 1.
        spacing: distance of neighbouring means along a coordinate, positive.
        std: of every component, positive.
        seed: of the weights.

    Raises:
        UserError: values out of range.
    """
    if dimension < 1:
        raise UserError(f"dimension must be at least 1, not {dimension}.")
    if not 0 < spacing < float("inf"):
        raise UserError(f"spacing must be positive and finite, not {spacing:g}.")
    steps = range(-2, 3)
    grid = torch.tensor(list(itertools.product(steps, repeat=min(dimension, 2))), dtype=torch.float64)
    means = spacing * grid[:, torch.arange(dimension) % 2]
    uniform = PhiloxNoise(seed, "grid_mixture", torch.arange(len(means))).uniform((), 0).double()
    # Normalised exponentials; the half bit keeps the logarithm from infinity.
    return MixturePrior(-(uniform + 2.0**-25).log(), means, std)
