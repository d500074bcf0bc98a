"""What pictures of points read of a run: its stored samples, and its observations made again. No network is run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from vfmbench.config import RunIdentity
from vfmbench.domains import POINTS
from vfmbench.errors import UserError
from vfmbench.interfaces import Dataset, ExactPosterior, Suite, Task
from vfmbench.measurement import Measurement
from vfmbench.randomness import PhiloxNoise, sample_rows
from vfmbench.registry import load_suite
from vfmbench.results.shards import Shards
from vfmbench.results.stored import StoredRun
from vfmbench.running.evaluating import measured
from vfmbench.running.plan import Plan
from vfmbench.running.sampling import PRIOR_STREAM


@dataclass(frozen=True)
class Observations:
    """Some observations of a run.

    Attributes:
        truth: the points that were observed, float32 [B,d].
        measurement: B rows, on the CPU.
        posterior: of the B rows; None where the suite does not know it.
    """

    index: Tensor
    truth: Tensor
    measurement: Measurement
    posterior: ExactPosterior | None

    def exact_samples(self, count: int) -> Tensor | None:
        """Draws from the exact posteriors, float32 [B,count,d]: the same at every call."""
        if self.posterior is None:
            return None
        noise = PhiloxNoise(0, "picture of exact posteriors", *sample_rows(self.index, range(count)))
        return self.posterior.sample(count, noise).flatten(2)


@dataclass(frozen=True)
class PointRun:
    """A run on a suite of points; its samples are read when they are asked for."""

    identity: RunIdentity
    suite: Suite
    task: Task
    dataset: Dataset
    shards: Shards

    @classmethod
    def of_plan(cls, plan: Plan, shards: Shards) -> PointRun:
        """A run that this process has just finished."""
        return cls(plan.identity, plan.suite, plan.task, plan.dataset, shards)

    @classmethod
    def of_stored(cls, run: StoredRun) -> PointRun:
        """A run of which there is only the directory.

        Raises:
            UserError: its suite is not one of points or is not installed, makes other data by now, or the run has no samples.
        """
        directory = run.store.directory
        identity = run.identity
        suite = load_suite(identity.suite, {"data": identity.suite_options})
        if suite.domain is not POINTS:
            raise UserError(
                f"{directory} is a run on {suite.domain} (suite {suite.name}); this figure is for suites of {POINTS}."
            )
        dataset = suite.dataset(identity.split)
        if dataset.sha256 != identity.dataset_sha256:
            raise UserError(f"The points of the suite {suite.name} are not those that {directory} was made from.")
        shards = Shards(directory)
        if not shards.positions:
            raise UserError(f"{directory} holds no samples.")
        return cls(identity, suite, suite.task(identity.task, identity.task_options), dataset, shards)

    @property
    def index(self) -> Tensor:
        """Positions of the N points that were observed, in order, int64 [N]."""
        return torch.tensor(self.shards.positions)

    @cached_property
    def samples(self) -> Tensor:
        """All posterior samples, float32 [N,S,d]; NaN where they diverged."""
        return self.samples_of(self.shards.positions)

    def samples_of(self, positions: Sequence[int]) -> Tensor:
        """Those of the points at the given positions of the split, [n,S,d]; no others are read."""
        # A diverged sample is stored as ordinary numbers; its residual tells.
        done = torch.from_numpy(self.shards.read("residual", positions)).isfinite()
        return torch.from_numpy(self.shards.read("images", positions)).flatten(2).where(done[..., None], torch.nan)

    @cached_property
    def source(self) -> Tensor | None:
        """The noise that each sample was made from, [N,S,d], where it is stored."""
        return self._stored("source")

    @cached_property
    def prior(self) -> Tensor | None:
        """Draws from the method's own prior, [N,S,d], where it has one."""
        return self._stored("prior")

    def _stored(self, name: str) -> Tensor | None:
        return torch.from_numpy(self.shards.read(name)).flatten(2) if self.shards.has(name) else None

    def observations(self, positions: Sequence[int]) -> Observations:
        return observations(self.identity, self.suite, self.task, self.dataset, positions)

    def prior_draws(self, count: int) -> tuple[Tensor, Tensor] | None:
        """Noise z and the draw that the method's prior made from it, [n,d] each, n at most `count`; None without a prior.

        They go through all observations before a second draw of one is taken.
        """
        if self.prior is None:
            return None
        each = min(-(-count // len(self.index)), self.prior.shape[1])
        noise = PhiloxNoise(self.identity.seed, PRIOR_STREAM, *sample_rows(self.index, range(each)))
        z = noise.normal(self.suite.latent_shape, 0).unflatten(0, (-1, each)).flatten(2)
        return z.transpose(0, 1).flatten(0, 1)[:count], self.prior[:, :each].transpose(0, 1).flatten(0, 1)[:count]


def observations(identity: RunIdentity, suite: Suite, task: Task, dataset: Dataset, positions: Sequence[int]) -> Observations:
    """The run's observations at the given positions of its split."""
    truth, measurement = measured(task, dataset, suite.domain, identity, list(positions), torch.device("cpu"))
    posterior = None if suite.prior is None else suite.prior.posterior(measurement)
    return Observations(torch.tensor(list(positions)), truth.flatten(1), measurement, posterior)
