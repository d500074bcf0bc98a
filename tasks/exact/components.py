"""Mixtures of Gaussians with one covariance and their posteriors under linear observations: again such mixtures."""

from __future__ import annotations

import copy
import math
from typing import Self

import torch
from torch import Tensor

from vfmbench.measurement import Measurement, NoiseSource
from vfmbench.tasks.exact.linear import LinearMeasurement, flat_points
from vfmbench.tasks.exact.sampling import categorical, fine_uniform

# Draws of the samplers; the first takes two.
_WHICH, _NORMAL = 0, 2


class GaussianComponents:
    """p(x) = sum_k w_k N(x; m_k, C), C = R R^T; its modes are the components.

    Computed in whitened coordinates g = R^-1 (x - c) about the mean c of all, where every component has the covariance I.

    Args:
        weights: w, positive with sum 1, float64 [K].
        means: m, float64 [K,d].
        root: R, float64 [d,d].
        inverse_root: R^-1, float64 [d,d].
    """

    def __init__(self, weights: Tensor, means: Tensor, root: Tensor, inverse_root: Tensor):
        self.dimension = means.shape[1]
        self.log_weights = weights.log()
        self.root, self.inverse_root = root, inverse_root
        # Without the centre, distances between points and means far from the origin would lose digits.
        self.centre = weights @ means
        self.white_means = (means - self.centre) @ inverse_root.mT

    def draw(self, noise: NoiseSource) -> Tensor:
        """Independent draws, one for each of the noise's rows: float32 [rows,d,1,1]."""
        normal = noise.normal((self.dimension,), _NORMAL).double()
        own = self.to(normal.device)
        component = categorical(own.log_weights.exp()[None], fine_uniform(noise, (), _WHICH)[None])[0]
        return own.from_white(own.white_means[component] + normal)

    def log_density(self, points: Tensor) -> Tensor:
        """log p(x) in nats, [...,d,1,1] -> float64 [...]."""
        own = self.to(points.device)
        return own.white_log_density(own.to_white(points))

    def component_shares(self, points: Tensor) -> Tensor:
        """Probability that a point came from each component, [...,d,1,1] -> float64 [...,K]."""
        own = self.to(points.device)
        return own._log_shares(own.to_white(points)).softmax(-1)

    def posterior(self, measurement: Measurement) -> ComponentsPosterior:
        """The posteriors of a measurement's rows.

        Raises:
            UserError: an operator that is not a matrix on points of this dimension.
            ValueError: noise that is not positive or differs between the entries of one row.
        """
        return ComponentsPosterior(self.to(measurement.y.device), LinearMeasurement.of(measurement, self.dimension))

    def to(self, device: torch.device | str) -> Self:
        """The same mixture on `device`."""
        other = copy.copy(self)
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(other, name, value.to(device))
        return other

    def to_white(self, points: Tensor) -> Tensor:
        """Whitened coordinates of points, [...,d,1,1] -> float64 [...,d]."""
        return (flat_points(points, self.dimension) - self.centre) @ self.inverse_root.mT

    def from_white(self, white: Tensor) -> Tensor:
        """Points of whitened coordinates, float64 [...,d] -> float32 [...,d,1,1]."""
        return (self.centre + white @ self.root.mT).float()[..., None, None]

    def white_log_density(self, white: Tensor) -> Tensor:
        """log p(x) of the points with the whitened coordinates [...,d] -> [...]."""
        volume = torch.linalg.slogdet(self.root).logabsdet + 0.5 * self.dimension * math.log(2 * math.pi)
        return self._log_shares(white).logsumexp(-1) - 0.5 * white.square().sum(-1) - volume

    def _log_shares(self, white: Tensor) -> Tensor:
        """log w_k + log N(g; white mean of k, I) but for what does not depend on k: [...,d] -> [...,K]."""
        return self.log_weights + white @ self.white_means.mT - 0.5 * self.white_means.square().sum(1)


class ComponentsPosterior:
    """p(x|y) for y = M x + noise_std n; implements `vfmbench.interfaces.ExactPosterior`.

    With the singular value decomposition M R = U diag(s) V^T, observation and prior are both diagonal in h = V^T g: for every
    component h ~ N(h_k, I), and U^T (y - M c) = s h + noise_std n. One decomposition serves all rows and components.
    """

    def __init__(self, prior: GaussianComponents, observed: LinearMeasurement):
        self._prior = prior
        left, singular, self._rotation = torch.linalg.svd(observed.matrix @ prior.root)
        unseen = (0, prior.dimension - len(singular))
        self._gain = torch.nn.functional.pad(singular, unseen)
        seen = (observed.y - observed.matrix @ prior.centre) @ left[:, : len(singular)]
        self._seen = torch.nn.functional.pad(seen, unseen)
        self._noise_variance = observed.noise_std.square()

        variance = self._gain.square() + self._noise_variance
        means = prior.white_means @ self._rotation.mT
        innovation = self._seen[:, None] - self._gain * means
        self._means = means + (self._gain / variance)[:, None] * innovation
        self._std = (self._noise_variance / variance).sqrt()
        log_joint = prior.log_weights - 0.5 * (innovation.square() / variance[:, None]).sum(-1)
        self._weights = log_joint.softmax(1)
        # log p(y) but for the constant that the likelihood below leaves out as well.
        self._log_evidence = log_joint.logsumexp(1) - 0.5 * (variance / self._noise_variance).log().sum(1)

    def __len__(self) -> int:
        return len(self._seen)

    def sample(self, count: int, noise: NoiseSource) -> Tensor:
        """Independent draws, float32 [B,count,d,1,1]; `noise` has B * count rows, those of one measurement adjacent."""
        component = categorical(self._weights, fine_uniform(noise, (), _WHICH).reshape(-1, count))
        normal = noise.normal((self._prior.dimension,), _NORMAL).double().reshape(len(self), count, -1)
        means = self._means.gather(1, component[..., None].expand_as(normal))
        return self._prior.from_white((means + self._std[:, None] * normal) @ self._rotation)

    def log_density(self, points: Tensor) -> Tensor:
        """log p(x|y) in nats by Bayes' rule, [B,S,d,1,1] -> float64 [B,S]."""
        white = self._prior.to_white(points)
        misfit = self._seen[:, None] - self._gain * (white @ self._rotation.mT)
        log_likelihood = -0.5 * misfit.square().sum(-1) / self._noise_variance
        return self._prior.white_log_density(white) + log_likelihood - self._log_evidence[:, None]

    def mode_weights(self) -> Tensor:
        """Probability of each component under the posterior, float64 [B,K]."""
        return self._weights

    def mode_shares(self, points: Tensor) -> Tensor:
        """Probability that each point belongs to each component of the prior, [B,S,d,1,1] -> float64 [B,S,K]."""
        return self._prior.component_shares(points)
