"""`vfmbench table`: tables from stored runs."""

from __future__ import annotations

import argparse
import json

from vfmbench.reporting import console, rendering
from vfmbench.results.comparison import tables_of


def main(options: argparse.Namespace) -> int:
    comparisons = tables_of(options.folders, options.tasks, options.methods, options.reference)
    if options.json:
        print(json.dumps([rendering.document(comparison) for comparison in comparisons]))
        return 0
    for comparison in comparisons:
        rendered = rendering.FORMATS[options.format](comparison)
        if isinstance(rendered, str):
            print(f"{rendered}\n")
        else:
            console.OUT.print(rendered)
    legend = rendering.legend(options.reference)
    print(f"% {legend}" if options.format == "latex" else legend)
    return 0
