"""`vfmbench run`: samples and scores one method on one task."""

from __future__ import annotations

import argparse
import json
import sys

from vfmbench.commands.common import print_metrics, run_configs
from vfmbench.errors import Status, UserError
from vfmbench.reporting import console, pictures, tables
from vfmbench.running.plan import plan
from vfmbench.running.runner import execute


def main(options: argparse.Namespace) -> int:
    checked = plan(run_configs(options, [(options.method, options.task)])[0])
    with console.progress(f"{options.method} on {options.task}") as update:
        result = execute(checked, update)
    if options.json:
        print(json.dumps(tables.run_document(result)))
    if result.note:
        print(f"vfmbench: {result.note}", file=sys.stderr)
    if result.status != Status.DONE:
        return UserError.exit_code
    picture = pictures.posterior_picture(checked, result.samples())
    if not options.json:
        print_metrics(tables.run_table(result), result.results().metrics())
        console.OUT.print(
            f"{tables.cost_line(result)}\nSamples, records and metrics: {result.results().directory}\nPicture: {picture}"
        )
    return 0
