"""Metrics without sampling: of a run's stored samples, or of any folder of images against a folder of true images."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vfmbench.config import RunIdentity
from vfmbench.domains import IMAGES
from vfmbench.errors import Status, UserError
from vfmbench.interfaces import Dataset, Suite
from vfmbench.metrics.compute import chosen_metrics, compute_metrics, default_metrics
from vfmbench.metrics.evaluation import EvaluationSet
from vfmbench.models.features import external_space
from vfmbench.models.perceptual import NETS, perceptual_distance
from vfmbench.provenance import environment, now
from vfmbench.registry import feature_spaces, load_suite
from vfmbench.results.run_directory import RunStore
from vfmbench.results.schema import MetricRow
from vfmbench.results.shards import Shards, compile_tables
from vfmbench.running.cost import cost_metrics, summarise
from vfmbench.running.evaluating import load_or_reason, metric_networks, stored_evaluation
from vfmbench.running.image_folders import read_pairs
from vfmbench.running.runner import Run, logging_to
from vfmbench.weights.external import ExternalPaths

LOG = logging.getLogger("vfmbench")


@dataclass(frozen=True)
class FolderScores:
    """Metrics of the images in `samples`; `rows` are as in a run's metrics.json."""

    samples: Path
    reference: Path
    num_images: int
    num_samples: int
    rows: list[MetricRow]


def score_run(
    directory: Path, metrics: Sequence[str] | None, options: Mapping[str, Mapping[str, Any]], device: torch.device
) -> Run:
    """Computes metrics of the samples stored in a run directory and stores them there, beside or in place of earlier ones.

    Neither the method nor the task is needed, only the suite.

    Args:
        metrics: names; None for all.
        options: by section: `data` (where the images lie, which a run does not store) and `weights`.

    Raises:
        MissingError: the suite's data is not there.
        UserError: not a run directory, no samples in it, other data than the run's, an unknown metric.
    """
    store = RunStore(directory)
    if not store.paths.exists:
        raise UserError(
            f"{directory} is no run directory; to score a folder of images, add --reference FOLDER with the true ones."
        )
    identity = store.config().identity
    suite, dataset = _suite_of(identity, options)
    chosen = chosen_metrics(suite.defaults.metrics or default_metrics(suite.domain) if metrics is None else metrics)
    networks = metric_networks(suite, device)
    with store.writing(identity, fresh=False), logging_to(store.paths.log):
        shards = Shards(store.directory)
        stored = len(shards.positions)
        if not stored:
            raise UserError(f"{directory} holds no samples yet.")
        session = {"started": now(), "images": 0, "metrics": list(chosen), **environment(device)}
        LOG.info("metrics of %d stored images: %s", stored, ", ".join(chosen))
        records = compile_tables(shards, store, identity)
        # The task is only needed for what it measured; one from a user's file is not known any more.
        task = suite.task(identity.task, identity.task_options) if suite.prior is not None else None
        evaluation, index = stored_evaluation(shards, suite, task, dataset, identity, networks)
        store.write_metrics([*compute_metrics(evaluation, chosen), *cost_metrics(records)], index)
        facts = store.provenance()
        sessions = [*facts.get("sessions", []), {**session, "ended": now()}]
        store.write_provenance({**facts, "sessions": sessions, "cost": summarise(records)})
        LOG.info("done")
    note = "" if stored == identity.num_images else f"only {stored} of {identity.num_images} images are stored"
    return Run(store, Status.DONE, note, shards)


def score_folders(
    samples: Path,
    reference: Path,
    features: Sequence[str] | None,
    metrics: Sequence[str] | None,
    paths: ExternalPaths,
    device: torch.device,
) -> FolderScores:
    """Computes metrics of a folder of images against a folder of true images; see `read_pairs`. Writes nothing.

    Args:
        features: names of feature spaces, which then must be there; None for all, with the metrics in absent ones missing.
        metrics: names; None for all but those that need what only a run stores.

    Raises:
        MissingError: a feature space that was asked for has no weights.
        UserError: an unknown name, or folders that cannot be paired.
    """
    chosen = chosen_metrics(default_metrics(IMAGES, without_run=True) if metrics is None else metrics)
    if features is None:
        spaces = load_or_reason(feature_spaces.names(), lambda name: external_space(name, paths, device))
    else:
        spaces = {name: external_space(name, paths, device) for name in features}
    distances = load_or_reason(NETS, lambda name: perceptual_distance(name, paths, device))
    pairs = read_pairs(samples, reference)
    evaluation = EvaluationSet(
        truth=pairs.truth, samples=pairs.samples, feature_spaces=spaces, perceptual=distances, planned=len(pairs.truth)
    )
    rows = [result.row for result in compute_metrics(evaluation, chosen)]
    return FolderScores(samples, reference, len(evaluation), evaluation.num_samples, rows)


def _suite_of(identity: RunIdentity, options: Mapping[str, Mapping[str, Any]]) -> tuple[Suite, Dataset]:
    data = {**identity.suite_options, **options.get("data", {})}
    suite = load_suite(identity.suite, {**options, "data": data})
    dataset = suite.dataset(identity.split)
    if dataset.sha256 != identity.dataset_sha256:
        raise UserError(
            f"The {identity.split} split of {identity.suite} is not the one that the run was made from: its hash is "
            f"{dataset.sha256[:12]}..., the run's {identity.dataset_sha256[:12]}...."
        )
    return suite, dataset
