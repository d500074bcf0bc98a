"""`vfmbench status`: what has become of runs. Starts without torch, unless it also merges or retries."""

from __future__ import annotations

import argparse

from vfmbench.errors import UserError
from vfmbench.launching import printing, status
from vfmbench.launching.record import record_of
from vfmbench.reporting import console


def main(options: argparse.Namespace) -> int:
    target, out = options.target, options.out
    if target.suffix not in (".yaml", ".yml"):
        if options.merge or options.retry:
            raise UserError("--merge and --retry take a sweep's YAML file.")
        printing.print_status(status.folder_rows(target), console.OUT)
        return 0
    if options.merge or options.retry:
        from vfmbench.commands.sweep import launch_jobs, prepared
        from vfmbench.launching.sweep import failed_only, merge_parts

        sweep = prepared(target, options)
        if options.merge:
            merge_parts(sweep, console.ERR)
        if options.retry:
            return launch_jobs(failed_only(sweep), options)
    record = record_of(target, out)
    rows = status.rows(record)
    status.write_csv(record, rows)
    printing.print_status(rows, console.OUT)
    console.OUT.print(f"Table: {record.csv}")
    return 0
