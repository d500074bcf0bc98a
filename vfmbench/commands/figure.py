"""`vfmbench figure KIND`: a registered figure from stored runs."""

from __future__ import annotations

import argparse

from vfmbench.registry import figures


def main(options: argparse.Namespace) -> int:
    print(figures.get(options.kind)(options.folders, options.out))
    return 0
