"""`vfmbench tune`: options chosen on the validation split."""

from __future__ import annotations

import argparse
from pathlib import Path

from vfmbench import threads
from vfmbench.options import parse_overrides
from vfmbench.registry import load_suite
from vfmbench.reporting import console, tables
from vfmbench.running.tuning import tune
from vfmbench.tuned import tuned_file


def main(options: argparse.Namespace) -> int:
    overrides = parse_overrides(options.overrides, ["data", "weights", "tuning"])
    out = options.out or tuned_file(load_suite(options.suite, overrides).name)
    trials = options.trials or Path("results/tuned") / out.name
    with console.progress(f"tuning on {options.suite}", "trials") as update:
        chosen = tune(
            options.suite,
            options.method,
            options.task,
            overrides,
            out,
            trials,
            options.runs,
            options.workers or threads.usable_cores(),
            options.plugin,
            update,
        )
    console.OUT.print(tables.tuning_table(chosen))
    console.OUT.print(f"Written to {out}; use it with --preset {options.out or 'tuned'}. Every trial: {trials}")
    return 0
