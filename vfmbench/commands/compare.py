"""`vfmbench compare`: several runs, then one table."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace

from vfmbench.commands.common import checked_cell, run_configs
from vfmbench.errors import EXIT_FAILED, MissingError, Status, UserError
from vfmbench.registry import load_suite, samplers
from vfmbench.reporting import console, pictures, tables
from vfmbench.reporting.quoting import legend
from vfmbench.reporting.writers.text import text
from vfmbench.results.comparison import Entry, compare
from vfmbench.results.stored import StoredRun
from vfmbench.running.plan import Plan
from vfmbench.running.runner import Run, execute


def main(options: argparse.Namespace) -> int:
    suite = load_suite(options.suite)
    methods = options.methods or list(suite.defaults.methods) or samplers.names()
    tasks = options.tasks or list(suite.task_names)
    pairs = [(method, task) for task in tasks for method in methods]
    cells = [checked_cell(config) for config in run_configs(options, pairs)]
    results: dict[str, dict[str, Run]] = {}
    drawn = []
    for task in tasks:
        row = {method: cell for (method, other), cell in zip(pairs, cells, strict=True) if other == task}
        runs = {method: _run_cell(method, task, cell) for method, cell in row.items()}
        done = {method: run.samples() for method, run in runs.items() if run.status == Status.DONE}
        finished = [(cell, done[method]) for method, cell in row.items() if method in done and isinstance(cell, Plan)]
        if finished:
            drawn.append(pictures.comparison_picture(finished))
        # Those that pictures showed would add up over the tasks.
        results[task] = {method: replace(run, shards=None) for method, run in runs.items()}
    if options.json:
        print(json.dumps({task: {m: tables.run_document(r) for m, r in row.items()} for task, row in results.items()}))
    else:
        for task, runs in results.items():
            entries = [_entry(method, result) for method, result in runs.items()]
            first = next((entry.heading for entry in entries if entry.run is not None), None)
            console.OUT.print(text(compare(task, entries, first)))
        console.OUT.print(f"{legend('the first finished method')} {tables.comparison_note(options.preset)}")
        console.OUT.print("\n".join(f"Picture: {path}" for path in drawn))
    statuses = {run.status for row in results.values() for run in row.values()}
    if Status.FAILED in statuses:
        return EXIT_FAILED
    if Status.DONE in statuses:
        return 0
    return MissingError.exit_code if Status.MISSING in statuses else UserError.exit_code


def _entry(method: str, result: Run) -> Entry:
    """The column of a comparison for one run."""
    stored = StoredRun.read(result.results()) if result.status == Status.DONE else None
    return Entry(method, result.status, result.note, stored)


def _run_cell(method: str, task: str, cell: Plan | MissingError) -> Run:
    """The cell's results; a failure becomes a status with its reason."""
    if isinstance(cell, MissingError):
        return Run(None, Status.MISSING, str(cell))
    try:
        with console.progress(f"{method} on {task}") as update:
            result = execute(cell, update)
        if result.status == Status.DONE:
            pictures.posterior_picture(cell, result.samples())
        return result
    except MissingError as error:
        return Run(cell.store, Status.MISSING, str(error))
    except Exception as error:
        return Run(cell.store, Status.FAILED, f"{type(error).__name__}: {error}")
