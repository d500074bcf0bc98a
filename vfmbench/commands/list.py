"""`vfmbench list`: what is installed."""

from __future__ import annotations

import argparse
import sys
import warnings
from typing import Any

from vfmbench import registry


def main(options: argparse.Namespace) -> int:
    registries: dict[str, registry.Registry[Any]] = {
        "methods": registry.samplers,
        "tasks": registry.tasks,
        "suites": registry.suites,
        "metrics": registry.metrics,
        "stages": registry.stages,
    }
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: print(f"vfmbench: warning: {message}", file=sys.stderr)
        for kind, entries in registries.items():
            if options.kind in (None, kind):
                print(f"{kind}:")
                for name, target in entries.load_all().items():
                    summary = (target.__doc__ or "").strip().partition("\n")[0]
                    print(f"  {name:<22}{summary}")
                    if kind == "metrics":
                        values = (f"{spec.name} {spec.direction or ''}".strip() for spec in target.specs)
                        print(f"  {'':<22}values: {', '.join(values)}")
                    if kind == "suites":
                        print(f"  {'':<22}tasks: {', '.join(registry.load_suite(name).task_names)}")
    return 0
