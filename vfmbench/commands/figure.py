"""`vfmbench figure calibration|densities|alignment`: figures from stored runs."""

from __future__ import annotations

import argparse

from vfmbench.reporting.alignment import alignment_figure
from vfmbench.reporting.calibration import calibration_figure
from vfmbench.reporting.densities import densities_figure


def main(options: argparse.Namespace) -> int:
    draw = {"calibration": calibration_figure, "densities": densities_figure, "alignment": alignment_figure}[options.kind]
    print(draw(options.folders, options.out))
    return 0
