"""Which of several runs on the same images are best, and which differ from a reference: paired tests, corrected."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from vfmbench.errors import Status, UserError
from vfmbench.results.notes import measurement_notes, missing_notes, warning_notes
from vfmbench.results.schema import COST, Direction, MetricRow
from vfmbench.results.statistics import (
    FEWEST_IMAGES,
    Interval,
    Values,
    beyond,
    holm,
    mean_interval,
    paired_p_values,
    paired_set_difference,
)
from vfmbench.results.stored import StoredRun, by_image_set, find_runs, labels

LEVEL = 0.05


@dataclass(frozen=True)
class Entry:
    """One column: a run, or why there is none."""

    heading: str
    status: Status
    note: str = ""
    run: StoredRun | None = None

    @classmethod
    def of(cls, heading: str, run: StoredRun) -> Entry:
        return cls(heading, run.status, run.note, run if run.status == Status.DONE else None)

    @property
    def hash(self) -> str:
        return self.run.hash if self.run else ""


@dataclass
class Difference:
    """A run's score minus another's on the same images; of a metric with a target, of the distances from it.

    Attributes:
        p_value: two-sided, None where there is no test.
        corrected: Holm's, within the row of the table.
        per_image: each image's share in it, [n]; None for a statistic of the whole set.
        sums: of a metric with a target, the sums of both runs' distances, [n]: the runs also have equal distances if these
            have the mean zero, one run being as far above the target as the other below.
        bounds: 95 % interval where there is no `per_image`.
    """

    value: float
    p_value: float | None = None
    corrected: float | None = None
    per_image: Values | None = None
    sums: Values | None = None
    bounds: Interval = (None, None)

    def interval(self) -> Interval:
        """95 % interval."""
        return self.bounds if self.per_image is None else mean_interval(self.per_image)

    @property
    def significant(self) -> bool:
        return self.corrected is not None and self.corrected < LEVEL


@dataclass(frozen=True)
class Cell:
    """One run's number of one metric. It stays a number until a writer prints it.

    Attributes:
        row: the metric's row of metrics.json; None if the run has no such metric.
        status: of a cell without a number, why there is none; else `done`.
        counted: how many images the number is of, of how many planned, where some are left out.
        best: the best of its row, or not significantly worse than the best.
        sign: "+" or "-" if significantly better or worse than the reference, else "".
        difference: to the reference; None where they were not compared.
    """

    row: MetricRow | None
    status: Status
    counted: tuple[int, int] | None = None
    best: bool = False
    sign: str = ""
    difference: Difference | None = None


@dataclass(frozen=True)
class ComparisonRow:
    name: str
    direction: Direction | None
    cells: list[Cell]

    @property
    def marked(self) -> bool:
        """Whether a cell bears a mark."""
        return any(cell.best or cell.sign for cell in self.cells)


@dataclass(frozen=True)
class Comparison:
    """A table: one column for each entry, one row for each metric. `reference` is the heading that signs refer to."""

    title: str
    entries: list[Entry]
    rows: list[ComparisonRow]
    reference: str | None
    notes: list[str]


def tables_of(
    folders: Sequence[Path], tasks: Sequence[str] | None, methods: Sequence[str] | None, reference: str | None
) -> list[Comparison]:
    """A comparison for each image set among the stored runs in and below the folders, in order of their titles.

    Args:
        reference: a method's name, a heading or a run's hash.

    Raises:
        UserError: as `find_runs`; no run, or several of one table, answer to `reference`.
    """
    comparisons = []
    for title, runs in sorted(by_image_set(find_runs(folders, tasks, methods)).items()):
        entries = [Entry.of(heading, run) for heading, run in zip(labels(runs), runs, strict=True)]
        comparisons.append(compare(title, entries, reference and _heading(reference, entries, title)))
    if reference is not None and not any(comparison.reference for comparison in comparisons):
        raise UserError(f"--reference: no finished run of {reference} is among those found.")
    return comparisons


def _heading(reference: str, entries: Sequence[Entry], title: str) -> str | None:
    """Heading of the finished run that `reference` names; None if this table has none."""
    named = {
        entry.heading
        for entry in entries
        if entry.run and reference in (entry.heading, entry.run.identity.method, entry.run.hash)
    }
    if len(named) > 1:
        raise UserError(f"--reference: {title} has several runs of {reference}; give the hash of one.")
    return next(iter(named), None)


def compare(title: str, entries: Sequence[Entry], reference: str | None = None) -> Comparison:
    """Compares runs of one image set.

    The family of tests that Holm's correction is for is one row: all methods against the best of the row, and again all against
    the reference. Rows are questions of their own, asked of the same samples, so that their tests depend strongly on each
    other; and a mark must not change because another metric was computed as well.

    Args:
        reference: heading of the entry that the others are tested against.
    """
    runs = {entry.heading: entry.run for entry in entries if entry.run is not None}
    if reference is not None and reference not in runs:
        reference = None
    computed: dict[str, list[MetricRow]] = {}
    for row in (row for run in runs.values() for row in run.metrics.values() if row.value is not None):
        computed.setdefault(row.name, []).append(row)
    wanted = {name: rows for name, rows in computed.items() if any(row.spec.compared and row.has_row for row in rows)}
    wanted = dict(sorted(wanted.items(), key=lambda item: item[1][0].place))
    other_weights = [name for name, rows in wanted.items() if _differ(row.feature_weights_sha256 for row in rows)]
    other_versions = [name for name, rows in wanted.items() if _differ(_version(row) for row in rows)]
    directions = {name: rows[0].direction for name, rows in wanted.items()} | dict.fromkeys(other_weights + other_versions)
    to_best = {name: _against_best(name, directions[name], runs) for name in wanted}
    to_reference = {name: _against(name, directions[name], runs, reference) for name in wanted}
    _test([*to_best.values(), *to_reference.values()])
    rows = []
    for name in wanted:
        cells = []
        for entry in entries:
            difference = to_reference[name].get(entry.heading)
            cells.append(
                replace(
                    _cell(entry, name),
                    best=_is_best(to_best[name], entry.heading),
                    sign=_sign(directions[name], difference),
                    difference=difference,
                )
            )
        rows.append(ComparisonRow(name, directions[name], cells))
    notes = [f"{entry.heading}: {entry.note}" for entry in entries if entry.note]
    differing = {"with different feature weights": other_weights, "by different versions of the metric": other_versions}
    notes += [f"{', '.join(names)}: computed {what}, and so not compared" for what, names in differing.items() if names]
    notes += warning_notes(runs, list(wanted)) + missing_notes(runs, computed) + measurement_notes(runs)
    return Comparison(title, list(entries), rows, reference, notes)


def _cell(entry: Entry, name: str) -> Cell:
    """The entry's number, not compared yet."""
    if entry.run is None:
        return Cell(None, entry.status)
    row, planned = entry.run.metrics.get(name), entry.run.identity.num_images
    if row is None or row.value is None:
        return Cell(row, Status.MISSING)
    # Costs are means over batches.
    partial = row.metric != COST and row.n < planned
    return Cell(row, Status.DONE, (row.n, planned) if partial else None)


def _version(row: MetricRow) -> tuple[object, ...]:
    """What two runs' values must share to be compared. A metric may have moved to another place in tables in between."""
    return row.spec.version, row.source_sha256, row.direction


def _differ(facts: Iterable[object]) -> bool:
    return len(set(facts)) > 1


def _against_best(name: str, better: Direction | None, runs: Mapping[str, StoredRun]) -> dict[str, Difference]:
    """Differences to the run with the best value, itself included; empty unless there is something to compare."""
    scores = {heading: _score(name, better, run) for heading, run in runs.items()}
    present = {heading: score for heading, score in scores.items() if score is not None}
    if better is None or len(present) < 2:
        return {}
    best = (max if better.kind == "higher" else min)(present, key=present.__getitem__)
    differences = _against(name, better, runs, best)
    # Without a test of anything, "the best" would say that the others are worse.
    return {best: Difference(0.0, corrected=1.0), **differences} if differences else {}


def _score(name: str, better: Direction | None, run: StoredRun) -> float | None:
    row = run.metrics.get(name)
    return None if row is None or row.value is None or better is None else better.score(row.value)


def _against(name: str, better: Direction | None, runs: Mapping[str, StoredRun], other: str | None) -> dict[str, Difference]:
    """Differences of all runs to the other one, where they can be tested."""
    if better is None or other is None:
        return {}
    found = {heading: _difference(name, better, run, runs[other]) for heading, run in runs.items() if heading != other}
    return {heading: difference for heading, difference in found.items() if difference is not None}


def _difference(name: str, better: Direction, a: StoredRun, b: StoredRun) -> Difference | None:
    """a - b, or None where the metric cannot be paired."""
    if name in a.per_image and name in b.per_image:
        _, in_a, in_b = np.intersect1d(a.index, b.index, assume_unique=True, return_indices=True)
        x: Values = a.per_image[name][in_a]
        y: Values = b.per_image[name][in_b]
        # A metric of the first images only has no values for the others.
        known = ~(np.isnan(x) | np.isnan(y))
        x, y = x[known], y[known]
        if len(x) < 2 or not (np.isfinite(x) & np.isfinite(y)).all():
            return None
        if better.target is None:
            return Difference(float((x - y).mean()), per_image=x - y)
        # Sums, unlike differences of equal methods, may be skewed, which sign flips forgive only where images are many.
        if len(x) < FEWEST_IMAGES:
            return None
        x, y = (beyond(better.target, float(values.mean()), values) for values in (x, y))
        return Difference(float((x - y).mean()), per_image=x - y, sums=x + y)
    if name in a.replicates and name in b.replicates and np.array_equal(a.index, b.index):
        first, second = (run.metrics[name].value for run in (a, b))
        if first is None or second is None:
            return None
        result = paired_set_difference(first, second, a.replicates[name], b.replicates[name], len(a.index), better.target)
        if result.p_value is not None:
            return Difference(result.difference, result.p_value, bounds=(result.low, result.high))
    return None


def _test(families: Sequence[Mapping[str, Difference]]) -> None:
    """Fills in the p-values, those of means all at once, and corrects each family."""
    differences = [difference for family in families for difference in family.values()]
    of_means = [(d, values) for d in differences for values in (d.per_image, d.sums) if values is not None]
    for (difference, _), p_value in zip(of_means, paired_p_values([values for _, values in of_means]), strict=True):
        if p_value is not None:
            # Distances from a target differ only if both tests say so: see `paired_set_difference`.
            difference.p_value = max(p_value, difference.p_value or 0.0)
    for family in families:
        tested = {heading: d.p_value for heading, d in family.items() if d.p_value is not None}
        for heading, corrected in zip(tested, holm(list(tested.values())), strict=True):
            family[heading].corrected = corrected


def _is_best(differences: Mapping[str, Difference], heading: str) -> bool:
    return heading in differences and not differences[heading].significant


def _sign(better: Direction | None, difference: Difference | None) -> str:
    if better is None or difference is None or not difference.significant:
        return ""
    return "+" if better.is_better(difference.value) else "-"
