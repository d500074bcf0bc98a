"""Weighted particles in the space of the source noise z ~ N(0, I): weights, temperatures, resampling, annealing."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import Self

import torch
from torch import Tensor

from vfmbench.randomness import PhiloxNoise

Evaluate = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(z [R,K,c,h,w], positions [R] of R measurements) -> what the map makes of z, [R,K,C,H,W], and log p(y|.), float64 [R,K]."""

Pick = Callable[[Tensor, Tensor, Tensor], "Particles"]
"""(positions [R], indices [R,K], log-likelihoods [R,N]) -> K of N draws for each of R measurements, as particles."""

_FIRST_SIZE, _ACCEPTANCE, _ADAPTATION = 0.3, 0.25, 2.0
# An observation that is impossible under the prior would take ever more; the effective size then tells.
_MOST_TEMPERATURES = 100


def effective_size(log_weights: Tensor) -> Tensor:
    """1 / sum w^2 of the normalised weights (Kish), [A,N] -> [A]; NaN where all weights are zero."""
    return 1 / log_weights.softmax(1).square().sum(1)


def effective_ancestors(log_weights: Tensor, ancestor: Tensor) -> Tensor:
    """1 / sum W^2 of the weights W that all particles with one ancestor have together; [A,N], ascending [A,N] -> [A]."""
    family = torch.nn.functional.pad((ancestor.diff(dim=1) != 0).cumsum(1), (1, 0))
    shares = torch.zeros_like(log_weights).scatter_add(1, family, log_weights.softmax(1))
    return 1 / shares.square().sum(1)


def temperature_step(log_likelihood: Tensor, remaining: Tensor, least: float) -> Tensor:
    """How far the inverse temperature can rise at once, [A,N] -> [A].

    The largest step up to `remaining` [A] that leaves N equal weights, times the likelihood to the power of the step, an
    effective size of at least `least`; found by bisection on its logarithm, down to 1e-8 of what remains.
    """
    low, high = 1e-8 * remaining, remaining
    for _ in range(30):
        middle = (low * high).sqrt()
        enough = effective_size(middle[:, None] * log_likelihood) >= least
        low, high = torch.where(enough, middle, low), torch.where(enough, high, middle)
    return torch.where(effective_size(remaining[:, None] * log_likelihood) >= least, remaining, low)


def index_at(log_weights: Tensor, position: Tensor) -> Tensor:
    """Where positions in [0, 1) fall when the normalised weights are laid end to end: [A,N], float64 [A,K] -> int64 [A,K].

    Of N weights none of zero is chosen, unless all are.
    """
    cumulative = log_weights.softmax(1).cumsum(1)
    chosen = torch.searchsorted(cumulative, position * cumulative[:, -1:], right=True)
    return chosen.clamp_max(log_weights.shape[1] - 1)


@dataclass(frozen=True)
class Particles:
    """K particles of each of A measurements.

    Attributes:
        source: z, [A,K,c,h,w].
        images: what the map makes of z, [A,K,C,H,W].
        log_likelihood: log p(y | image) but for a constant of each measurement, float64 [A,K].
        ancestor: which of the first particles each descends from, int64 [A,K].
    """

    source: Tensor
    images: Tensor
    log_likelihood: Tensor
    ancestor: Tensor

    def at(self, rows: Tensor, index: Tensor) -> Particles:
        """The particles `index` [R,K'] of the measurements at the positions `rows` [R]."""
        return Particles(*(part[rows[:, None], index] for part in self._parts()))

    def where(self, condition: Tensor, others: Particles) -> Particles:
        """These particles where the condition [A,K] holds, the others elsewhere."""
        pairs = zip(self._parts(), others._parts(), strict=True)
        return Particles(*(torch.where(_broadcast(condition, own), own, other) for own, other in pairs))

    @classmethod
    def cat(cls, groups: list[Particles]) -> Particles:
        """The measurements of all groups, which have equally many particles."""
        return cls(*(torch.cat(parts) for parts in zip(*(group._parts() for group in groups), strict=True)))

    def _parts(self) -> tuple[Tensor, ...]:
        return tuple(getattr(self, part.name) for part in fields(self))


class RowNumbers:
    """Random numbers for A measurements with S rows of noise each, in the order of the calls.

    A noise source computes the numbers of all of its rows, and only few measurements may need many. So the numbers come from
    new streams, of which each row names one by 48 bits of its own noise.

    Args:
        purpose: streams of different purposes are independent.
        key: two numbers of 24 bits, int64 [A,S,2].
    """

    def __init__(self, purpose: str, key: Tensor, draws: Iterator[int] | None = None):
        self._purpose, self._key = purpose, key
        self._draws = itertools.count() if draws is None else draws
        self._noise = PhiloxNoise("vfmbench.baselines.particles", purpose, *key.flatten(0, 1).unbind(1))

    def of(self, rows: Tensor) -> Self:
        """The numbers of some of the measurements."""
        return type(self)(self._purpose, self._key[rows], self._draws)

    def normal(self, count: int, shape: torch.Size) -> Tensor:
        """Standard normal, `count` for each measurement (a multiple of S): [A,count,*shape]."""
        return self._by_measurement(self._noise.normal((count // self._key.shape[1], *shape), next(self._draws)))

    def uniform(self, count: int) -> Tensor:
        """In [0, 1), float64 [A,count]."""
        return self._by_measurement(self._noise.uniform((count // self._key.shape[1],), next(self._draws))).double()

    def _by_measurement(self, numbers: Tensor) -> Tensor:
        return numbers.unflatten(0, self._key.shape[:2]).flatten(1, 2)


def systematic(count: int, numbers: RowNumbers) -> Tensor:
    """Equidistant positions with one random offset for each measurement, float64 [A,count]."""
    offset = numbers.uniform(count)[:, :1]
    return (torch.arange(count, device=offset.device) + offset) / count


@dataclass(frozen=True)
class Annealing:
    """Tempered sequential Monte Carlo on N(z; 0, I) p(y|z)^b, the inverse temperature b rising to 1.

    A rise is as large as leaves the weights an effective size of half the particles; after it they are resampled and moved.

    Attributes:
        evaluate: map and likelihood.
        particles: least number of particles of a measurement; rounded up to a multiple of its samples.
        moves: preconditioned Crank-Nicolson moves at each temperature.
        position: of every sample among the last weights, uniform in [0, 1), float64 [B,S].
        key: see `RowNumbers`, [B,S,2].
    """

    evaluate: Evaluate
    particles: int
    moves: int
    position: Tensor
    key: Tensor

    def run(self, rows: Tensor, log_likelihood: Tensor, pick: Pick) -> tuple[Tensor, Particles, Tensor]:
        """Samples of some measurements.

        Args:
            rows: their positions in the batch, int64 [R].
            log_likelihood: of N draws from N(0, I), float64 [R,N].
            pick: which makes particles of draws.

        Returns:
            The positions in another order, [R,S] samples for them, and for each the effective number of its ancestors among the
            N draws, [R].
        """
        samples = self.position.shape[1]
        count = math.ceil(self.particles / samples) * samples
        numbers = RowNumbers("annealing", self.key[rows])
        least = min(count, log_likelihood.shape[1]) / 2
        temperature = temperature_step(log_likelihood, torch.ones_like(log_likelihood[:, 0]), least)
        first = index_at(temperature[:, None] * log_likelihood, systematic(count, numbers))
        particles = pick(rows, first, log_likelihood)
        size = torch.full_like(temperature, _FIRST_SIZE)
        finished = []
        for remaining in range(_MOST_TEMPERATURES, 0, -1):
            particles, size = self._move(particles, temperature, size, rows, numbers)
            rest = 1 - temperature
            step = temperature_step(particles.log_likelihood, rest, count / 2) if remaining > 1 else rest
            log_weights = step[:, None] * particles.log_likelihood
            last = step == rest
            done, on = last.nonzero().flatten(), (~last).nonzero().flatten()
            drawn = particles.at(done, index_at(log_weights[done], self.position[rows[done]]))
            finished.append((rows[done], drawn, effective_ancestors(log_weights[done], particles.ancestor[done]), size[done]))
            numbers = numbers.of(on)
            particles = particles.at(on, index_at(log_weights[on], systematic(count, numbers)))
            temperature, size, rows = (temperature + step)[on], size[on], rows[on]
            if not len(rows):
                break
        owners, groups, effective, sizes = zip(*finished, strict=True)
        rows, ancestors, size, drawn = torch.cat(owners), torch.cat(effective), torch.cat(sizes), Particles.cat(list(groups))
        numbers = RowNumbers("last moves", self.key[rows])
        return rows, self._move(drawn, torch.ones_like(ancestors), size, rows, numbers)[0], ancestors

    def _move(
        self, particles: Particles, temperature: Tensor, size: Tensor, rows: Tensor, numbers: RowNumbers
    ) -> tuple[Particles, Tensor]:
        """The particles [A,K] of the measurements at `rows` after all moves, and the sizes [A] of the next proposals.

        A proposal is sqrt(1 - s^2) z + s n, n ~ N(0, I): reversible with respect to N(0, I), so that the likelihood alone
        decides on it. The size s follows the share of proposals that a measurement's particles accept.
        """
        count, shape = particles.ancestor.shape[1], particles.source.shape[2:]
        for _ in range(self.moves):
            scale = _broadcast(size[:, None], particles.source).to(particles.source)
            source = (1 - scale.square()).sqrt() * particles.source + scale * numbers.normal(count, shape)
            images, log_likelihood = self.evaluate(source, rows)
            gain = temperature[:, None] * (log_likelihood - particles.log_likelihood)
            accepted = numbers.uniform(count).log() < gain
            particles = Particles(source, images, log_likelihood, particles.ancestor).where(accepted, particles)
            size = (size * (_ADAPTATION * (accepted.double().mean(1) - _ACCEPTANCE)).exp()).clamp_max(1)
        return particles, size


def _broadcast(values: Tensor, like: Tensor) -> Tensor:
    """[A,K] -> [A,K,1,...], to stand beside a tensor [A,K,...]."""
    return values.reshape(*values.shape, *[1] * (like.ndim - 2))
