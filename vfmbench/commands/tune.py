"""`vfmbench tune`: options chosen on the validation split."""

from __future__ import annotations

import argparse
from pathlib import Path

from vfmbench import threads
from vfmbench.options import parse_overrides
from vfmbench.reporting import console, tables
from vfmbench.running.tuning import tune


def main(options: argparse.Namespace) -> int:
    out = options.out or Path(f"baselines/tuned/{options.suite}.yaml")
    with console.progress(f"tuning on {options.suite}", "trials") as update:
        chosen = tune(
            options.suite,
            options.method,
            options.task,
            parse_overrides(options.overrides, ["data", "weights", "tuning"]),
            out,
            options.runs,
            options.workers or threads.usable_cores(),
            options.plugin,
            update,
        )
    console.OUT.print(tables.tuning_table(chosen))
    console.OUT.print(f"Written to {out}; use it with --preset {out}")
    return 0
