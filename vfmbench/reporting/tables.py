"""Tables and JSON documents from stored results."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
import torch
from rich.table import Table

from vfmbench.interfaces import Status
from vfmbench.metrics.statistics import paired_difference
from vfmbench.running.runner import Run

COMPARISON_NOTE = (
    "Value and half-width of its 95 % interval. + better, - worse than the first row by a paired test on the same images "
    "(5 %, not corrected for the number of comparisons). Frechet and MMD values have no per-image terms to pair."
)

# Metrics of the comparison table in order, and whether more is better.
_COLUMNS = {
    "psnr": True,
    "psnr_mean": True,
    "ssim": True,
    "crps@pixel": False,
    "crps": False,
    "fid": False,
    "mmd": False,
    "mmd_paired": False,
    "classifier_agreement": True,
    "residual": None,
    "diversity@pixel": None,
    "nfe": None,
    "seconds_per_sample": None,
}


def run_document(run: Run) -> dict[str, Any]:
    """The JSON document of one run: status, directory, metrics with interval, n and feature space, cost."""
    if run.status != Status.DONE:
        return {"status": run.status, "reason": run.reason, "directory": None, "metrics": [], "cost": {}}
    return {
        "status": run.status,
        "directory": str(run.store.directory),
        "hash": run.store.config()["hash"],
        "identity": run.store.config()["identity"],
        "metrics": run.store.metrics(),
        "cost": run.cost(),
    }


def run_table(run: Run) -> Table:
    identity = run.store.config()["identity"]
    title = f"{identity['method']} on {identity['task']}, suite {identity['suite']}, {identity['split']} split"
    table = Table(title=f"{title}: {identity['num_images']} images x {identity['samples']} samples", title_justify="left")
    for heading in ("metric", "value", "95 % interval", "n", "settings"):
        # Settings end in an ellipsis where the line is full; metrics.json has them whole.
        text = heading in ("metric", "settings")
        table.add_column(heading, justify="left" if text else "right", no_wrap=True, overflow="ellipsis")
    for row in sorted(run.store.metrics(), key=_position):
        interval = "" if row["low"] is None else f"{_number(row['low'])} .. {_number(row['high'])}"
        note = row["settings"] if row["value"] is not None else f"{Status.MISSING}: {row['reason']}"
        table.add_row(row["name"], _number(row["value"]), interval, str(row["n"] or ""), note)
    return table


def cost_line(run: Run) -> str:
    """Cost of one sample in a sentence, with the harness's own share of the sampling time."""
    cost = run.cost()
    networks = cost["network_forwards"] + cost["network_vjps"] + cost["adapter_forwards"]
    text = (
        f"Per sample: {cost['seconds']:.2g} s, {cost['network_forwards']:g} network forwards, {cost['network_vjps']:g} network "
        f"backwards, {cost['adapter_forwards']:g} adapter forwards; peak memory {cost['peak_memory_bytes'] / 2**20:.0f} MiB"
    )
    return f"{text}; {cost['overhead']:.1%} of the sampling time outside the networks" if networks else text


def comparison_table(task: str, runs: Mapping[str, Run]) -> Table:
    """One row per method, with marks for paired differences to the first finished one."""
    done = {method: run for method, run in runs.items() if run.status == Status.DONE}
    values = {method: {row["name"]: row for row in run.store.metrics()} for method, run in done.items()}
    names = [name for column in _COLUMNS for name in _matching(column, values)]
    per_image = {method: pd.read_parquet(run.store.directory / "metrics_per_image.parquet") for method, run in done.items()}
    table = Table(title=f"{task}", title_justify="left")
    table.add_column("method")
    for name in names:
        table.add_column(name.replace("@", "@\n"), justify="right")
    reference = next(iter(done), None)
    for method, run in runs.items():
        if method not in done or reference is None:
            table.add_row(method, f"{run.status}: {run.reason}")
            continue
        cells = []
        for name in names:
            row = values[method].get(name)
            mark = _mark(name, per_image[reference], per_image[method]) if method != reference else ""
            cells.append(_cell(row) + mark)
        table.add_row(method, *cells)
    return table


def _position(row: Mapping[str, Any]) -> int:
    """Metrics of the comparison table come first, in its order; missing ones keep their place."""
    keys = list(_COLUMNS)
    for key in (row["name"], row["name"].split("@")[0]):
        if key in keys:
            return keys.index(key)
    return next((number for number, key in enumerate(keys) if row["name"].startswith(key.split("@")[0] + "_")), len(keys))


def _matching(column: str, values: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Names of stored metrics that belong to a column: itself, or itself in each feature space."""
    stored = dict.fromkeys(name for rows in values.values() for name in rows)
    return [name for name in stored if name == column or (name.split("@")[0] == column and not name.endswith("@pixel"))]


def _cell(row: Mapping[str, Any] | None) -> str:
    if row is None or row["value"] is None:
        return Status.MISSING.value
    if row["low"] is None or row["low"] == row["high"]:
        return _number(row["value"])
    return f"{_number(row['value'])} ±{(row['high'] - row['low']) / 2:.1g}"


def _mark(name: str, reference: pd.DataFrame, other: pd.DataFrame) -> str:
    better = _COLUMNS.get(name, _COLUMNS.get(name.split("@")[0]))
    if better is None or name not in reference or name not in other:
        return " "
    joined = reference[["index", name]].merge(other[["index", name]], on="index")
    ours, theirs = (torch.tensor(joined[f"{name}_{side}"].to_numpy()) for side in "yx")
    if not (ours.isfinite() & theirs.isfinite()).all():
        return " "
    result = paired_difference(ours, theirs)
    if result.p_value is None or result.p_value >= 0.05:
        return " "
    return "+" if (result.difference > 0) == better else "-"


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if abs(value) < 1e4 else f"{value:.3e}"
