"""`vfmbench table`: tables from stored runs."""

from __future__ import annotations

import argparse
import json

from vfmbench.reporting import console
from vfmbench.reporting.quoting import legend
from vfmbench.reporting.writers.document import document
from vfmbench.reporting.writers.latex import comments, latex
from vfmbench.reporting.writers.markdown import markdown
from vfmbench.reporting.writers.text import text
from vfmbench.results.comparison import tables_of


def main(options: argparse.Namespace) -> int:
    comparisons = tables_of(options.folders, options.tasks, options.methods, options.reference)
    if options.json:
        print(json.dumps([document(comparison) for comparison in comparisons]))
        return 0
    for comparison in comparisons:
        if options.format == "text":
            console.OUT.print(text(comparison))
        else:
            print({"markdown": markdown, "latex": latex}[options.format](comparison) + "\n")
    marks = legend(options.reference)
    print("\n".join(comments([marks])) if options.format == "latex" else marks)
    return 0
