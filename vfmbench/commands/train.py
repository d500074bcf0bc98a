"""`vfmbench train`: a suite's networks."""

from __future__ import annotations

import argparse
from pathlib import Path

from vfmbench.options import parse_overrides
from vfmbench.registry import load_suite
from vfmbench.reporting import console
from vfmbench.running.plan import choose_device
from vfmbench.training.train import train


def main(options: argparse.Namespace) -> int:
    sections = ["data", "weights"]
    stages = list(load_suite(options.suite).training)
    overrides = parse_overrides(options.overrides, [*sections, *stages])
    built = load_suite(options.suite, {section: overrides.pop(section, {}) for section in sections})
    out = options.out or Path("results/training") / built.name
    train(options.stage, built, overrides, out, choose_device(options.device), options.fresh, console.ERR)
    print(f"Weights: {out} (use them with --set weights.path={out})")
    return 0
