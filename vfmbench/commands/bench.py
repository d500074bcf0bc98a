"""`vfmbench bench`: what methods cost."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict

from vfmbench.base import MissingError, UserError
from vfmbench.commands.common import checked_cell, names, run_configs
from vfmbench.registry import samplers, suites
from vfmbench.reporting import console, tables
from vfmbench.running.bench import Cost, bench, matrix_rate
from vfmbench.running.runner import choose_device


def main(options: argparse.Namespace) -> int:

    if options.largest_batch < 1:
        raise UserError(f"--largest-batch takes a whole number of at least 1, got {options.largest_batch}.")
    methods = names(options.methods) or samplers.names()
    task = options.task or suites.get(options.suite)({}).task_names[0]
    cells = [checked_cell(config) for config in run_configs(options, [(method, task) for method in methods])]
    rate = matrix_rate(choose_device(options.device))
    costs: dict[str, Cost] = {}
    notes: dict[str, str] = {}
    with console.progress(f"timing on {task}", "methods") as update:
        for done, (method, cell) in enumerate(zip(methods, cells, strict=True)):
            update(done, len(methods))
            try:
                if isinstance(cell, MissingError):
                    raise cell
                supported, reason = cell.sampler_class.supports(cell.task, cell.suite)
                if not supported:
                    raise UserError(reason)
                costs[method] = bench(cell, rate, options.largest_batch)
            except UserError as error:
                notes[method] = str(error)
            except Exception as error:
                notes[method] = f"{type(error).__name__}: {error}"
        update(len(methods), len(methods))
    if options.json:
        print(json.dumps({"costs": {method: asdict(cost) for method, cost in costs.items()}, "left_out": notes}))
    else:
        console.OUT.print(tables.bench_table(f"{options.suite}, {task}", costs, rate))
        for method, note in notes.items():
            console.OUT.print(f"{method} is left out: {note}")
    return 0
