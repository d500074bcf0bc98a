"""The command line: its grammar, and what every command's errors come to. The commands are in `vfmbench.commands`."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from vfmbench import __version__
from vfmbench.errors import EXIT_FAILED, EXIT_INTERRUPTED, UserError
from vfmbench.registry import load_plugin


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vfmbench",
        description="Measure posterior samplers of inverse problems: `vfmbench run --method vfm --task gaussian_deblur`.",
        epilog="Exit codes: 0 done; 1 failed; 2 bad usage or configuration; 3 weights or data missing; 75 interrupted.",
    )
    parser.add_argument("--version", action="version", version=f"vfmbench {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--plugin", action="append", default=[], metavar="FILE", help="Python file that registers further parts"
    )
    common.add_argument("--debug", action="store_true", help="show tracebacks")

    running = argparse.ArgumentParser(add_help=False, parents=[common])
    running.add_argument("--suite", default="digits", help="data, networks and feature spaces (default: digits)")
    running.add_argument("--split", default="test", choices=["test", "validation"])
    running.add_argument("--num-images", type=int, metavar="N", help="first N images of the split (default: the suite's)")
    running.add_argument("--samples", type=int, metavar="K", help="posterior samples of each image (default: the suite's)")
    running.add_argument("--seed", type=int, default=0, help="of operators, noise and samplers (default: 0)")
    running.add_argument(
        "--preset",
        default="paper",
        metavar="NAME|FILE",
        help="the guidance solvers' options: paper (default), original (their authors'), tuned, or a file from `vfmbench tune`",
    )
    running.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="overrides",
        help="e.g. task.std=1.5 method.steps=4 latent_dps.step_size=0.3",
    )
    running.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    running.add_argument(
        "--precision",
        default="float32",
        choices=["float32", "bfloat16", "float16"],
        help="of the products inside networks (default: float32)",
    )
    running.add_argument("--compile", action="store_true", help="compile the networks: slow at first, then faster")
    running.add_argument("--batch-size", default="auto", metavar="N", help="samples in one batch (default: auto, the suite's)")
    running.add_argument(
        "--out", default="results/runs", metavar="DIR", help="where run directories go (default: results/runs)"
    )
    running.add_argument("--metrics", metavar="A,B", help="only these metrics (default: all)")
    running.add_argument("--fresh", action="store_true", help="start over instead of resuming")
    running.add_argument("--json", action="store_true", help="print one JSON document instead of a table")

    run = commands.add_parser("run", parents=[running], help="sample and score one method on one task")
    run.add_argument("--method", required=True)
    run.add_argument("--task", required=True, help="a task of the suite, or a YAML file that defines one")
    run.add_argument("--steps", type=int, metavar="N", help="network steps of the method: --set method.steps=N")
    run.set_defaults(module="run")

    compare = commands.add_parser("compare", parents=[running], help="several methods and tasks, then one table")
    compare.add_argument("--methods", metavar="A,B", help="default: those that the suite names, else all")
    compare.add_argument("--tasks", metavar="C,D", help="default: all of the suite")
    compare.set_defaults(module="compare")

    preview = commands.add_parser(
        "preview", parents=[running], help="draw truth, observation, adjoint and pseudo-inverse of a task"
    )
    preview.add_argument("--task", required=True)
    preview.set_defaults(module="preview")

    bench = commands.add_parser("bench", parents=[running], help="latency, throughput, memory, FLOPs of methods; timing only")
    bench.add_argument("--methods", metavar="A,B", help="default: all")
    bench.add_argument("--task", help="default: the suite's first")
    bench.add_argument("--largest-batch", type=int, default=256, metavar="N", help="where the search stops (default: 256)")
    bench.set_defaults(module="bench")

    train = commands.add_parser("train", parents=[common], help="train one stage of a suite's networks, or all")
    train.add_argument("stage", help="features, flow, frozen_adapter, vfm or all")
    train.add_argument("--suite", default="digits")
    train.add_argument("--set", action="append", default=[], metavar="STAGE.KEY=VALUE", dest="overrides")
    train.add_argument("--out", metavar="DIR", help="default: results/training/SUITE")
    train.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    train.add_argument("--fresh", action="store_true", help="start over instead of resuming")
    train.set_defaults(module="train")

    metrics = commands.add_parser(
        "metrics", parents=[common], help="score stored samples, or a folder of images against the true ones, without sampling"
    )
    metrics.add_argument("samples", metavar="DIR", help="a run directory, or a folder of images (then with --reference)")
    metrics.add_argument(
        "--reference",
        metavar="FOLDER",
        help="the true images, of the same names; DIR may hold a folder NAME of several samples in place of an image NAME",
    )
    metrics.add_argument("--metrics", metavar="A,B", help="only these metrics (default: all)")
    metrics.add_argument(
        "--features",
        metavar="A,B",
        help="feature spaces, with --reference: inception, dino (default: all whose weights are there)",
    )
    metrics.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="overrides",
        help="weights.*, and data.* of a run's suite",
    )
    metrics.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    metrics.add_argument("--out", metavar="FILE", help="with --reference: also write the JSON document to this file")
    metrics.add_argument("--json", action="store_true", help="print one JSON document instead of a table")
    metrics.set_defaults(module="metrics")

    tune = commands.add_parser("tune", parents=[common], help="choose methods' options on the validation split")
    tune.add_argument("--suite", default="digits")
    tune.add_argument("--method", metavar="A,B", help="default: all that the suite's YAML file has a grid for")
    tune.add_argument("--task", metavar="C,D", help="default: all that the suite's YAML file names")
    tune.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides", help="data.*, weights.* or tuning.*"
    )
    tune.add_argument("--out", metavar="FILE", help="default: baselines/tuned/SUITE.yaml")
    tune.add_argument("--runs", default="results/tuning", metavar="DIR", help="the trials' runs (default: results/tuning)")
    tune.add_argument("--workers", type=int, metavar="N", help="processes of one thread each (default: one for each core)")
    tune.set_defaults(module="tune")

    launching = argparse.ArgumentParser(add_help=False, parents=[common])
    launching.add_argument(
        "--executor",
        default="auto",
        choices=["auto", "slurm", "local", "debug"],
        help="slurm; local: processes of this machine; debug: one after the other in this process; auto: slurm, else local",
    )
    launching.add_argument("--workers", type=int, metavar="N", help="local processes at a time (default: one for each core)")
    launching.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="overrides",
        help="for all runs of the sweep, whatever its file says, e.g. data.path=DIR num_images=8; repeatable",
    )
    launching.add_argument("--profile", metavar="NAME|FILE", help="what Slurm is asked for (default: the file's, else cpu)")
    launching.add_argument("--wait", action="store_true", help="with Slurm: wait until no job is queued or running")
    launching.add_argument("--out", metavar="DIR", help="folder of runs/, training/, sweeps/ (default: the file's or results)")

    sweep = commands.add_parser(
        "sweep", parents=[launching], help="a grid of runs, and of trainings before them, from a YAML file (slurm/README.md)"
    )
    sweep.add_argument("file", metavar="FILE", help="e.g. slurm/smoke.yaml")
    sweep.add_argument("--dry-run", action="store_true", help="print the jobs and an estimate of their time, and run nothing")
    sweep.set_defaults(module="sweep")

    status = commands.add_parser(
        "status", parents=[launching], help="what of a sweep, or of the runs in a folder, is done, running, failed or missing"
    )
    status.add_argument("target", metavar="FILE|DIR", help="a sweep's YAML file, or a folder of runs")
    status.add_argument("--merge", action="store_true", help="finish runs whose parts are all sampled")
    status.add_argument(
        "--retry", choices=["failed"], help="start those jobs of the sweep again that failed or were interrupted or cancelled"
    )
    status.set_defaults(module="status")

    table = commands.add_parser("table", parents=[common], help="tables from stored runs, one for each task; runs no model")
    table.add_argument("folders", nargs="+", metavar="DIR", help="run directories, or folders above them")
    table.add_argument("--tasks", metavar="A,B", help="default: all")
    table.add_argument("--methods", metavar="C,D", help="also their order (default: all)")
    table.add_argument("--reference", metavar="METHOD", help="test every method against this one (or a run's hash)")
    table.add_argument("--format", default="text", choices=["text", "markdown", "latex"])
    table.add_argument("--json", action="store_true", help="print one JSON document instead of tables")
    table.set_defaults(module="table")

    figure = commands.add_parser("figure", help="a figure from stored runs; runs no model")
    kinds = figure.add_subparsers(dest="kind", required=True, metavar="KIND")
    for kind, summary in (
        ("calibration", "rank histogram, coverage and TARP curve"),
        ("densities", "checkerboard: prior and posterior densities in noise space and data space"),
        ("alignment", "checkerboard: which noise the flow map takes to which cell, a column for each run"),
    ):
        of_runs = kinds.add_parser(kind, parents=[common], help=summary)
        of_runs.add_argument("folders", nargs="+", metavar="DIR", help="runs of one task, or folders above them")
        of_runs.add_argument("--out", metavar="FILE.png", help=f"default: {kind}.png in the folder that all runs lie in")
        of_runs.set_defaults(module="figure")
    curves = kinds.add_parser("sweep", parents=[common], help="metrics of a sweep's table over one of its options")
    curves.add_argument("table", metavar="TABLE.csv", help="a row for each run, as `vfmbench sweep` writes it")
    curves.add_argument("--x", required=True, metavar="COLUMN", help="e.g. tau, which finds train.tau too")
    curves.add_argument("--metrics", required=True, metavar="A,B", help="a panel for each")
    curves.add_argument(
        "--where", action="append", default=[], metavar="COLUMN=VALUE", help="only rows with this value, or none; repeatable"
    )
    curves.add_argument("--by", metavar="C,D", help="columns whose values make a line each: colour, marker, dashes")
    curves.add_argument(
        "--reference", action="append", default=[], metavar="RUN_DIR", help="a run to draw as horizontal lines; repeatable"
    )
    curves.add_argument("--out", metavar="FILE.png", help="default: TABLE-COLUMN.png beside the table")
    curves.set_defaults(module="sweep_figure")

    weights = commands.add_parser("weights", help="weights from elsewhere: which are here, fetching, checking, converting them")
    actions = weights.add_subparsers(dest="action", required=True, metavar="ACTION")
    shown = actions.add_parser("status", parents=[common], help="every external file: purpose, licence, size, where it is")
    fetch = actions.add_parser("fetch", parents=[common], help="download files that are not here yet")
    verify = actions.add_parser("verify", parents=[common], help="compare files with their published hashes")
    for action in (fetch, verify):
        action.add_argument("names", nargs="*", metavar="NAME", help="as in `weights status`")
    fetch.add_argument("--suite", help="all that this suite uses")
    for action in (shown, verify):
        action.add_argument(
            "--set", action="append", default=[], metavar="weights.NAME=PATH", dest="overrides", help="a file of your own"
        )
    shown.add_argument("--json", action="store_true", help="print one JSON document instead of tables")
    convert = actions.add_parser("convert", parents=[common], help="a public SiT, DMF or VFM checkpoint into our format")
    convert.add_argument("file", metavar="FILE", help=".pt, .pth or .safetensors")
    convert.add_argument("out", nargs="?", metavar="DIR", help="default: where the suite looks for its weights")
    convert.add_argument("--suite", default="imagenet256", help="whose networks these are (default: imagenet256)")
    convert.add_argument("--set", action="append", default=[], metavar="convert.KEY=VALUE", dest="overrides")
    weights.set_defaults(module="weights")

    doctor = commands.add_parser("doctor", parents=[common], help="whether this machine is ready, and what it lacks")
    doctor.add_argument("--json", action="store_true", help="print one JSON document instead of a page")
    doctor.set_defaults(module="doctor")

    listing = commands.add_parser("list", parents=[common], help="what is installed")
    listing.add_argument("kind", nargs="?", choices=["methods", "tasks", "suites", "metrics", "stages"])
    listing.set_defaults(module="list")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    options = build_parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        for path in options.plugin:
            load_plugin(path)
        return import_module(f"vfmbench.commands.{options.module}").main(options)
    except UserError as error:
        if options.debug:
            raise
        print(f"vfmbench: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        # Whoever read the output has seen enough; closing it again at exit must not complain either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("vfmbench: interrupted; what was finished is saved, the same command (without --fresh) resumes.", file=sys.stderr)
        return EXIT_INTERRUPTED
    except Exception as error:
        if options.debug:
            raise
        print(f"vfmbench: failed: {type(error).__name__}: {error} (--debug shows the traceback)", file=sys.stderr)
        return EXIT_FAILED


def _interrupt(signum: int, frame: Any) -> None:
    raise KeyboardInterrupt
