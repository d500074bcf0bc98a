"""A run from its plan to its results: what is missing is sampled and stored, metrics are computed on what was stored."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from vfmbench.config import RunConfig
from vfmbench.errors import Status, UserError
from vfmbench.interfaces import Sampler
from vfmbench.metrics.compute import compute_metrics, stale_metrics
from vfmbench.provenance import environment, now
from vfmbench.results.run_directory import RunStore
from vfmbench.results.shards import Shards, compile_tables
from vfmbench.running.cost import cost_metrics, costs_current, summarise
from vfmbench.running.evaluating import MetricNetworks, metric_networks, stored_evaluation
from vfmbench.running.plan import Plan, plan
from vfmbench.running.sampling import Progress, sample_images

LOG = logging.getLogger("vfmbench")


@dataclass(frozen=True)
class Run:
    """A run's results as they lie in its directory.

    Attributes:
        note: why it was skipped or failed, or what to mind about it.
        shards: what is stored of one that is done.
    """

    store: RunStore | None
    status: Status
    note: str = ""
    shards: Shards | None = None

    def results(self) -> RunStore:
        """Its directory. Raises UserError for a run that could not even be planned."""
        if self.store is None:
            raise UserError(f"This run is {self.status}: {self.note}")
        return self.store

    def samples(self) -> Shards:
        """Its samples. Raises UserError for a run that is not done."""
        if self.shards is None:
            raise UserError(f"This run is {self.status}: {self.note}")
        return self.shards

    def metrics(self) -> pd.DataFrame:
        """A row per metric: name, value, low, high, n, section, direction, feature_space, settings, reason, ..."""
        return pd.DataFrame([row.flat() for row in self.results().metrics()])

    def cost(self) -> dict[str, float]:
        """Means per sample: evaluations, seconds, network_seconds, overhead; peak_memory_bytes."""
        return self.results().provenance().get("cost", {})


def run(config: RunConfig, progress: Progress | None = None) -> Run:
    """Runs one configuration, or what is missing of it, and returns its results.

    Args:
        progress: called as progress(images done, images planned) after every batch.

    Raises UserError before any work starts; KeyboardInterrupt after everything drawn so far has been stored.
    """
    return execute(plan(config), progress)


def execute(plan: Plan, progress: Progress | None = None) -> Run:
    if not plan.verdict.supported:
        return skipped(plan)
    networks = metric_networks(plan.suite, plan.device)
    sampler, store = plan.sampler(), plan.store
    with store.writing(plan.identity, plan.fresh):
        shards = Shards(store.directory)
        todo = sorted(set(range(plan.identity.num_images)).difference(shards.positions))
        # Metrics of a part of the images, from before the run went on, are all stale.
        current = store.readable_metrics() if not todo and store.scored() == shards.evaluable() else []
        names = stale_metrics(plan.metrics, current, networks)
        if todo or names or not costs_current(current) or store.provenance().get("status") != Status.DONE:
            with logging_to(store.paths.log):
                return _work(plan, sampler, networks, todo, names, progress or (lambda done, total: None))
    return Run(store, Status.DONE, plan.verdict.note, shards)


def skipped(plan: Plan) -> Run:
    """The result of a plan whose method cannot run on its task."""
    return Run(plan.store, Status.SKIPPED, f"{plan.identity.method} skips {plan.task.name}: {plan.verdict.note}")


def new_session(plan: Plan, images: int, metrics: Sequence[str]) -> dict[str, Any]:
    """What provenance.json says of the work that a process begins: images to sample, and metrics to compute."""
    return {
        "started": now(),
        "images": images,
        "batch_size": plan.batch_size,
        "metrics": list(metrics),
        "compile": plan.execution.compile,
        **environment(plan.device),
    }


def _work(plan: Plan, sampler: Sampler, networks: MetricNetworks, todo: list[int], names: list[str], progress: Progress) -> Run:
    """Samples the images in `todo`, then computes the metrics `names`; a session in provenance.json says who did it."""
    store, identity, note = plan.store, plan.identity, plan.verdict.note
    store.write_config(identity)
    earlier = store.provenance()
    sessions = earlier.get("sessions", [])
    session = new_session(plan, len(todo), names)
    facts = {
        "hash": identity.hash,
        "status": Status.INTERRUPTED,
        "note": note,
        "weights_sha256": identity.weights_sha256,
        "sessions": [*sessions, session],
        **({"cost": earlier["cost"]} if "cost" in earlier else {}),
    }
    store.write_provenance(facts)
    LOG.info("run %s on %s: %d of %d images to sample", identity.hash, plan.device, len(todo), identity.num_images)
    if note:
        LOG.warning("%s", note)
    try:
        session["batch_size"] = sample_images(plan, sampler, todo, len(sessions), progress)
        if session["batch_size"] < plan.batch_size:
            smaller = f"out of memory with {plan.batch_size} samples in a batch; went on with {session['batch_size']}"
            note = _joined(note, smaller)
        shards = Shards(store.directory)
        records = compile_tables(shards, store, identity)
        note = facts["note"] = _joined(note, _diverged(records))
        evaluation, index = stored_evaluation(shards, plan.suite, plan.task, plan.dataset, identity, networks)
        results = compute_metrics(evaluation, {name: plan.metrics[name] for name in names})
        store.write_metrics([*results, *cost_metrics(records)], index)
    except Exception as error:
        session["ended"] = now()
        store.write_provenance({**facts, "status": Status.FAILED, "error": f"{type(error).__name__}: {error}"})
        LOG.exception("failed")
        raise
    finally:
        store.write_dataset(identity, plan.dataset)
    session["ended"] = now()
    store.write_provenance({**facts, "status": Status.DONE, "cost": summarise(records)})
    LOG.info("done")
    return Run(store, Status.DONE, note, shards)


def _joined(*notes: str) -> str:
    return "; ".join(filter(None, notes))


def _diverged(records: pd.DataFrame) -> str:
    """How many samples diverged, and how many images metrics therefore leave out; empty if none did."""
    broken = records[records["status"] == Status.DIVERGED]
    if broken.empty:
        return ""
    images = broken["index"].nunique()
    return (
        f"{len(broken)} of {len(records)} samples diverged; the {images} images that they belong to are left out of the metrics"
    )


@contextmanager
def logging_to(path: Path) -> Iterator[None]:
    """Appends the program's log to a file."""
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    LOG.setLevel(logging.INFO)
    LOG.addHandler(handler)
    try:
        yield
    finally:
        LOG.removeHandler(handler)
        handler.close()
