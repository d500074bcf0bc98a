"""Holds the theory of the linear-Gaussian case (spec/vfm.md section 9) against optimisation and sampling; prints markdown.

    python benchmarks/theory.py > report.md

One long script because its sections are those of the page that it prints, in that order.

Every number is over random problems of fixed seeds: see `LinearGaussian.random`. "Trained" is BFGS on the closed-form
objective, which sees none of the formulas that it is held against.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
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
    minimise,
    objective,
    optimal_adapter,
    random_orthogonal,
    regressed_flow,
    symmetric_root,
    transport_flow,
    wasserstein,
)
from torch import Tensor

from vfmbench.randomness import PhiloxNoise, sample_rows

SHAPES = ((2, 1), (4, 2), (8, 4))
NOISE = (0.1, 0.5)
PROBLEMS = 5
TRAINED_TAUS = (0.1, 0.5, 2.0)
TAUS = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
JOINT_TAUS = (0.3, 2.0)
STARTS = {2: 3, 4: 2, 8: 1}
ROTATIONS = 1000
CURVED = 10
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


def problems(
    count: int = PROBLEMS, shapes: Sequence[tuple[int, int]] = SHAPES
) -> Iterator[tuple[LinearGaussian, torch.Generator]]:
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
                (_, full), (_, diagonal) = (fit(problem, tau, flow, "adapter", kind, generator) for kind in (False, True))
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
                        mean_distance(problem, diagonal.through(flow), full.through(flow)),
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
        for (problem, generator), tau in itertools.product(problems(1, [(d, k)]), JOINT_TAUS):
            fixed, joint = random_transport(problem, generator), joint_flow(problem, tau)
            best_fixed = objective(problem, fixed, optimal_adapter(problem, fixed, tau, False), tau).item()
            best_joint = objective(problem, joint, optimal_adapter(problem, joint, tau, False), tau).item()
            for _ in range(STARTS[d]):
                flow, q = fit(problem, tau, random_transport(problem, generator), "rotation", True, generator)
                precision = adapter_precision(problem, flow.weight, tau)
                excess["rotation"].append(abs(objective(problem, flow, q, tau).item() - best_fixed))
                excess["off"].append(relative(torch.diag(precision.diagonal()), precision))
                for kind in ("full", "diagonal"):
                    weight, bias = torch.randn(d + 1, d, generator=generator, dtype=torch.float64).split([d, 1])
                    flow, q = fit(problem, tau, AffineFlow(weight, bias[0]), "joint", kind == "diagonal", generator)
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
            noise = tau**2 * torch.eye(len(problem.mean), dtype=torch.float64)
            noisy = AffineGaussian(samples.gain, samples.offset, samples.covariance + noise)
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
    for tau in TAUS[1:]:
        columns: list[list[float]] = [[], [], [], [], []]
        for problem, generator in problems(1):
            flow = random_transport(problem, generator)
            for _ in range(300):
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


def no_transport_rows() -> Iterator[list[str]]:
    """A fixed map that is no transport, K = 0.8 C^(1/2) Q: mean errors of both trained adapters."""
    for tau in (0.1, 1.0, math.inf):
        errors: dict[bool, list[float]] = {False: [], True: []}
        between = []
        for problem, generator in problems(1):
            flow = random_transport(problem, generator)
            flow = AffineFlow(0.8 * flow.weight, flow.bias)
            pair = [fit(problem, tau, flow, "adapter", kind, generator)[1].through(flow) for kind in errors]
            for kind, samples in zip(errors, pair, strict=True):
                errors[kind].append(mean_error(problem, samples))
            between.append(mean_distance(problem, *pair))
        yield [number(tau), *map(summary, errors.values()), number(max(between))]


def curved_means(curvature: float, noise_std: float, seed: int) -> tuple[Tensor, dict[bool, Tensor], float]:
    """E[x|y], E_q[f(z)] of the best full (False) and diagonal (True) Gaussian q, and the posterior's spread, for one y.

    f(z) = K (z_1, z_2 + curvature (z_1^2 - 1)), fixed, and x = f(z) for z ~ N(0, I), so that f is an exact transport; y is the
    sum of the coordinates of x, with noise. The objective is L_obs + L_kl, its expectations by Gauss-Hermite quadrature (exact
    for these polynomials); E[x|y] is summed over a grid of z.
    """
    generator = torch.Generator().manual_seed(seed)
    weight = random_transport(LinearGaussian.random(2, 1, noise_std, generator), generator).weight
    nodes, weights = (torch.from_numpy(array) for array in np.polynomial.hermite_e.hermegauss(6))
    nodes, weights = torch.cartesian_prod(nodes, nodes), torch.outer(weights, weights).flatten() / weights.sum() ** 2

    def mapped(z: Tensor) -> Tensor:
        return torch.stack([z[..., 0], z[..., 1] + curvature * (z[..., 0] ** 2 - 1)], dim=-1) @ weight.T

    truth, noise = torch.randn(2, 2, generator=generator, dtype=torch.float64)
    y = mapped(truth).sum() + noise_std * noise[0]

    axis = torch.linspace(-7, 7, 701, dtype=torch.float64)
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

        starts = torch.randn(3, 6, generator=generator, dtype=torch.float64) * 0.5
        starts[:, 2:] = torch.tensor([0.5, 0.05, 0.05, 0.5], dtype=torch.float64)
        centre, factor = gaussian(min((minimise(loss, start) for start in starts), key=lambda v: loss(v).item()), diagonal)
        best[diagonal] = weights @ mapped(centre + nodes @ factor.T)
    return mean, best, spread


def curved_rows() -> Iterator[list[str]]:
    for curvature in (0.0, 0.1, 0.3):
        between, full, diagonal = [], [], []
        for seed in range(CURVED):
            mean, best, spread = curved_means(curvature, 0.3, seed)
            between.append((best[True] - best[False]).norm().item() / spread)
            full.append((best[False] - mean).norm().item() / spread)
            diagonal.append((best[True] - mean).norm().item() / spread)
        yield [number(curvature), *map(summary, (full, diagonal, between))]


def sampled_rows() -> Iterator[list[str]]:
    """Moments of drawn samples, whitened by the posterior, and what the closed forms say they are."""
    generator = torch.Generator().manual_seed(0)
    problem = LinearGaussian.random(4, 2, 0.5, generator)
    transport, start = random_transport(problem, generator), random_transport(problem, generator)
    models = [
        ("K, b and q; full S; tau = 0.5", *fit(problem, 0.5, start, "joint", False, generator)),
        ("K, b and q; diagonal S; tau = 0.5", *fit(problem, 0.5, start, "joint", True, generator)),
        ("rotation and q; diagonal S; tau = 0.5", *fit(problem, 0.5, transport, "rotation", True, generator)),
        ("rotation and q; diagonal S; tau = inf", *fit(problem, math.inf, transport, "rotation", True, generator)),
        ("q; full S; tau = inf", *fit(problem, math.inf, transport, "adapter", False, generator)),
        ("q; diagonal S; tau = inf", *fit(problem, math.inf, transport, "adapter", True, generator)),
    ]
    index = torch.arange(OBSERVATIONS)
    (d, k), posterior = problem.operator.T.shape, problem.posterior()
    truth = PhiloxNoise(0, "theory/truth", index)
    x = problem.mean + truth.normal((d,), 0).double() @ torch.linalg.cholesky(problem.covariance).T
    centred = (x - problem.mean) @ problem.operator.T + problem.noise_std * truth.normal((k,), 1).double()
    noise = PhiloxNoise(0, "theory/samples", *sample_rows(index, range(SAMPLES))).normal((d,), 0).double()
    noise = noise.view(OBSERVATIONS, SAMPLES, d)
    whiten = torch.linalg.inv(torch.linalg.cholesky(posterior.covariance))
    for name, flow, q in models:
        z = (q.offset + centred @ q.gain.T)[:, None] + noise @ torch.linalg.cholesky(q.covariance).T
        samples = z @ flow.weight.T + flow.bias
        mean = samples.mean(1)
        error = (mean - posterior.offset - centred @ posterior.gain.T) @ whiten.T
        deviation = ((samples - mean[:, None]) @ whiten.T).flatten(0, 1)
        drawn = torch.linalg.eigvalsh(deviation.T @ deviation / (OBSERVATIONS * (SAMPLES - 1)))

        expected = q.through(flow)
        covariance = whiten @ expected.covariance @ whiten.T
        bias = whiten @ (expected.gain - posterior.gain) @ torch.linalg.cholesky(problem.observation_covariance())
        predicted = (bias.square().sum() + covariance.trace() / SAMPLES) / d
        known = torch.linalg.eigvalsh(covariance)
        means = [error.square().mean().sqrt(), predicted.sqrt()]
        variances = [value.clamp_min(0) for value in (drawn[0], known[0], drawn[-1], known[-1])]
        yield [name, *(f"{value:.4f}" for value in (*means, *variances))]


SECTIONS: tuple[tuple[str, str, Callable[[], Iterator[list[str]]]], ...] = (
    (
        "1. Trained adapters of a fixed transport: differences from the closed forms, maxima",
        "d, objective, precision P, induced cov., diagonal S, loss gap, mean of full q, mean of diagonal q, between means",
        adapter_rows,
    ),
    ("2a. Optimal adapter of a fixed transport", "tau, mean error, trace ratio, KL, W2, W2 of diagonal S", fixed_rows),
    (
        "2b. Joint training: differences from the closed forms, maxima",
        "d, loss (rotation), off-diagonal P, loss (joint full), loss (joint diagonal), K K^T, k / rank of K",
        joint_training_rows,
    ),
    (
        "2c. Joint optimum",
        "tau, loss below transport, rank / k, K K^T - C, mean error, trace ratio, W2, W2 with noise tau",
        joint_rows,
    ),
    (
        "2d. Joint training without the gradient of L_obs to the flow map",
        "tau, last change, rank / k, mean error, trace ratio, W2",
        stop_gradient_rows,
    ),
    ("3a. Hadamard gap over random rotations", "d, tau, min, 5 %, median, 95 %, max, at P's axes, KL - gap", rotation_rows),
    ("3b. One map for two inverse problems: mean gap", "d, least, best rotation, random rotation", shared_rows),
    (
        "4a. Fixed map that is no transport: trained adapters",
        "tau, mean error (full), mean error (diagonal), between means",
        no_transport_rows,
    ),
    ("4b. Fixed curved map", "curvature, mean error (full), mean error (diagonal), between means", curved_rows),
    (
        "5. Moments of samples against E[x|y] and Cov[x|y]",
        "trained, mean, predicted, least variance, predicted, largest variance, predicted",
        sampled_rows,
    ),
)


LEGEND = f"""\
Random problems of seeds 0 to {PROBLEMS - 1} (seed 0 alone where something is trained, and in 2d); d, k = {SHAPES};
sigma = {NOISE}. "a (b)" is the median a and the largest b. tau = inf is the objective L_obs + L_kl.

* Mean error: RMS distance of the samples' mean from E[x|y], over the RMS distance of E[x|y] from m. In section 1, and between
  means, RMS distances in units of x.
* Trace ratio: trace of the samples' covariance given y, over that of the posterior's.
* KL, W2: samples against the posterior, averaged over y; W2 in units of the posterior's spread: 1 is a point at E[x|y].
* Losses and gaps in nats. Other differences relative, in the Frobenius norm.
* 1: tau = {TRAINED_TAUS}. 2b: tau = {JOINT_TAUS}, starts by d: {STARTS}.
* 2c: "loss below transport" is by how much the joint optimum is below that of K K^T = C; "W2 with noise tau" is of samples
  with N(0, tau^2 I) added.
* 2d: flow map and adapter set to their optimum in turn, 300 times, from a transport.
* 3a: {ROTATIONS} rotations of each problem. "KL - gap": KL of the diagonal q's samples from the full q's, at tau = inf from
  the true posterior, minus the gap.
* 4b: d = 2, k = 1, sigma = 0.3, L_obs + L_kl, {CURVED} problems with one y each; means of f(z) in units of the posterior's
  spread.
* 5: d = 4, k = 2, sigma = 0.5, {OBSERVATIONS} y with {SAMPLES} samples each, whitened by the true posterior: RMS error of
  the mean ({SAMPLES**-0.5:.4f} if exact) and extreme variances (1 if exact), beside what the closed forms predict.
"""


def main() -> None:
    torch.set_num_threads(1)
    print(LEGEND)
    for title, header, rows in SECTIONS:
        print(f"### {title}\n\n{table(header.split(', '), rows())}")


if __name__ == "__main__":
    main()
