"""What several commands share: lists on the command line, run configurations and plans, a table of metrics."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from vfmbench.config import RUN_SECTIONS, RunConfig
from vfmbench.errors import MissingError, UserError
from vfmbench.options import parse_overrides, validate
from vfmbench.reporting import console, tables
from vfmbench.running.plan import Plan, plan


def names(text: str | None) -> list[str] | None:
    """The parts of a comma-separated list; None if the option was not given."""
    return None if text is None else [part.strip() for part in text.split(",") if part.strip()]


def run_configs(options: argparse.Namespace, pairs: Sequence[tuple[str, str]]) -> list[RunConfig]:
    """One for each (method, task). `--set method.key` is for every method, `--set NAME.key` for one."""
    methods = {method for method, _ in pairs}
    overrides = parse_overrides(options.overrides, [*RUN_SECTIONS, *sorted(methods)])
    if getattr(options, "steps", None) is not None:
        overrides.setdefault("method", {})["steps"] = options.steps
    values = {
        "suite": options.suite,
        "split": options.split,
        "num_images": options.num_images,
        "samples": options.samples,
        "seed": options.seed,
        "preset": options.preset,
        "device": options.device,
        "batch_size": None if options.batch_size == "auto" else options.batch_size,
        "precision": options.precision,
        "compile": options.compile,
        "out": options.out,
        "metrics": names(options.metrics),
        "fresh": options.fresh,
    }

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
        raise UserError(f"{config.method} on {config.task}: {error}") from error


def print_metrics(table: Any, rows: Sequence[dict[str, Any]]) -> None:
    """The table, and below it why metrics are missing: whole, and without line breaks in commands to copy."""
    console.OUT.print(table)
    for line in tables.missing_reasons(rows):
        console.OUT.print(line, soft_wrap=True, markup=False)
