"""Posterior samples under a flow's own prior, by reweighting and moving the noise that a deterministic map starts from.

A deterministic map f takes z ~ N(0, I) to an image. For z of the density pi(z) ∝ N(z; 0, I) p(y | f(z)), f(z) is a sample of
the posterior under the prior that the flow models: nothing is approximated, and the Monte-Carlo error that is left is reported.

A pool of prior draws, pushed through the map once, serves all measurements: each weights it by its own likelihood and draws its
samples from it (importance resampling). Where too little of the pool is left, a measurement gets particles of its own, drawn
from the pool at a higher temperature that falls to 1 (tempered sequential Monte Carlo: Del Moral, Doucet and Jasra 2006,
"Sequential Monte Carlo samplers"), and that move by preconditioned Crank-Nicolson proposals (Cotter, Roberts, Stuart and White
2013, "MCMC methods for functions", section 4.1).
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
from vfmbench.baselines.particles import Annealing, Particles, effective_size, index_at
from vfmbench.baselines.pool_likelihood import pool_likelihood
from vfmbench.domains import IMAGES
from vfmbench.errors import UserError
from vfmbench.interfaces import Backbone, Suite, Task
from vfmbench.measurement import Measurement, NoiseSource, Samples
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

    Monte-Carlo error: over seeds and pools, the mean of a function over the S samples varies with about 1 / S_eff of the
    function's posterior variance, 1 / S_eff = 1 / S + 1 / E; `Samples.effective_samples` is S_eff. After annealing E is the
    effective number of the pool's draws that the particles descend from. That holds for what moves do not forget, such as the
    weights of modes that they cannot cross between, and is too small for the rest (it is the estimate of Lee and Whiteley 2018,
    "Variance estimation in the particle filter", for a function that all descendants of a draw share). S_eff knows nothing of
    modes that the pool has missed, nor of the bias, of order 1 / E. All measurements share the pool, so the part 1 / E of their
    errors is correlated: it averages out over `pool_seed`, not over similar measurements.

    Samples do not depend on the batch, except where f rounds differently in another batch and a move is accepted instead of
    rejected. Samples of an annealed measurement depend on how many are drawn together.

    A class costs `pool` evaluations of f, once; an annealed measurement `particles` x `moves` at each temperature.
    """

    class Options(SolverOptions):
        guidance_scale: float = Field(1.0, ge=0, description="classifier-free guidance of the ODE; 1: the prior as modelled")
        map: Literal["ode", "one_step"] = Field(
            "ode", description="f: the ODE of the velocity, or one step of the average velocity (for flow maps)"
        )
        ode_steps: int = Field(16, ge=1, description="midpoint steps of equal length, two evaluations each")
        pool: int = Field(2**16, ge=1, description="prior draws, the same for all measurements")
        pool_seed: int = Field(0, description="which prior draws")
        particles: int = Field(512, ge=2, description="of a measurement that the pool is worth less than a quarter of")
        moves: int = Field(16, ge=0, description="Crank-Nicolson moves at each of its temperatures")

    options: Options

    def __init__(self, suite: Suite, options: Options, backbone: Backbone):
        super().__init__(suite, options, backbone)
        largest = max(math.prod(suite.latent_shape), math.prod(suite.image_shape))
        self._rows_at_once = max(1, min(_ROWS_AT_ONCE, _NUMBERS_AT_ONCE // largest))
        self._device = device = backbone.device
        if options.map == "one_step":
            try:
                self._flow_map(
                    torch.zeros(1, *suite.latent_shape, device=device), torch.zeros(1, dtype=torch.int64, device=device)
                )
            except ValueError as error:
                raise UserError(
                    f"method.map: the suite {suite.name} has no flow map for one_step ({error}); use ode."
                ) from error
            self.meter.reset()
        self._pool_source = torch.empty(0)
        self._pool_images: dict[int, Tensor] = {}

    @classmethod
    def supports(cls, task: Task, suite: Suite) -> tuple[bool, str]:
        if task.noise != "gaussian":
            return False, f"{task.name} has {task.noise} noise, and the method weights by a Gaussian likelihood"
        if suite.domain is IMAGES:
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
        """Where no draw of the pool has a likelihood, `effective_samples` is 0 and the samples are not numbers."""
        measurement = self.conditioned(measurement)
        pool, likelihood = self._pool(measurement.label), pool_likelihood(measurement)
        uniform = noise.uniform((3,), 0).unflatten(0, (len(measurement), num_samples))
        position, key = uniform[..., 0].double(), (uniform[..., 1:] * 2**24).long()

        def evaluate(source: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
            label = measurement.label[rows].repeat_interleave(source.shape[1])
            images = self.transport(source.flatten(0, 1), label).unflatten(0, source.shape[:2])
            return images, likelihood.of_particles(images, rows)

        annealing = Annealing(evaluate, self.options.particles, self.options.moves, position, key)
        images = pool.images.new_empty(*position.shape, *pool.images.shape[2:])
        source = pool.source.new_empty(*position.shape, *pool.source.shape[1:])
        size = position.new_empty(len(position))
        for rows, log_likelihood in likelihood.of_pool(pool.images, pool.which):
            size[rows] = effective_size(log_likelihood)
            # Written so that a measurement without any likelihood counts as served.
            poor = size[rows] < self.options.particles / 4
            served, drawn = rows[~poor], index_at(log_likelihood[~poor], position[rows[~poor]])
            samples = pool.particles(served, drawn, log_likelihood[~poor])
            images[served], source[served] = samples.images, samples.source
            if poor.any():
                annealed, samples, ancestors = annealing.run(rows[poor], log_likelihood[poor], pool.particles)
                images[annealed], source[annealed], size[annealed] = samples.images, samples.source, ancestors
        effective = torch.nan_to_num(1 / (1 / num_samples + 1 / size), nan=0.0)
        images[effective == 0] = math.nan
        return Samples(images, source=source, effective_samples=effective.float())

    def sample_prior(self, noise: NoiseSource) -> Tensor:
        """What f makes of N(0, I), of the null class where there are classes: [rows,C,H,W]."""
        z = noise.normal(self.flow.latent_shape, 0)
        return self.transport(z, torch.full((len(z),), self.flow.null_label or 0, dtype=torch.int64, device=z.device))

    def transport(self, z: Tensor, label: Tensor) -> Tensor:
        """f(z): source noise [R,c,h,w] -> decoded images [R,C,H,W], in blocks that bound the memory."""
        blocks = zip(z.split(self._rows_at_once), label.split(self._rows_at_once), strict=True)
        return torch.cat([self.codec.decode(self._flow_map(*block)) for block in blocks])

    def _flow_map(self, z: Tensor, label: Tensor) -> Tensor:
        if self.options.map == "one_step":
            return (z - self.flow.average_velocity(z, 1, 0, label)).to(z)
        x = z
        for t, t_next in time_grid(self.options.ode_steps):
            # On the flows of Gaussians and their mixtures the midpoint rule errs far less than Heun's at the same cost.
            middle = (t + t_next) / 2
            at_middle = self.estimate(x, t, label).euler(middle)
            x = x + (t_next - t) * self.flow.velocity(at_middle, middle, label, self.guidance_scale)
        return x.to(z)

    def _pool(self, label: Tensor) -> Pool:
        """The pool for measurements of these classes [B]; what it lacks so far is computed."""
        index = torch.arange(self.options.pool, device=self._device)
        if not len(self._pool_source):
            shape = self.flow.latent_shape
            blocks = index.split(max(1, _NUMBERS_AT_ONCE // math.prod(shape)))
            streams = (PhiloxNoise(self.options.pool_seed, "source_reweighting/pool", block) for block in blocks)
            self._pool_source = torch.cat([stream.normal(shape, 0) for stream in streams])
        classes, which = label.unique(return_inverse=True)
        for k in classes.tolist():
            if k not in self._pool_images:
                self._pool_images[k] = self.transport(self._pool_source, torch.full_like(index, k))
        return Pool(self._pool_source, torch.stack([self._pool_images[k] for k in classes.tolist()]), which)
