"""The linear-Gaussian theory against quadrature of the objective's definition, autograd, training and dense linear algebra."""

import itertools
import math

import numpy as np
import pytest
import scipy.linalg
import torch
from linear_gaussian import (
    AffineFlow,
    AffineGaussian,
    LinearGaussian,
    adapter_precision,
    fit,
    hadamard_gap,
    joint_flow,
    kl_divergence,
    mean_distance,
    objective,
    optimal_adapter,
    random_orthogonal,
    regressed_flow,
    symmetric_root,
    transport_flow,
    wasserstein,
)
from torch.distributions import MultivariateNormal
from torch.distributions import kl_divergence as torch_kl

TAUS = (0.2, 1.0, math.inf)


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


@pytest.fixture
def problem(generator):
    return LinearGaussian.random(4, 2, 0.3, generator)


def normal(generator, *shape):
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def random_flow(problem, generator):
    d = len(problem.mean)
    return AffineFlow(normal(generator, d, d), normal(generator, d))


def random_adapter(problem, generator):
    k, d = problem.operator.shape
    factor = torch.eye(d, dtype=torch.float64) + 0.3 * normal(generator, d, d)
    return AffineGaussian(normal(generator, d, k), normal(generator, d), factor @ factor.T)


def transport(problem, generator):
    return transport_flow(problem, random_orthogonal(1, len(problem.mean), generator)[0])


def quadrature(dimension):
    """Nodes [n,dimension] and weights [n] that integrate squares under N(0, I) exactly."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(3)
    grid = torch.tensor(list(itertools.product(nodes, repeat=dimension)))
    return grid, torch.tensor(list(itertools.product(weights / weights.sum(), repeat=dimension))).prod(1)


def observations(problem, nodes):
    """x [n,d] and y [n,k] at the first d+k coordinates of the nodes."""
    d, k = len(problem.mean), len(problem.operator)
    x = problem.mean + nodes[:, :d] @ torch.linalg.cholesky(problem.covariance).T
    return x, x @ problem.operator.T + problem.noise_std * nodes[:, d : d + k]


def conditional(problem, gaussian, y):
    mean = gaussian.offset + (y - problem.operator @ problem.mean) @ gaussian.gain.T
    return MultivariateNormal(mean, gaussian.covariance)


@pytest.mark.parametrize("tau", TAUS)
def test_objective_against_quadrature_of_its_definition(generator, tau):
    problem = LinearGaussian.random(2, 1, 0.3, generator)
    flow, adapter = random_flow(problem, generator), random_adapter(problem, generator)
    nodes, weights = quadrature(5)
    x, y = observations(problem, nodes)
    q = conditional(problem, adapter, y)
    f = (q.mean + nodes[:, 3:] @ torch.linalg.cholesky(adapter.covariance).T) @ flow.weight.T + flow.bias
    misfit = (x - f).square().sum(1) / (2 * tau**2) + (y - f @ problem.operator.T).square().sum(1) / (2 * 0.3**2)
    divergence = torch_kl(q, MultivariateNormal(torch.zeros_like(x), torch.eye(2, dtype=torch.float64)))
    expected = weights @ (misfit + divergence)
    assert objective(problem, flow, adapter, tau).item() == pytest.approx(expected.item(), rel=1e-12)


def test_posterior_against_bayes_rule(problem, generator):
    x, y = observations(problem, normal(generator, 50, 6))
    evidence = MultivariateNormal(problem.operator @ problem.mean, problem.observation_covariance()).log_prob(y)
    likelihood = MultivariateNormal(x @ problem.operator.T, 0.3**2 * torch.eye(2, dtype=torch.float64)).log_prob(y)
    expected = MultivariateNormal(problem.mean, problem.covariance).log_prob(x) + likelihood - evidence
    assert torch.allclose(conditional(problem, problem.posterior(), y).log_prob(x), expected)


@pytest.mark.parametrize("tau", TAUS)
def test_optimal_adapter_has_no_gradient(problem, generator, tau):
    flow = random_flow(problem, generator)
    for diagonal in (False, True):
        q = optimal_adapter(problem, flow, tau, diagonal)
        parts = [part.clone().requires_grad_() for part in (q.gain, q.offset, q.covariance)]
        gradients = torch.autograd.grad(objective(problem, flow, AffineGaussian(*parts), tau), parts)
        scale = adapter_precision(problem, flow.weight, tau).norm()
        assert all(g.norm() < 1e-10 * scale for g in gradients[:2])
        assert (gradients[2].diagonal() if diagonal else gradients[2]).norm() < 1e-10 * scale


@pytest.mark.parametrize("tau", TAUS)
@pytest.mark.parametrize("diagonal", [False, True])
def test_optimal_adapter_against_training(problem, generator, tau, diagonal):
    flow = random_flow(problem, generator)
    best = optimal_adapter(problem, flow, tau, diagonal)
    same, q = fit(problem, tau, flow, "adapter", diagonal, generator)
    assert torch.equal(same.weight, flow.weight)
    for ours, theirs in ((best.gain, q.gain), (best.offset, q.offset), (best.covariance, q.covariance)):
        assert torch.allclose(ours, theirs, atol=1e-6)


@pytest.mark.parametrize("tau", TAUS)
def test_a_transport_has_the_posterior_mean_and_a_narrower_covariance(problem, generator, tau):
    flow, posterior = transport(problem, generator), problem.posterior()
    induced = torch.linalg.inv(torch.linalg.inv(posterior.covariance) + torch.eye(4, dtype=torch.float64) / tau**2)
    for diagonal in (False, True):
        q = optimal_adapter(problem, flow, tau, diagonal)
        assert mean_distance(problem, q.through(flow), posterior) < 1e-12
    assert torch.allclose(optimal_adapter(problem, flow, tau, False).through(flow).covariance, induced)


def test_hadamard_gap_is_what_a_diagonal_covariance_costs(problem, generator):
    for tau in TAUS:
        flow = random_flow(problem, generator)
        full, diagonal = (objective(problem, flow, optimal_adapter(problem, flow, tau, kind), tau) for kind in (False, True))
        assert (diagonal - full).item() == pytest.approx(hadamard_gap(adapter_precision(problem, flow.weight, tau)).item())


def test_hadamard_gap_vanishes_for_diagonal_precisions_only(generator):
    diagonal = torch.diag(torch.tensor([1.0, 3.0, 7.0], dtype=torch.float64))
    rotated = random_orthogonal(100, 3, generator).mT @ diagonal @ random_orthogonal(100, 3, generator.manual_seed(0))
    gaps = hadamard_gap(torch.cat([diagonal[None], rotated]))
    assert gaps[0].abs() < 1e-14
    assert gaps.shape == (101,)
    assert (gaps[1:] > 1e-4).all()


def test_a_learned_rotation_closes_the_gap(problem, generator):
    start = transport(problem, generator)
    flow, q = fit(problem, 0.5, start, "rotation", True, generator)
    best = objective(problem, start, optimal_adapter(problem, start, 0.5, False), 0.5).item()
    assert objective(problem, flow, q, 0.5).item() == pytest.approx(best, abs=1e-9)
    assert torch.allclose(flow.weight @ flow.weight.T, problem.covariance)
    assert hadamard_gap(adapter_precision(problem, start.weight, 0.5)) > 0.01


@pytest.mark.parametrize("tau", [0.2, 1.0, 20.0])
@pytest.mark.parametrize("diagonal", [False, True])
def test_joint_flow_against_training(problem, generator, tau, diagonal):
    best = joint_flow(problem, tau)
    expected = objective(problem, best, optimal_adapter(problem, best, tau, True), tau).item()
    flow, q = fit(problem, tau, random_flow(problem, generator), "joint", diagonal, generator)
    assert objective(problem, flow, q, tau).item() == pytest.approx(expected, abs=1e-9)
    assert torch.allclose(flow.weight @ flow.weight.T, best.weight @ best.weight.T, atol=1e-3)
    assert torch.allclose(flow.bias + flow.weight @ q.offset, problem.mean, atol=1e-4)


def test_joint_flow_has_the_rank_of_the_operator_and_a_diagonal_precision(problem):
    flow = joint_flow(problem, 0.5)
    precision = adapter_precision(problem, flow.weight, 0.5)
    assert torch.linalg.matrix_rank(flow.weight).item() == 2
    assert torch.allclose(precision, torch.diag(precision.diagonal()))
    with pytest.raises(ValueError, match="not unique"):
        joint_flow(problem, math.inf)


def test_without_data_fit_the_unobserved_part_of_the_flow_map_is_free(problem, generator):
    """At infinite tau, all K with A K K^T A^T = A C A^T reach the loss that training reaches."""
    exact = transport(problem, generator)
    unobserved = torch.eye(4, dtype=torch.float64) - torch.linalg.pinv(problem.operator) @ problem.operator
    losses = []
    for weight in (exact.weight, exact.weight + unobserved @ normal(generator, 4, 4)):
        flow = AffineFlow(weight, problem.mean)
        losses.append(objective(problem, flow, optimal_adapter(problem, flow, math.inf, False), math.inf).item())
    flow, q = fit(problem, math.inf, random_flow(problem, generator), "joint", False, generator)
    assert losses == pytest.approx([objective(problem, flow, q, math.inf).item()] * 2, abs=1e-9)


def test_regressed_flow_minimises_the_data_fit(problem, generator):
    q = random_adapter(problem, generator)
    flow = regressed_flow(problem, q)
    parts = [part.clone().requires_grad_() for part in (flow.weight, flow.bias)]
    data_fit = objective(problem, AffineFlow(*parts), q, 1.0) - objective(problem, AffineFlow(*parts), q, math.inf)
    assert all(g.norm() < 1e-10 for g in torch.autograd.grad(data_fit, parts))
    assert torch.linalg.matrix_rank(flow.weight).item() == 2


def test_kl_against_torch_distributions_averaged_over_y(problem, generator):
    p, q = random_adapter(problem, generator), random_adapter(problem, generator)
    nodes, weights = quadrature(6)
    _, y = observations(problem, nodes)
    expected = weights @ torch_kl(conditional(problem, p, y), conditional(problem, q, y))
    assert kl_divergence(problem, p, q) == pytest.approx(expected.item())
    assert kl_divergence(problem, q, q) == pytest.approx(0, abs=1e-12)
    flow = joint_flow(problem, 0.5)
    assert kl_divergence(problem, optimal_adapter(problem, flow, 0.5, False).through(flow), q) == math.inf


def test_wasserstein_against_scipy(problem, generator):
    p, q = random_adapter(problem, generator), random_adapter(problem, generator)
    nodes, weights = quadrature(6)
    _, y = observations(problem, nodes)
    shift = conditional(problem, p, y).mean - conditional(problem, q, y).mean
    a, b = p.covariance.numpy(), q.covariance.numpy()
    bures = np.trace(a + b - 2 * scipy.linalg.sqrtm(scipy.linalg.sqrtm(a) @ b @ scipy.linalg.sqrtm(a)).real)
    expected = (weights @ shift.square().sum(1)).item()
    assert mean_distance(problem, p, q) ** 2 == pytest.approx(expected)
    assert wasserstein(problem, p, q) ** 2 == pytest.approx(expected + bures)
    point = AffineGaussian(q.gain, q.offset, torch.zeros(4, 4, dtype=torch.float64))
    assert wasserstein(problem, point, q) ** 2 == pytest.approx(np.trace(b))


def test_roots_and_rotations(generator):
    rotations = random_orthogonal(200, 3, generator)
    assert torch.allclose(rotations @ rotations.mT, torch.eye(3, dtype=torch.float64))
    assert rotations.mean(0).abs().max() < 0.2
    matrix = rotations[0] @ torch.diag(torch.tensor([0.0, 1.0, 4.0], dtype=torch.float64)) @ rotations[0].T
    root = symmetric_root(matrix)
    assert torch.allclose(root, root.T)
    assert torch.allclose(root @ root, matrix)
