"""`vfmbench tune`: options chosen on the validation split."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from vfmbench.commands.common import names
from vfmbench.errors import UserError
from vfmbench.options import parse_overrides
from vfmbench.reporting import console, tables
from vfmbench.running.tuning import tune


def main(options: argparse.Namespace) -> int:
    if options.workers is not None and options.workers < 1:
        raise UserError(f"--workers takes a whole number of at least 1, got {options.workers}.")
    out = Path(options.out or f"baselines/tuned/{options.suite}.yaml")
    with console.progress(f"tuning on {options.suite}", "trials") as update:
        chosen = tune(
            options.suite,
            names(options.method),
            names(options.task),
            parse_overrides(options.overrides, ["data", "weights", "tuning"]),
            out,
            Path(options.runs),
            options.workers or os.cpu_count() or 1,
            options.plugin,
            update,
        )
    console.OUT.print(tables.tuning_table(chosen))
    console.OUT.print(f"Written to {out}; use it with --preset {out}")
    return 0
