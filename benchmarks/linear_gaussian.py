"""The VFM objective where everything is Gaussian and affine, in closed form: what the theory says, to hold training against.

x ~ N(m, C) in R^d, y = A x + e in R^k, e ~ N(0, sigma^2 I); flow map f(z) = K z + b; adapter q(z|y) = N(mu(y), S) with mu
affine in y and S constant. Means that are affine in y are kept as offset + gain (y - A m). All tensors are float64.

Source: Variational Flow Maps (arXiv 2603.07276), eq. 10-19 and what proposition 3.1 says of a fixed K; the joint optimum is
derived here. Only the direct data-fit term 1/(2 tau^2) E |x - f(z)|^2 is treated, not the mean-flow loss that replaces it in
practice. tau = inf drops it: L_obs + L_kl, the objective of `frozen_adapter`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import scipy.optimize
import torch
from torch import Tensor

# A gradient mostly out of rounding's reach, so that BFGS goes on until no step improves the loss.
_STOP = {"gtol": 1e-10, "maxiter": 5000}


@dataclass(frozen=True)
class LinearGaussian:
    """x ~ N(mean, covariance), y = operator x + noise of standard deviation noise_std > 0.

    Attributes:
        mean, covariance: m [d] and C [d,d], positive definite.
        operator: A [k,d].
    """

    mean: Tensor
    covariance: Tensor
    operator: Tensor
    noise_std: float

    @classmethod
    def random(cls, dimension: int, observations: int, noise_std: float, generator: torch.Generator) -> LinearGaussian:
        """C with random axes and eigenvalues log-uniform in [0.2, 2]; A with normal entries of variance 1/d; m normal."""
        eigenvalues = 0.2 * 10 ** torch.rand(dimension, generator=generator, dtype=torch.float64)
        axes = random_orthogonal(1, dimension, generator)[0]
        operator = torch.randn(observations, dimension, generator=generator, dtype=torch.float64) / math.sqrt(dimension)
        mean = torch.randn(dimension, generator=generator, dtype=torch.float64)
        return cls(mean, (axes * eigenvalues) @ axes.T, operator, noise_std)

    @cached_property
    def roots(self) -> tuple[Tensor, Tensor]:
        """X [d,d+k] and Y [k,d+k] such that x - m = X u and y - A m = Y u for a standard normal u."""
        root = torch.linalg.cholesky(self.covariance)
        noise = self.noise_std * torch.eye(len(self.operator), dtype=torch.float64)
        return torch.cat([root, torch.zeros_like(self.operator.T)], dim=1), torch.cat([self.operator @ root, noise], dim=1)

    def observation_covariance(self) -> Tensor:
        """Cov[y] = A C A^T + sigma^2 I, [k,k]."""
        identity = torch.eye(len(self.operator), dtype=torch.float64)
        return self.operator @ self.covariance @ self.operator.T + self.noise_std**2 * identity

    def posterior(self) -> AffineGaussian:
        """p(x|y): covariance (C^-1 + A^T A / sigma^2)^-1, mean m + C A^T Cov[y]^-1 (y - A m)."""
        gain = torch.linalg.solve(self.observation_covariance(), self.operator @ self.covariance).T
        precision = torch.linalg.inv(self.covariance) + self.operator.T @ self.operator / self.noise_std**2
        return AffineGaussian(gain, self.mean, torch.linalg.inv(precision))

    def misfit_precision(self, tau: float) -> Tensor:
        """W = A^T A / sigma^2 + I / tau^2, [d,d]: the curvature of both misfits in f(z)."""
        identity = torch.eye(len(self.mean), dtype=torch.float64)
        return self.operator.T @ self.operator / self.noise_std**2 + identity / tau**2


@dataclass(frozen=True)
class AffineFlow:
    """f(z) = weight z + bias; weight K [d,d], bias b [d]."""

    weight: Tensor
    bias: Tensor


@dataclass(frozen=True)
class AffineGaussian:
    """v | y ~ N(offset + gain (y - A m), covariance): gain [d,k], offset [d], covariance [d,d]. An adapter or a posterior."""

    gain: Tensor
    offset: Tensor
    covariance: Tensor

    def through(self, flow: AffineFlow) -> AffineGaussian:
        """The distribution of f(v) given y."""
        weight = flow.weight
        return AffineGaussian(weight @ self.gain, weight @ self.offset + flow.bias, weight @ self.covariance @ weight.T)


def objective(problem: LinearGaussian, flow: AffineFlow, adapter: AffineGaussian, tau: float) -> Tensor:
    """L = L_df + L_obs + L_kl (eq. 10-19) with its expectations over x, y and z done, scalar; differentiable.

    In terms of `roots` an expectation of squares is a Frobenius norm.
    """
    x, y = problem.roots
    sample = adapter.through(flow)
    shift = problem.mean - sample.offset
    data_fit = shift.square().sum() + (x - sample.gain @ y).square().sum() + sample.covariance.trace()
    observed = problem.operator @ sample.covariance @ problem.operator.T
    residual = (problem.operator @ shift).square().sum() + (y - problem.operator @ sample.gain @ y).square().sum()
    spread = adapter.covariance.trace() - torch.logdet(adapter.covariance) - len(x)
    divergence = 0.5 * (adapter.offset.square().sum() + (adapter.gain @ y).square().sum() + spread)
    return data_fit / (2 * tau**2) + (residual + observed.trace()) / (2 * problem.noise_std**2) + divergence


def adapter_precision(problem: LinearGaussian, weight: Tensor, tau: float) -> Tensor:
    """P = I + K^T W K, the precision of the optimal unconstrained q; weight [...,d,d] -> [...,d,d]."""
    return torch.eye(weight.shape[-1], dtype=torch.float64) + weight.mT @ problem.misfit_precision(tau) @ weight


def optimal_adapter(problem: LinearGaussian, flow: AffineFlow, tau: float, diagonal: bool) -> AffineGaussian:
    """The q that minimises `objective` for this flow map, among all S or the diagonal ones.

    In q, the objective is E_y KL(q || N(mu*, P^-1)) + const, with
    P mu*(y) = K^T [ (E[x|y] - b) / tau^2 + A^T (y - A b) / sigma^2 ].
    S enters by 1/2 [tr(P S) - log det S] alone, so mu* is the same for every constraint on S; the optimum is P^-1, or
    diag(1 / P_ii) among diagonal ones.

    If K K^T = C, b = m and C is invertible, u = K mu* solves (C^-1 + W) u = (C^-1 + W) (E[x|y] - m), so that f(mu*) = E[x|y]
    for every tau; the induced covariance K P^-1 K^T = (C^-1 + W)^-1 is the posterior's at infinite tau, and narrower otherwise.
    """
    precision = adapter_precision(problem, flow.weight, tau)
    pulled = problem.posterior().gain / tau**2 + problem.operator.T / problem.noise_std**2
    gain = torch.linalg.solve(precision, flow.weight.T @ pulled)
    offset = torch.linalg.solve(precision, flow.weight.T @ problem.misfit_precision(tau) @ (problem.mean - flow.bias))
    covariance = torch.diag(1 / precision.diagonal()) if diagonal else torch.linalg.inv(precision)
    return AffineGaussian(gain, offset, covariance)


def hadamard_gap(precision: Tensor) -> Tensor:
    """What a diagonal q loses to a full one, in nats: 1/2 [sum_i log P_ii - log det P] >= 0; [...,d,d] -> [...].

    It is KL(N(mu*, diag(1/P_ii)) || N(mu*, P^-1)), as tr(P diag(1/P_ii)) = d. Zero iff P is diagonal (Hadamard's inequality).
    """
    return 0.5 * (precision.diagonal(dim1=-2, dim2=-1).log().sum(-1) - torch.logdet(precision))


def joint_flow(problem: LinearGaussian, tau: float) -> AffineFlow:
    """A flow map at which `objective` is minimal over K, b, mu and S, for finite tau. Its P is diagonal.

    With S and mu at their optimum for K, T = I + W^(1/2) K K^T W^(1/2) and V = Cov[E[x|y]], the objective is
    1/2 [log det T + tr(T^-1 H)] + const, H = W^(-1/2) (W + C^-1) V (W + C^-1) W^(-1/2), to be minimised over T >= I. As in
    probabilistic PCA, T takes H's axes E and max(eigenvalue, 1): K = W^(-1/2) E (T - I)^(1/2), up to a right rotation.
    H has the rank of A, so K has at most that: the optimal flow map is flat in d - k directions.

    Raises:
        ValueError: tau is infinite; then every K with A K K^T A^T = A C A^T is optimal.
    """
    if not math.isfinite(tau):
        raise ValueError("the joint optimum is not unique at infinite tau")
    misfit = problem.misfit_precision(tau)
    pull = misfit + torch.linalg.inv(problem.covariance)
    inverse_root = torch.linalg.inv(symmetric_root(misfit))
    explained = problem.covariance - problem.posterior().covariance
    values, axes = torch.linalg.eigh(inverse_root @ pull @ explained @ pull @ inverse_root)
    return AffineFlow(inverse_root @ axes * (values - 1).clamp_min(0).sqrt(), problem.mean)


def transport_flow(problem: LinearGaussian, rotation: Tensor) -> AffineFlow:
    """f(z) = C^(1/2) rotation z + m for an orthogonal rotation [d,d]: every affine map that takes N(0, I) to p(x)."""
    return AffineFlow(symmetric_root(problem.covariance) @ rotation, problem.mean)


def regressed_flow(problem: LinearGaussian, adapter: AffineGaussian) -> AffineFlow:
    """The flow map that minimises L_df alone for this adapter: the regression of x on z.

    A fixed point of (`regressed_flow`, `optimal_adapter`) is where training stops if L_obs has no gradient to the flow map,
    which is the method's default. Cov[x,z] = C A^T gain^T, so here too K has at most the rank of A.
    """
    covariance = adapter.gain @ problem.observation_covariance() @ adapter.gain.T + adapter.covariance
    cross = problem.covariance @ problem.operator.T @ adapter.gain.T
    weight = torch.linalg.solve(covariance, cross.T).T
    return AffineFlow(weight, problem.mean - weight @ adapter.offset)


def fit(
    problem: LinearGaussian,
    tau: float,
    start: AffineFlow,
    learned: Literal["adapter", "rotation", "joint"],
    diagonal: bool,
    generator: torch.Generator,
) -> tuple[AffineFlow, AffineGaussian]:
    """Minimises `objective` on its gradient alone, from a random adapter near N(0, I).

    Args:
        start: where the flow map begins, or stays.
        learned: the adapter alone; also a rotation Q of the flow map, K = start.weight Q; or also K and b.
        diagonal: S = diag(exp(2 log_std)); otherwise S = F F^T of a square F.
    """
    d, k = len(problem.mean), len(problem.operator)
    in_flow = {"adapter": 0, "rotation": d * d, "joint": d * d + d}[learned]
    sizes = [d * k, d, d if diagonal else d * d, in_flow]

    def unpacked(vector: Tensor) -> tuple[AffineFlow, AffineGaussian]:
        gain, offset, spread, moved = vector.split(sizes)
        factor = torch.diag(spread.exp()) if diagonal else torch.eye(d, dtype=torch.float64) + spread.view(d, d)
        flow = start
        if learned == "rotation":
            skew = moved.view(d, d)
            flow = AffineFlow(start.weight @ torch.linalg.matrix_exp(skew - skew.T), start.bias)
        elif learned == "joint":
            flow = AffineFlow(start.weight + moved[: d * d].view(d, d), start.bias + moved[d * d :])
        return flow, AffineGaussian(gain.view(d, k), offset, factor @ factor.T)

    first = 0.1 * torch.randn(sum(sizes), generator=generator, dtype=torch.float64)
    return unpacked(minimise(lambda vector: objective(problem, *unpacked(vector), tau), first))


def minimise(function: Callable[[Tensor], Tensor], first: Tensor) -> Tensor:
    """A local minimum of a scalar function of a vector, by BFGS on its gradient from `first`."""

    def value_and_gradient(values: np.ndarray) -> tuple[float, np.ndarray]:
        vector = torch.from_numpy(values).requires_grad_()
        value = function(vector)
        (gradient,) = torch.autograd.grad(value, vector)
        return value.item(), gradient.numpy()

    return torch.from_numpy(
        scipy.optimize.minimize(value_and_gradient, first.numpy(), jac=True, method="BFGS", options=_STOP).x
    )


def mean_distance(problem: LinearGaussian, p: AffineGaussian, q: AffineGaussian) -> float:
    """Root of E_y |E_p - E_q|^2, in units of x."""
    gain = (p.gain - q.gain) @ torch.linalg.cholesky(problem.observation_covariance())
    return math.sqrt(((p.offset - q.offset).square().sum() + gain.square().sum()).item())


def wasserstein(problem: LinearGaussian, p: AffineGaussian, q: AffineGaussian) -> float:
    """Root of E_y W_2(p(.|y), q(.|y))^2, in units of x; covariances may be singular.

    W_2^2 = |difference of means|^2 + tr(S_p) + tr(S_q) - 2 sum of the singular values of S_p^(1/2) S_q^(1/2).
    """
    overlap = torch.linalg.svdvals(symmetric_root(p.covariance) @ symmetric_root(q.covariance)).sum()
    spread = p.covariance.trace() + q.covariance.trace() - 2 * overlap
    return math.sqrt(mean_distance(problem, p, q) ** 2 + max(spread.item(), 0.0))


def kl_divergence(problem: LinearGaussian, p: AffineGaussian, q: AffineGaussian) -> float:
    """E_y KL(p(.|y) || q(.|y)) in nats, for positive definite q; infinite if p is flat in a direction."""
    root = torch.linalg.cholesky(q.covariance)
    gain = (p.gain - q.gain) @ torch.linalg.cholesky(problem.observation_covariance())
    shift = torch.cat([gain, (p.offset - q.offset)[:, None]], dim=1)
    whitened = torch.linalg.solve_triangular(root, shift, upper=False).square().sum()
    half = torch.linalg.solve_triangular(root, p.covariance, upper=False)
    values = torch.linalg.eigvalsh(torch.linalg.solve_triangular(root, half.T, upper=False))
    if values.min() <= 1e-14 * values.max():
        return math.inf
    return 0.5 * (whitened + (values - values.log() - 1).sum()).item()


def symmetric_root(matrix: Tensor) -> Tensor:
    """The positive semi-definite square root of a positive semi-definite [d,d]."""
    values, axes = torch.linalg.eigh(matrix)
    return (axes * values.clamp_min(0).sqrt()) @ axes.T


def random_orthogonal(count: int, dimension: int, generator: torch.Generator) -> Tensor:
    """Orthogonal matrices from the uniform (Haar) distribution, [count,d,d]."""
    q, r = torch.linalg.qr(torch.randn(count, dimension, dimension, generator=generator, dtype=torch.float64))
    return q * r.diagonal(dim1=-2, dim2=-1).sign()[:, None, :]
