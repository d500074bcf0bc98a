"""`vfmbench bench`: what methods cost."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from functools import cache

from vfmbench.commands.common import checked_cell, run_configs
from vfmbench.config import RunConfig
from vfmbench.errors import MissingError, UserError
from vfmbench.interfaces import Suite
from vfmbench.registry import load_suite, samplers
from vfmbench.reporting import console, tables
from vfmbench.running.bench import Cost, bench, matrix_rate
from vfmbench.running.plan import Plan, choose_device, plan
from vfmbench.training.untrained import untrained


def main(options: argparse.Namespace) -> int:
    methods = options.methods or samplers.names()
    task = options.task or load_suite(options.suite).task_names[0]
    configs = run_configs(options, [(method, task) for method in methods])
    cells = [checked_cell(config) for config in configs]
    rate = matrix_rate(choose_device(options.device), configs[0].precision)
    costs: dict[str, Cost] = {}
    notes: dict[str, str] = {}
    with console.progress(f"timing on {task}", "methods") as update, ExitStack() as stack:

        @cache
        def untrained_suite() -> Suite:
            return stack.enter_context(untrained(load_suite(options.suite, configs[0].options)))

        for done, (method, config, cell) in enumerate(zip(methods, configs, cells, strict=True)):
            update(done, len(methods))
            try:
                costs[method] = _cost(config, cell, rate, options.largest_batch, untrained_suite)
            except UserError as error:
                notes[method] = str(error)
            except Exception as error:
                notes[method] = f"{type(error).__name__}: {error}"
        update(len(methods), len(methods))
    if options.json:
        print(json.dumps({"costs": {method: asdict(cost) for method, cost in costs.items()}, "left_out": notes}))
    else:
        published = tables.published_seconds(options.suite, task)
        console.OUT.print(tables.bench_table(f"{options.suite}, {task}", costs, rate, published))
        for method, note in notes.items():
            console.OUT.print(f"{method} is left out: {note}")
    return 0


def _cost(
    config: RunConfig, cell: Plan | MissingError, rate: float, largest_batch: int, untrained_suite: Callable[[], Suite]
) -> Cost:
    """Cost of one method; where its weights or data are missing, with untrained networks on random images.

    Raises UserError for a method that cannot run, or whose networks the suite does not train.
    """
    try:
        if isinstance(cell, MissingError):
            raise cell
        return _cost_of_plan(cell, rate, largest_batch, False)
    except MissingError as missing:
        try:
            checked = plan(config, untrained_suite())
        except UserError:
            raise missing from None
        return _cost_of_plan(checked, rate, largest_batch, bool(checked.sampler_class.weights))


def _cost_of_plan(checked: Plan, rate: float, largest_batch: int, random_weights: bool) -> Cost:
    if not checked.verdict.supported:
        raise UserError(checked.verdict.note)
    return bench(checked, rate, largest_batch, random_weights)
