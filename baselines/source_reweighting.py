"""Posterior samples under a flow's own prior, by reweighting and moving the noise that a deterministic map starts from.

A deterministic map f takes z ~ N(0, I) to an image. Where z has the density pi(z) ∝ N(z; 0, I) p(y | f(z)), f(z) is a sample of the
posterior under the prior that the flow models: nothing is approximated, and what is left is Monte-Carlo error, which is reported.

A pool of prior draws, pushed through the map once, serves all measurements: each weights it by its own likelihood and draws its
samples from it (importance resampling). A measurement that leaves too little of the pool gets particles of its own, drawn from the
pool at a higher temperature that falls to 1 (tempered sequential Monte Carlo: Del Moral, Doucet and Jasra 2006, "Sequential Monte
Carlo samplers"), and that move by preconditioned Crank-Nicolson proposals (Cotter, Roberts, Stuart and White 2013, "MCMC methods
for functions", section 4.1).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from vfmbench.baselines.guidance import Solver, SolverOptions, time_grid
from vfmbench.baselines.particles import Annealing, Particles, RowNumbers, choose, effective_size, systematic, temperature_step
from vfmbench.baselines.pool_likelihood import pool_likelihood
from vfmbench.interfaces import Measurement, NoiseSource, Samples, Suite, Task
from vfmbench.randomness import PhiloxNoise

# Rows and numbers in one call of the network.
_ROWS_AT_ONCE, _NUMBERS_AT_ONCE = 4096, 2**20


@dataclass(frozen=True)
class Pool:
    """Prior draws that the B measurements of a batch share, for the L classes among them.

    Attributes:
        source: z, [N,c,h,w].
        images: what the map makes of z in each class, [L,N,C,H,W].
        which: position of each measurement's class among the L, int64 [B].
    """

    source: Tensor
    images: Tensor
    which: Tensor

    def particles(self, rows: Tensor, index: Tensor, log_likelihood: Tensor) -> Particles:
        """The draws `index` [R,K] for the measurements at `rows` [R], whose likelihoods of the whole pool are given, [R,N]."""
        images = self.images[self.which[rows][:, None], index]
        return Particles(self.source[index], images, log_likelihood.gather(1, index), index)


class SourceReweighting(Solver):
    """Samples the posterior of the source noise z of a deterministic map f; exact in the limit of many particles.

    Where the weighted pool has an effective size E of at least a quarter of `particles`, a measurement's S samples are drawn
    from it independently, each by its own noise. Otherwise `particles` of them (rounded up to a multiple of S) are annealed.

    Monte-Carlo error: the mean of a function over the S samples varies, over seeds and pools, with about 1 / S_eff of the
    function's posterior variance, 1 / S_eff = 1 / S + 1 / E; `Samples.effective_samples` is S_eff. After annealing E is the
    effective number of the pool's draws that the particles descend from, which holds for what moves do not forget, such as the
    weights of modes that they cannot cross between, and is too small for the rest (Lee and Whiteley 2018, "Variance estimation in
    the particle filter": their estimate for a function that is constant among descendants and independent between them). It
    knows nothing of modes that the pool has missed, nor of the bias, of order 1 / E. The pool is the same for all measurements,
    so the part 1 / E of their errors is correlated: it averages out over `pool_seed`, not over similar measurements.

    Samples do not depend on the batch where f does not: one that f rounds differently in another batch may be accepted instead of
    rejected in a move. Samples of an annealed measurement depend on how many are drawn together.

    A class costs `pool` evaluations of f, once; an annealed measurement `particles` x `moves` for each temperature.
    """

    class Options(SolverOptions):
        guidance_scale: float = Field(1.0, ge=0, description="classifier-free guidance of the ODE; 1: the prior as modelled")
        map: Literal["ode", "one_step"] = Field(
            "ode", description="f: the ODE of the velocity, or one step of the average velocity (for flow maps)"
        )
        ode_steps: int = Field(16, ge=1, description="midpoint steps of equal length, two evaluations each")
        pool: int = Field(2**16, ge=1, description="prior draws, the same for all measurements")
        pool_seed: int = Field(0, description="which prior draws")
        particles: int = Field(512, ge=2, description="of a measurement for which the pool is worth less than a quarter of them")
        moves: int = Field(8, ge=0, description="Crank-Nicolson moves at each of its temperatures")

    options: Options

    def __init__(self, suite: Suite, options: Options, device: torch.device):
        super().__init__(suite, options, device)
        largest = max(math.prod(suite.latent_shape), math.prod(suite.image_shape))
        self._rows_at_once = max(1, min(_ROWS_AT_ONCE, _NUMBERS_AT_ONCE // largest))
        self._device = device
        self._pool_source = torch.empty(0)
        self._pool_images: dict[int, Tensor] = {}

    @classmethod
    def supports(cls, task: Task, suite: Suite) -> tuple[bool, str]:
        noise = getattr(task.options, "noise", "gaussian")
        if noise != "gaussian":
            return False, f"{task.name} has {noise} noise, and the method weights by a Gaussian likelihood"
        if suite.modality == "images":
            return True, (
                "a reference for small images and networks: every class costs method.pool evaluations of the whole map, every "
                "annealed measurement method.particles x method.moves at each temperature; mind the effective samples"
            )
        return True, ""

    @classmethod
    def preset(cls, name: str, method: str, task: Task, suite: Suite) -> Mapping[str, Any]:
        """Its defaults under every name: its options trade accuracy for cost, and there is nothing to tune."""
        return {}

    def sample(self, measurement: Measurement, num_samples: int, noise: NoiseSource) -> Samples:
        """`effective_samples` is 0, and the samples are not numbers, where no draw of the pool has a likelihood."""
        measurement = self.conditioned(measurement)
        batch = len(measurement)
        pool, likelihood = self._pool(measurement.label), pool_likelihood(measurement)
        uniform = noise.uniform((3,), 0).unflatten(0, (batch, num_samples))
        position, key = uniform[..., 0].double(), (uniform[..., 1:] * 2**24).long()

        def evaluate(source: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
            label = measurement.label[rows].repeat_interleave(source.shape[1])
            images = self.transport(source.flatten(0, 1), label).unflatten(0, source.shape[:2])
            return images, likelihood.of_particles(images, rows)

        def anneal(rows: Tensor, log_likelihood: Tensor) -> tuple[Particles, Tensor]:
            """[R,S] particles and the effective number of their ancestors [R]."""
            count = math.ceil(self.options.particles / num_samples) * num_samples
            numbers = RowNumbers("annealing", key[rows])
            temperature = temperature_step(log_likelihood, torch.ones_like(log_likelihood[:, 0]), count / 2)
            first = choose(temperature[:, None] * log_likelihood, systematic(count, numbers))
            start = pool.particles(rows, first, log_likelihood)
            ...
