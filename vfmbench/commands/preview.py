"""`vfmbench preview`: a picture of a task."""

from __future__ import annotations

import argparse

from vfmbench.commands.common import run_configs
from vfmbench.reporting import pictures
from vfmbench.running.plan import plan


def main(options: argparse.Namespace) -> int:
    checked = plan(run_configs(options, [("adjoint", options.task)])[0])
    print(pictures.task_picture(checked))
    return 0
