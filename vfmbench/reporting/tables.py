"""Tables and JSON documents of one run, of a folder of images, and of a tuning; `writers` has those of several runs."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from importlib.resources import files
from typing import Any

from rich.table import Table
from rich.text import Text

from vfmbench.errors import Status
from vfmbench.results.schema import MetricRow
from vfmbench.running.bench import Cost
from vfmbench.running.runner import Run
from vfmbench.running.scoring import FolderScores
from vfmbench.running.tuning import Choice

_SETTINGS_WIDTH = 90

PUBLISHED_SECONDS_SOURCE = (
    "Paper: seconds per image of Variational Flow Maps (arXiv 2603.07276) on one GH200, 250 guidance steps; VFM's include its "
    "projection for boxes, random pixels and Gaussian blur. A range is over its five tasks."
)


def comparison_note(preset: str) -> str:
    """What to mind about a comparison under a preset of the solvers' options."""
    origin = {
        "paper": "the VFM paper's, not tuned for this suite (--preset tuned)",
        "original": "their authors', not tuned for this suite (--preset tuned)",
        "tuned": "those that `vfmbench tune` chose on the validation split",
    }.get(preset, f"those in {preset}")
    return (
        "Where the suite has classes, every sampler is given the true one, unless method.label=null. The guidance solvers' "
        f"options, where not given on the command line, are {origin}."
    )


def run_document(run: Run) -> dict[str, Any]:
    """The JSON document of one run: status, directory, metrics with interval, n and feature space, cost."""
    if run.status != Status.DONE:
        return {"status": run.status, "note": run.note, "directory": None, "metrics": [], "cost": {}}
    return {
        "status": run.status,
        "note": run.note,
        "directory": str(run.results().directory),
        "hash": run.results().config().hash,
        "identity": run.results().config().identity.model_dump(mode="json"),
        "metrics": [row.model_dump(mode="json") for row in run.results().metrics()],
        "cost": run.cost(),
    }


def run_table(run: Run) -> Table:
    identity = run.results().config().identity
    title = f"{identity.method} on {identity.task}, suite {identity.suite}, {identity.split} split"
    return _metrics_table(f"{title}: {identity.num_images} images x {identity.samples} samples", run.results().metrics())


def folder_document(scores: FolderScores) -> dict[str, Any]:
    """The JSON document of a folder's metrics, which are as in `run_document`."""
    return {
        "samples": str(scores.samples),
        "reference": str(scores.reference),
        "num_images": scores.num_images,
        "samples_of_an_image": scores.num_samples,
        "metrics": [row.model_dump(mode="json") for row in scores.rows],
    }


def folder_table(scores: FolderScores) -> Table:
    counts = f"{scores.num_images} images x {scores.num_samples} samples"
    return _metrics_table(f"{scores.samples} against {scores.reference}: {counts}", scores.rows)


def missing_reasons(rows: Iterable[MetricRow]) -> list[str]:
    """A line for each reason why metrics are missing, to be printed below their table."""
    names: dict[str, list[str]] = {}
    for row in rows:
        if row.value is None:
            names.setdefault(row.reason or "", []).append(row.name)
    return [f"{Status.MISSING}: {', '.join(metrics)}: {reason}" for reason, metrics in names.items()]


def _metrics_table(title: str, rows: Iterable[MetricRow]) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("metric", no_wrap=True)
    for heading in ("value", "95 % interval", "n"):
        table.add_column(heading, justify="right", no_wrap=True)
    # The only column that gives way, to a narrow terminal and everywhere to its length; metrics.json has the settings whole.
    table.add_column("settings", max_width=_SETTINGS_WIDTH)
    # What is missing, and why, stands below the table: see `missing_reasons`.
    for row in sorted((row for row in rows if row.has_row), key=lambda row: row.place):
        interval = "" if row.low is None else f"{_number(row.low)} .. {_number(row.high)}"
        settings = Text(_warnings_first(row.settings), no_wrap=True, overflow="ellipsis")
        table.add_row(row.name, _number(row.value), interval, str(row.n), settings)
    return table


def tuning_table(chosen: Mapping[tuple[str, str], Choice]) -> Table:
    """What `vfmbench tune` chose, a row for each (method, task)."""
    table = Table(title="Chosen on the validation split", title_justify="left")
    for heading in ("task", "method", "options", "objective", "at the edge of the grid"):
        table.add_column(heading)
    for (method, task), choice in chosen.items():
        scores = [trial["objective"] for trial in choice.evidence["trials"] if trial["objective"] is not None]
        options = "none: no setting worked" if choice.entry.options is None else str(choice.entry.options)
        edge = ", ".join(choice.entry.at_the_edge_of_the_grid)
        table.add_row(task, method, options, f"{min(scores):.4g}" if scores else "", edge)
    return table


def published_seconds(suite: str, task: str) -> dict[str, str]:
    """The paper's seconds per image by method; the range over its tasks where `task` is none of them.

    Empty for other suites than the paper's.
    """
    lines = files(__package__).joinpath("published_seconds.csv").read_text().splitlines()
    rows = csv.DictReader(line for line in lines if not line.startswith("#"))
    by_method: dict[str, dict[str, str]] = {}
    for row in (row for row in rows if row["suite"] == suite):
        by_method.setdefault(row["method"], {})[row["task"]] = row["seconds"]
    return {method: seconds.get(task) or _range(seconds.values()) for method, seconds in by_method.items()}


def _range(numbers: Iterable[str]) -> str:
    ordered = sorted(numbers, key=float)
    return ordered[0] if float(ordered[0]) == float(ordered[-1]) else f"{ordered[0]} .. {ordered[-1]}"


def bench_table(title: str, costs: Mapping[str, Cost], rate: float, published: Mapping[str, str] | None = None) -> Table:
    """Costs of methods beside each other.

    Args:
        rate: the FLOP/s that the share of the peak refers to.
        published: the paper's seconds by method, from `published_seconds`; None: no such column.
    """
    published = published or {}
    untrained = [method for method, cost in costs.items() if cost.random_weights]
    precision = "/".join(sorted({cost.precision for cost in costs.values()}))
    caption = (
        "Seconds per sample. NFE: forwards / backwards; codec: decoder forwards / backwards, encoder forwards / backwards. "
        f"GFLOP of one sample; peak: share of {rate / 1e9:.4g} GFLOP/s, this device's {precision} matrix product. "
        "Memory of tensors, without weights."
    )
    if published:
        caption += f" {PUBLISHED_SECONDS_SOURCE}"
    if untrained:
        title += f" (timing only, random weights: {', '.join(untrained)})"
    table = Table(title=title, title_justify="left", caption=caption)
    table.add_column("method")
    headings = (
        *(["paper, s"] if published else []),
        "batch 1",
        "best batch",
        "at",
        "in networks",
        "NFE",
        "codec",
        "GFLOP",
        "of peak",
        "MiB, batch 1",
        "MiB a sample",
    )
    for heading in headings:
        table.add_column(heading, justify="right")
    for method, cost in costs.items():
        counts = cost.evaluations
        table.add_row(
            method,
            *([published.get(method, "")] if published else []),
            f"{cost.latency:.3g}",
            f"{cost.seconds:.3g}",
            str(cost.batch),
            f"{cost.network_share:.0%}",
            f"{counts.network_forwards:g} / {counts.network_vjps:g}",
            f"{counts.decoder_forwards:g} / {counts.decoder_vjps:g}, {counts.encoder_forwards:g} / {counts.encoder_vjps:g}",
            f"{cost.flops / 1e9:.3g}",
            f"{cost.peak_share:.1%}",
            f"{cost.memory / 2**20:.3g}",
            "" if cost.memory_per_sample is None else f"{cost.memory_per_sample / 2**20:.3g}",
        )
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


def _warnings_first(settings: str) -> str:
    """The end of long settings is cut off, and a warning must not be."""
    return "; ".join(sorted(settings.split("; "), key=lambda part: not part.startswith("WARNING")))


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if abs(value) < 1e4 else f"{value:.3e}"
