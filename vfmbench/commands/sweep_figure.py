"""`vfmbench figure sweep`: curves from a sweep's table."""

from __future__ import annotations

import argparse

from vfmbench.errors import UserError
from vfmbench.reporting.sweep_figure import sweep_figure


def main(options: argparse.Namespace) -> int:
    if not options.metrics:
        raise UserError("--metrics names no metric.", "metrics")
    where = {}
    for condition in options.where:
        column, equals, value = condition.partition("=")
        if not equals:
            raise UserError(f"--where takes COLUMN=VALUE, got {condition!r}.", "where")
        where[column] = value
    print(sweep_figure(options.table, options.x, options.metrics, options.by, options.reference, options.out, where))
    return 0
