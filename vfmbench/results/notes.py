"""What must be read beside a table of several runs: what is missing, what a number is not, and which runs saw other data."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence

from vfmbench.errors import Status
from vfmbench.results.stored import StoredRun

# As metrics' settings state it, up to the next of their parts.
_WARNING = re.compile(r"WARNING: [^;]+")


def missing_notes(runs: Mapping[str, StoredRun], present: Collection[str]) -> list[str]:
    """Why no run has a value of a metric, which then has no row; reasons in common are told once."""
    reasons: dict[str, list[str]] = {}
    for run in runs.values():
        for name, row in run.metrics.items():
            if name not in present and name not in reasons.setdefault(row.reason or "", []):
                reasons[row.reason or ""].append(name)
    return [f"{Status.MISSING}: {', '.join(names)}: {reason}" for reason, names in reasons.items()]


def warning_notes(runs: Mapping[str, StoredRun], shown: Sequence[str]) -> list[str]:
    """The warnings in the settings of the metrics `shown`, with headings where only some of the runs that have it are meant."""
    metrics: dict[tuple[str, str], list[str]] = {}
    for name in shown:
        rows = {heading: run.metrics[name] for heading, run in runs.items() if name in run.metrics}
        headings: dict[str, list[str]] = {}
        for heading, row in rows.items():
            for warning in _WARNING.findall(row.settings):
                headings.setdefault(warning, []).append(heading)
        for warning, warned in headings.items():
            whose = "" if len(warned) == len(rows) else f" ({', '.join(warned)})"
            metrics.setdefault((warning, whose), []).append(name)
    return [f"{', '.join(names)}{whose}: {warning}" for (warning, whose), names in metrics.items()]


def measurement_notes(runs: Mapping[str, StoredRun]) -> list[str]:
    """A warning for each run that did not see the first one's measurements byte for byte."""
    hashes = {heading: run.store.measurements() for heading, run in runs.items()}
    notes = []
    for heading, own in list(hashes.items())[1:]:
        first = next(iter(hashes))
        differing = sum(own[index] != text for index, text in hashes[first].items() if index in own)
        if differing:
            notes.append(f"{heading} and {first} have different measurements of {differing} images (another device or version)")
    return notes
