"""Holds the theory of the linear-Gaussian case (spec/vfm.md section 9) against optimisation and sampling; prints markdown.

    python benchmarks/theory.py > report.md

Every number is over random problems of fixed seeds: see `LinearGaussian.random`. "Trained" is BFGS on the closed-form
objective, which sees none of the formulas that it is held against.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from vfmbench.methods.linear_gaussian import (
    AffineFlow,
    AffineGaussian,
    LinearGaussian,
    adapter_precision,
    hadamard_gap,
    joint_flow,
    kl_divergence,
    mean_distance,
    minimise,
    objective,
    optimal_adapter,
    random_orthogonal,
    regressed_flow,
    symmetric_root,
    train,
    transport_flow,
    wasserstein,
)
from vfmbench.randomness import PhiloxNoise, sample_rows

SHAPES = ((2, 1), (4, 2), (8, 4))
NOISE = (0.1, 0.5)
PROBLEMS = 5
TRAINED_TAUS = (0.1, 0.5, 2.0)
TAUS = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
STARTS = 2
ROTATIONS = 1000
OBSERVATIONS, SAMPLES = 500, 2000


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def number(value: float) -> str:
    return "inf" if math.isinf(value) else f"{value:.2g}"


def summary(values: Sequence[float]) -> str:
    """Median and largest."""
    return f"{number(statistics.median(values))} ({number(max(values))})"


def relative(ours: Tensor, reference: Tensor) -> float:
    return ((ours - reference).norm() / reference.norm()).item()


def problems(count: int = PROBLEMS, shapes: Sequence[tuple[int, int]] = SHAPES) -> Iterator[tuple[LinearGaussian, torch.Generator]]:
    """`count` problems for every size and noise, each with a generator for what is drawn around it."""
    for (d, k), noise_std, seed in itertools.product(shapes, NOISE, range(count)):
        generator = torch.Generator().manual_seed(seed)
        yield LinearGaussian.random(d, k, noise_std, generator), generator


def random_transport(problem: LinearGaussian, generator: torch.Generator) -> AffineFlow:
    return transport_flow(problem, random_orthogonal(1, len(problem.mean), generator)[0])


def prior(problem: LinearGaussian) -> AffineGaussian:
    """p(x), whatever y."""
    return AffineGaussian(torch.zeros_like(problem.operator.T), problem.mean, problem.covariance)


def mean_error(problem: LinearGaussian, samples: AffineGaussian) -> float:
    """RMS distance to E[x|y], in units of the RMS distance of E[x|y] from m."""
    return mean_distance(problem, samples, problem.posterior()) / mean_distance(problem, prior(problem), problem.posterior())


def distance(problem: LinearGaussian, samples: AffineGaussian) -> float:
    """W2 to the posterior in units of the posterior's spread: 1 for a point at E[x|y]."""
    return wasserstein(problem, samples, problem.posterior()) / math.sqrt(problem.posterior().covariance.trace().item())


def adapter_rows() -> Iterator[list[str]]:
    """Trained adapters of fixed transports against the closed forms, maxima over noise and tau."""
    for (d, k), full_objective in itertools.product(SHAPES, (True, False)):
        rows = []
        for problem, generator in problems(1, [(d, k)]):
            flow = random_transport(problem, generator)
            for tau in TRAINED_TAUS if full_objective else (math.inf,):
                precision = adapter_precision(problem, flow.weight, tau)
                (_, full), (_, diagonal) = (train(problem, tau, flow, "adapter", kind, generator) for kind in (False, True))
                induced = torch.linalg.inv(torch.linalg.inv(problem.covariance) + problem.misfit_precision(tau))
                losses = [objective(problem, flow, q, tau).item() for q in (full, diagonal)]
                rows.append(
                    (
                        relative(torch.linalg.inv(full.covariance), precision),
                        relative(full.through(flow).covariance, induced),
                        relative(diagonal.covariance, torch.diag(1 / precision.diagonal())),
                        abs(losses[1] - losses[0] - hadamard_gap(precision).item()),
                        mean_distance(problem, full.through(flow), problem.posterior()),
                        mean_distance(problem, diagonal.through(flow), problem.posterior()),
                        mean_distance(problem, diagonal, full),
                    )
                )
        label = "L_df + L_obs + L_kl" if full_objective else "L_obs + L_kl"
        yield [str(d), label, *(number(max(column)) for column in zip(*rows, strict=True))]


def fixed_rows() -> Iterator[list[str]]:
    """The optimal adapter of a fixed transport over tau."""
    for tau in (*TAUS, math.inf):
        columns: list[list[float]] = [[], [], [], [], []]
        for problem, generator in problems():
            flow, posterior = random_transport(problem, generator), problem.posterior()
            full, diagonal = (optimal_adapter(problem, flow, tau, kind).through(flow) for kind in (False, True))
            columns[0].append(mean_error(problem, full))
            columns[1].append((full.covariance.trace() / posterior.covariance.trace()).item())
            columns[2].append(kl_divergence(problem, full, posterior))
            columns[3].append(distance(problem, full))
            columns[4].append(distance(problem, diagonal))
        yield [number(tau), number(max(columns[0])), *(summary(column) for column in columns[1:])]


def joint_training_rows() -> Iterator[list[str]]:
    """Trained rotations and joint models against the closed forms, maxima over noise, tau and starts."""
    for d, k in SHAPES:
        excess: dict[str, list[float]] = {"rotation": [], "off": [], "full": [], "diagonal": [], "flow": [], "rank": []}
        for (problem, generator), tau in itertools.product(problems(1, [(d, k)]), TRAINED_TAUS):
            fixed, joint = random_transport(problem, generator), joint_flow(problem, tau)
            best_fixed = objective(problem, fixed, optimal_adapter(problem, fixed, tau, False), tau).item()
            best_joint = objective(problem, joint, optimal_adapter(problem, joint, tau, False), tau).item()
            for _ in range(STARTS):
                flow, q = train(problem, tau, random_transport(problem, generator), "rotation", True, generator)
                precision = adapter_precision(problem, flow.weight, tau)
                excess["rotation"].append(abs(objective(problem, flow, q, tau).item() - best_fixed))
                excess["off"].append(relative(torch.diag(precision.diagonal()), precision))
                for kind in ("full", "diagonal"):
                    weight, bias = torch.randn(d + 1, d, generator=generator, dtype=torch.float64).split([d, 1])
                    flow, q = train(problem, tau, AffineFlow(weight, bias[0]), "joint", kind == "diagonal", generator)
                    excess[kind].append(abs(objective(problem, flow, q, tau).item() - best_joint))
                    excess["flow"].append(relative(flow.weight @ flow.weight.T, joint.weight @ joint.weight.T))
                    excess["rank"].append(torch.linalg.matrix_rank(flow.weight, rtol=1e-4).item())
        rank = f"{k} / {max(excess.pop('rank')):.0f}"
        yield [str(d), *(number(max(values)) for values in excess.values()), rank]


def joint_rows() -> Iterator[list[str]]:
    """The joint optimum in closed form over tau."""
    for tau in TAUS:
        columns: list[list[float]] = [[], [], [], [], [], [], []]
        for problem, generator in problems():
            flow, fixed = joint_flow(problem, tau), random_transport(problem, generator)
            q, fixed_q = (optimal_adapter(problem, f, tau, False) for f in (flow, fixed))
            samples = q.through(flow)
            noisy = AffineGaussian(samples.gain, samples.offset, samples.covariance + tau**2 * torch.eye(len(problem.mean)))
            columns[0].append((objective(problem, fixed, fixed_q, tau) - objective(problem, flow, q, tau)).item())
            columns[1].append(torch.linalg.matrix_rank(flow.weight).item() / len(problem.operator))
            columns[2].append(relative(flow.weight @ flow.weight.T, problem.covariance))
            columns[3].append(mean_error(problem, samples))
            columns[4].append((samples.covariance.trace() / problem.posterior().covariance.trace()).item())
            columns[5].append(distance(problem, samples))
            columns[6].append(distance(problem, noisy))
        yield [number(tau), *(summary(column) for column in columns)]


def stop_gradient_rows() -> Iterator[list[str]]:
    """Where alternating optima of flow map (L_df alone) and adapter (all terms) stop, from a transport."""
    for tau in TAUS:
        columns: list[list[float]] = [[], [], [], [], []]
        for problem, generator in problems(1):
            flow = random_transport(problem, generator)
            for _ in range(1000):
                previous = flow
                flow = regressed_flow(problem, optimal_adapter(problem, flow, tau, False))
            samples = optimal_adapter(problem, flow, tau, False).through(flow)
            columns[0].append(relative(flow.weight, previous.weight))
            columns[1].append(torch.linalg.matrix_rank(flow.weight, atol=1e-6, rtol=0).item() / len(problem.operator))
            columns[2].append(mean_error(problem, samples))
            columns[3].append((samples.covariance.trace() / problem.posterior().covariance.trace()).item())
            columns[4].append(distance(problem, samples))
        yield [number(tau), number(max(columns[0])), *(summary(column) for column in columns[1:])]


def rotation_rows() -> Iterator[list[str]]:
    """The Hadamard gap over random rotations of a fixed transport, and at the rotation that diagonalises P."""
    for (d, k), tau in itertools.product(SHAPES, (0.1, 1.0, math.inf)):
        gaps, aligned, identity = [], [], []
        for problem, generator in problems(shapes=[(d, k)]):
            root, posterior = symmetric_root(problem.covariance), problem.posterior()
            rotations = random_orthogonal(ROTATIONS, d, generator)
            found = hadamard_gap(adapter_precision(problem, root @ rotations, tau))
            gaps.append(found)
            axes = torch.linalg.eigh(root @ problem.misfit_precision(tau) @ root).eigenvectors
            aligned.append(hadamard_gap(adapter_precision(problem, root @ axes, tau)).abs().item())
            flow = transport_flow(problem, rotations[0])
            full, diagonal = (optimal_adapter(problem, flow, tau, kind).through(flow) for kind in (False, True))
            target = posterior if math.isinf(tau) else full
            identity.append(abs(kl_divergence(problem, diagonal, target) - found[0].item()))
        quantiles = torch.quantile(torch.cat(gaps), torch.tensor([0.0, 0.05, 0.5, 0.95, 1.0], dtype=torch.float64)).tolist()
        yield [str(d), number(tau), *map(number, quantiles), number(max(aligned)), number(max(identity))]


def shared_rows() -> Iterator[list[str]]:
    """One map for two inverse problems of the same x: the least mean gap over rotations, at infinite tau."""
    for d, k in SHAPES[:2]:
        least, typical = [], []
        for problem, generator in problems(3, [(d, k)]):
            other = LinearGaussian.random(d, k, problem.noise_std, generator).operator
            pair = (problem, LinearGaussian(problem.mean, problem.covariance, other, problem.noise_std))
            root = symmetric_root(problem.covariance)

            def gap(rotation: Tensor, pair=pair, root=root) -> Tensor:
                precisions = [adapter_precision(each, root @ rotation, math.inf) for each in pair]
                return torch.stack([hadamard_gap(each) for each in precisions]).mean(0)

            def of_skew(vector: Tensor, d=d, gap=gap) -> Tensor:
                return gap(torch.linalg.matrix_exp(vector.view(d, d) - vector.view(d, d).T))

            starts = torch.randn(5, d * d, generator=generator, dtype=torch.float64)
            least.append(min(of_skew(minimise(of_skew, start)).item() for start in starts))
            typical.append(gap(random_orthogonal(ROTATIONS, d, generator)).median().item())
        yield [str(d), number(min(least)), summary(least), summary(typical)]


def misfit_map_rows() -> Iterator[list[str]]:
    """A fixed map that is no transport, K = 0.8 C^(1/2) Q: mean errors of both optimal adapters."""
    for tau in (0.1, 1.0, math.inf):
        full, between = [], []
        for problem, generator in problems():
            flow = random_transport(problem, generator)
            flow = AffineFlow(0.8 * flow.weight, flow.bias)
            pair = [optimal_adapter(problem, flow, tau, kind).through(flow) for kind in (False, True)]
            full.append(mean_error(problem, pair[0]))
            between.append(mean_distance(problem, *pair))
        yield [number(tau), summary(full), number(max(between))]


def curved_means(
    curvature: float, noise_std: float, generator: torch.Generator
) -> tuple[Tensor, dict[bool, Tensor], float]:
    """E[x|y], E_q[f(z)] of the best full (False) and diagonal (True) Gaussian q, and the posterior's spread, for one y.

    f(z) = K (z_1, z_2 + curvature (z_1^2 - 1)), fixed, and x = f(z) for z ~ N(0, I), so that f is an exact transport; y is the sum
    of the coordinates of x, with noise. The objective is L_obs + L_kl, its expectations by Gauss-Hermite quadrature (exact for
    these polynomials); E[x|y] is summed over a grid of z.
    """
    weight = random_transport(LinearGaussian.random(2, 1, noise_std, generator), generator).weight
    nodes, weights = (torch.from_numpy(array) for array in np.polynomial.hermite_e.hermegauss(6))
    nodes, weights = torch.cartesian_prod(nodes, nodes), torch.outer(weights, weights).flatten() / weights.sum() ** 2

    def mapped(z: Tensor) -> Tensor:
        return torch.stack([z[..., 0], z[..., 1] + curvature * (z[..., 0] ** 2 - 1)], dim=-1) @ weight.T

    truth, noise = torch.randn(2, 2, generator=generator, dtype=torch.float64)
    y = mapped(truth).sum() + noise_std * noise[0]

    axis = torch.linspace(-7, 7, 1401, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    x = mapped(grid)
    density = torch.softmax(-0.5 * grid.square().sum(1) - (x.sum(1) - y) ** 2 / (2 * noise_std**2), dim=0)
    mean = density @ x
    spread = (density @ (x - mean).square().sum(1)).sqrt().item()

    def gaussian(vector: Tensor, diagonal: bool) -> tuple[Tensor, Tensor]:
        factor = vector[2:].view(2, 2)
        return vector[:2], torch.diag(factor.diagonal()) if diagonal else factor

    best = {}
    for diagonal in (False, True):

        def loss(vector: Tensor, diagonal: bool = diagonal) -> Tensor:
            centre, factor = gaussian(vector, diagonal)
            residual = mapped(centre + nodes @ factor.T).sum(1) - y
            divergence = 0.5 * (centre.square().sum() + factor.square().sum() - 2 - torch.logdet(factor @ factor.T))
            return weights @ residual.square() / (2 * noise_std**2) + divergence

        starts = torch.randn(4, 6, generator=generator, dtype=torch.float64) * 0.5
        starts[:, 2:] = torch.tensor([0.5, 0.05, 0.05, 0.5], dtype=torch.float64)
        centre, factor = gaussian(min((minimise(loss, start) for start in starts), key=lambda v: loss(v).item()), diagonal)
        best[diagonal] = weights @ mapped(centre + nodes @ factor.T)
    return mean, best, spread


def curved_rows() -> Iterator[list[str]]:
    for curvature in (0.0, 0.1, 0.3):
        between, full, diagonal = [], [], []
        generator = torch.Generator().manual_seed(0)
        for _ in range(12):
            mean, best, spread = curved_means(curvature, 0.3, generator)
            between.append((best[True] - best[False]).norm().item() / spread)
            full.append((best[False] - mean).norm().item() / spread)
            diagonal.append((best[True] - mean).norm().item() / spread)
        yield [number(curvature), *map(summary, (between, full, diagonal))]


def sampled_rows() -> Iterator[list[str]]:
    """Moments of drawn samples, whitened by the posterior: 1 everywhere for exact samples, but for the noise of sampling."""
    generator = torch.Generator().manual_seed(0)
    problem = LinearGaussian.random(4, 2, 0.1, generator)
    transport, joint = random_transport(problem, generator), random_transport(problem, generator)
    models = [
        ("joint: K, b, q, full S, tau = 0.5", *train(problem, 0.5, joint, "joint", False, generator)),
        ("joint: K, b, q, diagonal S, tau = 0.5", *train(problem, 0.5, joint, "joint", True, generator)),
        ("joint: rotation and q, diagonal S, tau = 0.5", *train(problem, 0.5, transport, "rotation", True, generator)),
        ("joint: rotation and q, diagonal S, tau = inf", *train(problem, math.inf, transport, "rotation", True, generator)),
        ("frozen: full S, tau = inf", *train(problem, math.inf, transport, "adapter", False, generator)),
        ("frozen: diagonal S, tau = inf", *train(problem, math.inf, transport, "adapter", True, generator)),
    ]
    index = torch.arange(OBSERVATIONS)
    (d, k), posterior = problem.operator.T.shape, problem.posterior()
    truth = PhiloxNoise(0, "theory/truth", index)
    x = problem.mean + truth.normal((d,), 0).double() @ torch.linalg.cholesky(problem.covariance).T
    centred = (x - problem.mean) @ problem.operator.T + problem.noise_std * truth.normal((k,), 1).double()
    noise = PhiloxNoise(0, "theory/samples", *sample_rows(index, range(SAMPLES))).normal((d,), 0).double()
    whiten = torch.linalg.inv(torch.linalg.cholesky(posterior.covariance)).T
    for name, flow, q in models:
        z = (q.offset + centred @ q.gain.T)[:, None] + noise.view(OBSERVATIONS, SAMPLES, d) @ torch.linalg.cholesky(q.covariance).T
        samples = z @ flow.weight.T + flow.bias
        mean = samples.mean(1)
        error = (mean - posterior.offset - centred @ posterior.gain.T) @ whiten
        spread = ((samples - mean[:, None]) @ whiten).flatten(0, 1)
        eigenvalues = torch.linalg.eigvalsh(spread.T @ spread / (OBSERVATIONS * (SAMPLES - 1)))
        rms = error.square().mean().sqrt().item() * math.sqrt(SAMPLES)
        yield [name, f"{rms:.3f}", f"{eigenvalues[0]:.4f}", f"{eigenvalues[-1]:.4f}"]


def main() -> None:
    torch.set_num_threads(1)
    print("### 1. Adapter on a fixed transport, K = C^(1/2) Q, b = m: trained against closed form\n")
    header = ["d", "objective", "precision", "induced cov.", "diagonal S", "loss gap", "mean, full", "mean, diagonal", "between means"]
    print(table(header, adapter_rows()))
    print("### 2a. The same in closed form over tau (inf: L_obs + L_kl)\n")
    print(table(["tau", "mean error", "trace ratio", "KL", "W2", "W2, diagonal S"], fixed_rows()))
    print("### 2b. Joint training against its closed form\n")
    header = ["d", "rotation: loss", "off-diagonal P", "joint, full: loss", "joint, diagonal: loss", "K K^T", "k / rank of K"]
    print(table(header, joint_training_rows()))
    print("### 2c. The joint optimum over tau\n")
    header = ["tau", "loss below transport", "rank / k", "K K^T - C", "mean error", "trace ratio", "W2", "W2, noise tau added"]
    print(table(header, joint_rows()))
    print("### 2d. L_obs without gradient to the flow map: fixed point from a transport\n")
    print(table(["tau", "last change", "rank / k", "mean error", "trace ratio", "W2"], stop_gradient_rows()))
    print("### 3a. Hadamard gap in nats over random rotations\n")
    header = ["d", "tau", "min", "5 %", "median", "95 %", "max", "at P's axes", "KL - gap"]
    print(table(header, rotation_rows()))
    print("### 3b. One map for two inverse problems: mean gap in nats\n")
    print(table(["d", "smallest", "best rotation", "random rotation"], shared_rows()))
    print("### 4a. Means for a fixed map that is no transport, K = 0.8 C^(1/2) Q\n")
    print(table(["tau", "mean error", "between full and diagonal"], misfit_map_rows()))
    print("### 4b. Means for a fixed curved map, in units of the posterior's spread\n")
    print(table(["curvature", "between full and diagonal", "error, full", "error, diagonal"], curved_rows()))
    print("### 5. Moments of samples\n")
    print(table(["model", "mean", "smallest variance", "largest variance"], sampled_rows()))


if __name__ == "__main__":
    main()
