"""`vfmbench sweep`: the jobs of a sweep file."""

from __future__ import annotations

import argparse
from pathlib import Path

from vfmbench import threads
from vfmbench.errors import EXIT_FAILED
from vfmbench.launching import cluster, printing, status
from vfmbench.launching.sweep import Sweep, prepare
from vfmbench.options import parse_values
from vfmbench.reporting import console


def main(options: argparse.Namespace) -> int:
    sweep = prepared(options.file, options)
    if options.dry_run:
        printing.print_plan(sweep, console.OUT)
        return 0
    return launch_jobs(sweep, options)


def prepared(file: Path, options: argparse.Namespace) -> Sweep:
    """The sweep of a file, with what the command line says beside it."""
    values = parse_values(options.overrides)
    return prepare(file, options.out, options.profile, values, cluster.chosen(options.executor))


def launch_jobs(sweep: Sweep, options: argparse.Namespace) -> int:
    """Starts a sweep's chosen jobs; unless they now wait in Slurm, prints what became of them."""
    # Training and Slurm, which a dry run does without.
    from vfmbench.launching import launch

    executor = launch.chosen_executor(options.executor)
    if executor == "slurm":
        launch.on_slurm(sweep, options.plugin, console.ERR)
        if not options.wait:
            return 0
        with console.progress(sweep.name, "jobs") as update:
            failed = launch.wait(sweep.record, update)
        if seconds := launch.overhead(sweep.record):
            console.OUT.print("Slurm: a job waited {:.1f} s and spent {:.1f} s beside its own work (medians).".format(*seconds))
    else:
        workers = options.workers or threads.usable_cores()
        failed = launch.here(sweep, executor, workers, options.plugin, console.ERR, console.progress)
    printing.print_status(status.rows(sweep.record), console.OUT)
    console.OUT.print(f"Table: {sweep.record.csv}")
    return EXIT_FAILED if failed else 0
