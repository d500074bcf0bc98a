"""`vfmbench figure sweep`: curves from a sweep's table."""

from __future__ import annotations

import argparse
from pathlib import Path

from vfmbench.commands.common import names
from vfmbench.errors import UserError
from vfmbench.reporting.sweep_figure import sweep_figure


def main(options: argparse.Namespace) -> int:
    metrics, groups = names(options.metrics) or [], names(options.by) or []
    if not metrics:
        raise UserError("--metrics names no metric.")
    where = {}
    for condition in options.where:
        column, equals, value = condition.partition("=")
        if not equals:
            raise UserError(f"--where takes COLUMN=VALUE, got {condition!r}.")
        where[column] = value
    references = [Path(folder) for folder in options.reference]
    out = options.out and Path(options.out)
    print(sweep_figure(Path(options.table), options.x, metrics, groups, references, out, where))
    return 0
