"""What a batch of samples costs: wall time, time inside networks, peak memory, network evaluations."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict

import pandas as pd
import torch

from vfmbench.metering import KINDS, Meter
from vfmbench.metrics.values import mean_value
from vfmbench.results.schema import COST, MetricResult, MetricRow, MetricSpec, Section

_COLUMNS = {
    "nfe": "network_forwards",
    **{kind: kind for kind in KINDS if kind != "network_forwards"},
    "seconds_per_sample": "seconds",
}


def _spec(name: str, position: int, occasional: bool = False) -> MetricSpec:
    return MetricSpec(name=name, section=Section.COST, position=position, needs_run=True, occasional=occasional)


# Only some methods and suites evaluate anything but the network.
COST_SPECS = {
    spec.name: spec
    for spec in (
        _spec("nfe", 10),
        _spec("network_vjps", 20),
        *(_spec(kind, 30, occasional=True) for kind in KINDS if not kind.startswith("network")),
        _spec("seconds_per_sample", 40),
        _spec("effective_samples", 50),
    )
}


@contextmanager
def measure_cost(meter: Meter, num_samples: int, device: torch.device) -> Iterator[dict[str, float]]:
    """Fills the yielded dict when the block ends: seconds and network_seconds per sample, evaluations per sample, peak bytes.

    Peak memory is the device's peak within the block on CUDA, the process's peak so far on a CPU.
    """
    meter.reset()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    start = time.perf_counter()
    cost: dict[str, float] = {}
    yield cost
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    seconds = time.perf_counter() - start
    cost["seconds"] = seconds / num_samples
    cost["network_seconds"] = meter.seconds() / num_samples
    cost.update(asdict(meter.per_sample(num_samples)))
    if device.type == "cuda":
        cost["peak_memory_bytes"] = float(torch.cuda.max_memory_allocated(device))
    else:
        cost["peak_memory_bytes"] = 1024.0 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _batches(records: pd.DataFrame) -> pd.DataFrame:
    """One row per batch that was drawn, without each process's first batch unless there is nothing else."""
    batches = records.dropna(subset=["seconds"]).drop_duplicates(["seconds", "network_seconds"])
    warm = batches[batches["first_batch"] == 0]
    return warm if len(warm) else batches


def costs_current(rows: Iterable[MetricRow]) -> bool:
    """Whether none of the rows is a cost of another version than `cost_metrics` gives."""
    return all(row.spec == COST_SPECS.get(row.name) for row in rows if row.metric == COST)


def cost_metrics(records: pd.DataFrame) -> list[MetricResult]:
    """`nfe` (network forwards), the other kinds of evaluations and `seconds_per_sample`, with intervals over batches."""
    settings = "n counts batches; a process's first batch is left out if there are others"
    batches = _batches(records)
    values = [mean_value(name, torch.tensor(batches[column].to_numpy()), settings) for name, column in _COLUMNS.items()]
    drawn = records.dropna(subset=["effective_samples"]).drop_duplicates("index")
    effective = torch.tensor(drawn["effective_samples"].to_numpy())
    samples = records["sample"].max() + 1
    if (effective != samples).any():
        settings = f"independent draws that an image's {samples} samples are worth, by the method's own estimate"
        values.append(mean_value("effective_samples", effective, settings))
    return [value.stored(COST, COST_SPECS[value.name]) for value in values]


def summarise(records: pd.DataFrame) -> dict[str, float]:
    """Means per sample over the same batches as `cost_metrics`; `overhead` is the share of time outside networks."""
    batches = _batches(records)
    summary = {kind: float(batches[kind].mean()) for kind in KINDS}
    summary["seconds"] = float(batches["seconds"].mean())
    summary["network_seconds"] = float(batches["network_seconds"].mean())
    summary["overhead"] = 1 - summary["network_seconds"] / summary["seconds"] if summary["seconds"] > 0 else 0.0
    summary["peak_memory_bytes"] = float(batches["peak_memory_bytes"].max())
    return summary
