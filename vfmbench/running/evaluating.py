"""From a run's stored samples to what its metrics are computed from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import pandas as pd
import torch

from vfmbench.interfaces import Dataset, MissingError, Status, Suite
from vfmbench.metrics.evaluation import EvaluationSet
from vfmbench.running.store import RunStore

Network = TypeVar("Network")
# Feature space or perceptual distance by name, or the reason why it is missing.
MetricNetworks = Mapping[str, Any]


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
    """The suite's feature spaces and perceptual distances by name, ready on `device`, or why one is missing."""
    spaces = load_or_reason(suite.feature_space_names, lambda name: suite.feature_space(name, device))
    return {**spaces, **load_or_reason(suite.perceptual_names, lambda name: suite.perceptual(name, device))}


def stored_evaluation(
    store: RunStore, suite: Suite, dataset: Dataset, planned: int, records: pd.DataFrame, networks: MetricNetworks
) -> tuple[EvaluationSet, list[int]]:
    """The stored samples of all images whose every sample is done, beside the true images; and the images' positions.

    Args:
        planned: number of images that the run was asked for.
        records: as `RunStore.compile_tables` returns them.
    """
    broken = set(records.loc[records["status"] != Status.DONE, "index"])
    shards = store.shards()
    # A resumed run may store its batches in another order; metrics must not depend on it.
    kept = sorted({index for shard in shards for index in shard.index.tolist()} - broken)
    if not kept:
        raise RuntimeError("Every image has a diverged sample; there is nothing to evaluate.")
    rows = {index: row for row, index in enumerate(kept)}
    samples, residual, likelihood = (
        part.new_empty(len(kept), *part.shape[1:]) for part in (shards[0].images, shards[0].residual, shards[0].log_likelihood)
    )
    # Each shard is let go of once its rows are in place, so that the samples are in memory about once.
    while shards:
        shard = shards.pop()
        inside = torch.tensor([index in rows for index in shard.index.tolist()])
        places = torch.tensor([rows[index] for index in shard.index[inside].tolist()], dtype=torch.long)
        samples[places] = shard.images[inside]
        residual[places] = shard.residual[inside]
        likelihood[places] = shard.log_likelihood[inside]
    truth, label = dataset.load(kept)
    evaluation = EvaluationSet(
        truth=truth,
        samples=samples,
        label=label if suite.num_classes else None,
        residual=residual,
        log_likelihood=likelihood,
        feature_spaces={name: networks[name] for name in suite.feature_space_names},
        perceptual={name: networks[name] for name in suite.perceptual_names},
        planned=planned,
    )
    return evaluation, kept
