"""Seconds per image of the guidance solvers at batch 1 and at the best batch, with the share inside networks and codec.

    python benchmarks/baselines.py [SUITE] [further arguments of `vfmbench bench`]

The same as `vfmbench bench` on the six solvers and VFM, which is the line to hold them against. Quote ratios: times on a shared
machine vary by two between runs.
"""

from __future__ import annotations

import sys

from vfmbench.cli import main

METHODS = "vfm,latent_dps,psld,mpgd,flowchef,flowdps,latent_daps"

if __name__ == "__main__":
    suite, arguments = (sys.argv[1], sys.argv[2:]) if len(sys.argv) > 1 else ("digits", [])
    sys.exit(main(["bench", "--suite", suite, "--methods", METHODS, *arguments]))
