"""From a run's stored samples to what its metrics are computed from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any, TypeVar

import torch
from torch import Tensor

from vfmbench.config import RunIdentity
from vfmbench.domains import IMAGES, Domain
from vfmbench.errors import MissingError, UserError
from vfmbench.interfaces import Dataset, Suite, Task
from vfmbench.measurement import Measurement
from vfmbench.metrics.evaluation import EvaluationSet
from vfmbench.metrics.reading import Rows
from vfmbench.models.features import external_space
from vfmbench.randomness import split_seed
from vfmbench.registry import feature_spaces
from vfmbench.results.shards import Shards
from vfmbench.weights.external import ExternalPaths

Network = TypeVar("Network")
# Feature space or perceptual distance by name, or the reason why it is missing.
MetricNetworks = Mapping[str, Any]

# What metrics read of a shard, a row an image.
_SMALL = ("label", "residual", "log_likelihood", "prior")


def load_or_reason(names: Iterable[str], load: Callable[[str], Network]) -> dict[str, Network | str]:
    """`load(name)` for each name; where something is missing, the reason, so that its metrics are reported as missing.

    Other errors are raised: a file that the user names and that is no use must end a run before it starts.
    """
    loaded: dict[str, Network | str] = {}
    for name in names:
        try:
            loaded[name] = load(name)
        except MissingError as error:
            loaded[name] = str(error)
    return loaded


def metric_networks(suite: Suite, device: torch.device) -> MetricNetworks:
    """The suite's feature spaces and perceptual distances by name, ready on `device`, or why one is missing; and for images the
    spaces of plugins.
    """
    spaces = load_or_reason(suite.feature_space_names, lambda name: suite.feature_space(name, device))
    if suite.domain is IMAGES:
        added = [name for name in feature_spaces.of_plugins() if name not in spaces]
        spaces |= load_or_reason(added, lambda name: external_space(name, ExternalPaths(), device))
    return {**spaces, **load_or_reason(suite.perceptual_names, lambda name: suite.perceptual(name, device))}


def measured(
    task: Task, dataset: Dataset, domain: Domain, identity: RunIdentity, positions: list[int], device: torch.device
) -> tuple[Tensor, Measurement]:
    """True images [B,C,H,W] in [-1,1] and the run's measurement of them, the same at every call, on `device`."""
    images, label = dataset.load(positions)
    index = torch.tensor(positions, device=device)
    truth = domain.restore(images.to(device))
    return truth, task.measure(truth, label.to(device), index, split_seed(identity.split, identity.seed))


class _StoredRows:
    """What `read` gives for positions of a split, read when it is asked for; implements `vfmbench.metrics.reading.Rows`."""

    device = torch.device("cpu")

    def __init__(self, read: Callable[[list[int]], Tensor], positions: list[int], like: Tensor):
        """Args: like: any number of such rows, for their shape and type."""
        self._read, self._positions = read, positions
        self.shape, self.dtype = torch.Size((len(positions), *like.shape[1:])), like.dtype

    def __len__(self) -> int:
        return len(self._positions)

    def __getitem__(self, rows: slice | Tensor, /) -> Tensor:
        wanted = self._positions[rows] if isinstance(rows, slice) else [self._positions[row] for row in rows.tolist()]
        return self._read(wanted)


def stored_evaluation(
    shards: Shards, suite: Suite, task: Task | None, dataset: Dataset, identity: RunIdentity, networks: MetricNetworks
) -> tuple[EvaluationSet, list[int]]:
    """The stored samples of all images whose every sample is done, beside the true images; and the images' positions.

    Args:
        task: the run's; None where it is not known, so that metrics of exact posteriors are missing.
    """
    # In this order, although a resumed run may store its batches in another one: metrics must not depend on it.
    kept = shards.evaluable()
    if not kept:
        raise RuntimeError("Every image has a diverged sample; there is nothing to evaluate.")
    small = {name: torch.from_numpy(shards.read(name, kept)) for name in _SMALL if shards.has(name)}
    none = torch.from_numpy(shards.read("images", []))
    truth: Rows = _StoredRows(lambda positions: dataset.load(positions)[0], kept, none[:, 0])
    samples: Rows = _StoredRows(lambda positions: torch.from_numpy(shards.read("images", positions)), kept, none)
    if suite.domain is not IMAGES:
        # Metrics against exact posteriors need all points, and points are small.
        truth, samples = truth[:], samples[:]
    exact = None
    if suite.prior is not None and task is not None:
        # Of another task than the suite's own the posterior may not be known, which is no reason to lose the other metrics.
        with suppress(UserError):
            exact = suite.prior.posterior(measured(task, dataset, suite.domain, identity, kept, torch.device("cpu"))[1])
    evaluation = EvaluationSet(
        domain=suite.domain,
        truth=truth,
        samples=samples,
        label=small["label"] if suite.num_classes else None,
        residual=small["residual"],
        log_likelihood=small["log_likelihood"],
        exact=exact,
        prior=small.get("prior"),
        feature_spaces={name: network for name, network in networks.items() if name not in suite.perceptual_names},
        perceptual={name: networks[name] for name in suite.perceptual_names},
        planned=identity.num_images,
    )
    return evaluation, kept
