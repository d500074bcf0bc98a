"""What several commands share: run configurations and plans, a table of metrics."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from rich.table import Table

from vfmbench.config import RUN_SECTIONS, RunConfig
from vfmbench.errors import MissingError, UserError
from vfmbench.options import parse_overrides, validate
from vfmbench.reporting import console, tables
from vfmbench.results.schema import MetricRow
from vfmbench.running.plan import Plan, plan


def run_configs(options: argparse.Namespace, pairs: Sequence[tuple[str, str]]) -> list[RunConfig]:
    """One for each (method, task). `--set method.key` is for every method, `--set NAME.key` for one."""
    methods = {method for method, _ in pairs}
    overrides = parse_overrides(options.overrides, [*RUN_SECTIONS, *sorted(methods)])
    values = {name: value for name, value in vars(options).items() if name in RunConfig.model_fields}

    def sections(method: str) -> dict[str, dict[str, Any]]:
        own = {**overrides.get("method", {}), **overrides.get(method, {})}
        return {**{key: value for key, value in overrides.items() if key in RUN_SECTIONS}, "method": own}

    return [
        validate(RunConfig, {**values, "method": method, "task": task, "options": sections(method)}, "--")
        for method, task in pairs
    ]


def checked_cell(config: RunConfig) -> Plan | MissingError:
    """The cell's plan, or its MissingError: what one method lacks must not cost the others. Other errors are raised."""
    try:
        return plan(config)
    except MissingError as error:
        return error
    except UserError as error:
        raise UserError(f"{config.method} on {config.task}: {error}", error.key) from error


def print_metrics(table: Table, rows: Sequence[MetricRow]) -> None:
    """The table, and below it why metrics are missing: whole, and without line breaks in commands to copy."""
    console.OUT.print(table)
    for line in tables.missing_reasons(rows):
        console.OUT.print(line, soft_wrap=True, markup=False)
