"""`vfmbench sweep`: the jobs of a sweep file."""

from __future__ import annotations

import argparse

from vfmbench import threads
from vfmbench.errors import EXIT_FAILED
from vfmbench.launching import printing, status
from vfmbench.launching.sweep import Sweep, prepare
from vfmbench.options import parse_values
from vfmbench.reporting import console


def main(options: argparse.Namespace) -> int:
    sweep = prepare(options.file, options.out, options.profile, parse_values(options.overrides))
    if options.dry_run:
        printing.print_plan(sweep, console.OUT)
        return 0
    return launch_jobs(sweep, options)


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
