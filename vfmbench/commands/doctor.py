"""`vfmbench doctor`: whether this machine is ready."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from rich.table import Table
from rich.text import Text

from vfmbench.config import first_command
from vfmbench.doctor import Check, Health, document, examine, ready
from vfmbench.errors import EXIT_FAILED
from vfmbench.reporting import console

_STYLES = {Health.OK: "green", Health.NOTE: "", Health.WARNING: "yellow", Health.BROKEN: "bold red"}


def main(options: argparse.Namespace) -> int:
    checks = list(examine(Path("results")))
    if options.json:
        print(json.dumps(document(checks)))
    else:
        console.OUT.print(_table(checks))
        broken = ", ".join(dict.fromkeys(check.subject for check in checks if check.health == Health.BROKEN))
        start = f"Ready: try `{first_command()}`."
        console.OUT.print(start if ready(checks) else f"Not ready: {broken}.", markup=False)
    return 0 if ready(checks) else EXIT_FAILED


def _table(checks: list[Check]) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column()
    for check in checks:
        table.add_row(check.subject, Text(check.health, style=_STYLES[check.health]), Text(check.text))
    return table
