"""`vfmbench metrics`: scores of stored samples."""

from __future__ import annotations

import argparse
import json
import sys

from vfmbench.commands.common import print_metrics
from vfmbench.errors import UserError
from vfmbench.files import file_to_write, replace_file
from vfmbench.options import parse_overrides, validate
from vfmbench.reporting import console, tables
from vfmbench.running.plan import choose_device
from vfmbench.running.scoring import score_folders, score_run
from vfmbench.weights.external import ExternalPaths


def main(options: argparse.Namespace) -> int:
    if options.reference is not None:
        return _folder_metrics(options)
    for name in ("features", "out"):
        if vars(options)[name] is not None:
            message = f"--{name} goes with --reference; a run has its suite's feature spaces and its own directory."
            raise UserError(message, name)
    overrides = parse_overrides(options.overrides, ["data", "weights"])
    result = score_run(options.samples, options.metrics, overrides, choose_device(options.device))
    if result.note:
        print(f"vfmbench: {result.note}", file=sys.stderr)
    if options.json:
        print(json.dumps(tables.run_document(result)))
    else:
        print_metrics(tables.run_table(result), result.results().metrics())
        console.OUT.print(f"Metrics: {result.results().directory}")
    return 0


def _folder_metrics(options: argparse.Namespace) -> int:
    paths = validate(ExternalPaths, parse_overrides(options.overrides, ["weights"]).get("weights", {}), "weights.")
    out = None if options.out is None else file_to_write(options.out)
    folders = options.samples, options.reference
    scores = score_folders(*folders, options.features, options.metrics, paths, choose_device(options.device))
    document = json.dumps(tables.folder_document(scores))
    if out is not None:
        replace_file(out, document.encode())
    if options.json:
        print(document)
    else:
        print_metrics(tables.folder_table(scores), scores.rows)
    return 0
