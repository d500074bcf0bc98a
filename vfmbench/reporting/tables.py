"""Tables and JSON documents from stored results."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from rich.table import Table
from rich.text import Text

from vfmbench.interfaces import Status, UserError
from vfmbench.metrics.statistics import PairedDifference, paired_difference, paired_set_difference
from vfmbench.running.runner import Run

COMPARISON_NOTE = (
    "Value and half-width of its 95 % interval. + better, - worse than the first method by a paired test on the same images "
    "(5 % level, not corrected for the number of comparisons). Where the suite has classes, every sampler is given the "
    "true one. Options not given on the command line are each method's published defaults, not tuned for this suite."
)

# Metrics of the comparison table in order, and whether more is better.
_COLUMNS = {
    "psnr": True,
    "psnr_mean": True,
    "ssim": True,
    "crps": False,
    "fid": False,
    "mmd_paired": None,
    "kid_paired": False,
    "classifier_agreement": True,
    "residual": None,
    "diversity@pixel": None,
    "nfe": None,
    "seconds_per_sample": None,
}


def run_document(run: Run) -> dict[str, Any]:
    """The JSON document of one run: status, directory, metrics with interval, n and feature space, cost."""
    if run.status != Status.DONE:
        return {"status": run.status, "note": run.note, "directory": None, "metrics": [], "cost": {}}
    return {
        "status": run.status,
        "note": run.note,
        "directory": str(run.results().directory),
        "hash": run.results().config()["hash"],
        "identity": run.results().config()["identity"],
        "metrics": run.results().metrics(),
        "cost": run.cost(),
    }


def run_table(run: Run) -> Table:
    identity = run.results().config()["identity"]
    title = f"{identity['method']} on {identity['task']}, suite {identity['suite']}, {identity['split']} split"
    table = Table(title=f"{title}: {identity['num_images']} images x {identity['samples']} samples", title_justify="left")
    table.add_column("metric", no_wrap=True)
    for heading in ("value", "95 % interval", "n"):
        table.add_column(heading, justify="right", no_wrap=True)
    # The only column that gives way to a narrow terminal; metrics.json has the settings whole.
    table.add_column("settings")
    for row in sorted(run.results().metrics(), key=_position):
        interval = "" if row["low"] is None else f"{_number(row['low'])} .. {_number(row['high'])}"
        note = row["settings"] if row["value"] is not None else f"{Status.MISSING}: {row['reason']}"
        table.add_row(
            row["name"], _number(row["value"]), interval, str(row["n"] or ""), Text(note, no_wrap=True, overflow="ellipsis")
        )
    return table


def tuning_table(chosen: Mapping[tuple[str, str], Mapping[str, Any]]) -> Table:
    """What `vfmbench tune` chose, a row for each (method, task)."""
    table = Table(title="Chosen on the validation split", title_justify="left")
    for heading in ("task", "method", "options", "objective", "at the edge of the grid"):
        table.add_column(heading)
    for (method, task), entry in chosen.items():
        scores = [trial["objective"] for trial in entry["trials"] if trial["objective"] is not None]
        options = "none: no setting worked" if entry["options"] is None else str(entry["options"])
        edge = ", ".join(entry["at_the_edge_of_the_grid"])
        table.add_row(task, method, options, f"{min(scores):.4g}" if scores else "", edge)
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
    """One column per method and one row per metric, with marks for paired differences to the first finished method."""
    done = {method: _Stored(run) for method, run in runs.items() if run.status == Status.DONE}
    reference = next(iter(done.values()), None)
    table = Table(title=task, title_justify="left")
    table.add_column("metric")
    for method in runs:
        table.add_column(method, justify="right")
    for name in _names(done.values()):
        cells = []
        for method in runs:
            stored = done.get(method)
            if stored is None or reference is None:
                cells.append(runs[method].status.value)
            else:
                cells.append(f"{_cell(stored.values.get(name), stored.planned)} {_mark(name, reference, stored)}")
        table.add_row(name, *cells)
    table.add_row("run", *(done[method].hash if method in done else "" for method in runs))
    for method, run in runs.items():
        if run.note:
            table.caption = f"{table.caption or ''}{method}: {run.note}. "
    return table


def _position(row: Mapping[str, Any]) -> int:
    """Metrics of the comparison table come first, in its order."""
    return next((i for i, key in enumerate(_COLUMNS) if key in (row["name"], row["name"].split("@")[0])), len(_COLUMNS))


class _Stored:
    """What a comparison reads of one run."""

    def __init__(self, run: Run):
        config = run.results().config()
        self.hash, self.planned = config["hash"], config["identity"]["num_images"]
        self.values = {row["name"]: row for row in run.results().metrics()}
        self.per_image = run.results().read_table("metrics_per_image.parquet")
        self.replicates = run.results().read_table("metrics_replicates.parquet")


def _names(runs: Iterable[_Stored]) -> list[str]:
    """Stored metrics that belong to the comparison, in its order."""
    stored = dict.fromkeys(name for run in runs for name in run.values)
    return [name for key in _COLUMNS for name in stored if key in (name, name.split("@")[0])]


def _cell(row: Mapping[str, Any] | None, planned: int) -> str:
    """Value, half-width of its interval, and the number of images where some are left out."""
    if row is None or row["value"] is None:
        return Status.MISSING.value
    text = _number(row["value"])
    if row["low"] is not None and row["low"] != row["high"]:
        text += f" ±{(row['high'] - row['low']) / 2:.1g}"
    if row["metric"] != "cost" and row["n"] < planned:
        text += f" ({row['n']}/{planned})"
    return text


def _mark(name: str, reference: _Stored, other: _Stored) -> str:
    """ "+" or "-" if `other` is better or worse than `reference` at the 5 % level, else a blank."""
    better = _COLUMNS.get(name, _COLUMNS.get(name.split("@")[0]))
    if better is None or other is reference:
        return " "
    try:
        difference = _difference(name, reference, other)
    except UserError:
        return " "
    if difference is None or difference.p_value is None or difference.p_value >= 0.05:
        return " "
    return "+" if (difference.difference > 0) == better else "-"


def _difference(name: str, reference: _Stored, other: _Stored) -> PairedDifference | None:
    """other - reference, or None where the metric cannot be paired."""
    if name in reference.per_image and name in other.per_image:
        joined = reference.per_image[["index", name]].merge(other.per_image[["index", name]], on="index")
        return paired_difference(*(torch.tensor(joined[f"{name}_{side}"].to_numpy()) for side in "yx"))
    if name in reference.replicates and name in other.replicates:
        first, second = other.values[name], reference.values[name]
        if first["n"] == second["n"]:
            ours, theirs = (torch.tensor(run.replicates[name].to_numpy()) for run in (other, reference))
            return paired_set_difference(first["value"], second["value"], ours, theirs, first["n"])
    return None


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if abs(value) < 1e4 else f"{value:.3e}"
