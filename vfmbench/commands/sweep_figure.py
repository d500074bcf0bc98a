"""`vfmbench figure sweep`: curves from a sweep's table."""

from __future__ import annotations

import argparse
from pathlib import Path

from vfmbench.base import UserError
from vfmbench.commands.common import names
from vfmbench.reporting.sweep_figure import sweep_figure


def main(options: argparse.Namespace) -> int:
    metrics, groups = names(options.metrics) or [], names(options.by) or []
    if not metrics:
        raise UserError("--metrics names no metric.")
    references = [Path(folder) for folder in options.reference]
    print(sweep_figure(Path(options.table), options.x, metrics, groups, references, options.out and Path(options.out)))
    return 0
