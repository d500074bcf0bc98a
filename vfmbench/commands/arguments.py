"""What each command takes on the command line: options of a run from `RunConfig`, and the command's own.

Apart from what the commands do, so that `--help` and a mistyped word are answered without torch.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

from vfmbench.registry import figures

if TYPE_CHECKING:
    from pydantic import BaseModel

Parser = argparse.ArgumentParser


def add_fields(parser: Parser, model: type[BaseModel], names: Iterable[str]) -> None:
    """A flag for each of the named fields of an options block: its name, description, default and choices.

    Values stay the words that were typed, for the model to read, so that what it allows is said in one place.
    """
    for name in names:
        field = model.model_fields[name]
        optional = type(None) in get_args(field.annotation)
        kind: Any = get_args(field.annotation)[0] if optional else field.annotation
        settings: dict[str, Any] = {"required": field.is_required()}
        if kind is bool:
            settings["action"] = argparse.BooleanOptionalAction if field.default else "store_true"
        elif get_origin(kind) is Literal:
            settings["choices"] = get_args(kind)
        else:
            settings["metavar"] = {int: "N", float: "X", Path: "DIR", tuple: "A,B"}.get(get_origin(kind) or kind)
        default = None if field.is_required() else field.default
        shown = "" if default is None or default is False else f"(default: {default})"
        text = f"{field.description or ''} {shown}".strip().replace("%", "%%")
        parser.add_argument("--" + name.replace("_", "-"), default=default, help=text, **settings)


def listed(text: str) -> list[str]:
    """The parts of a comma-separated list."""
    return [part.strip() for part in text.split(",") if part.strip()]


def count(text: str) -> int:
    """A whole number of at least 1."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"takes a whole number of at least 1, got {text!r}")
    return int(text)


def everywhere(parser: Parser) -> None:
    """What all commands take."""
    parser.add_argument("--plugin", action="append", default=[], metavar="FILE", help="Python file that registers parts")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")


def of_a_run(parser: Parser, *names: str) -> None:
    """Some of the options that a run has too."""
    from vfmbench.config import RunConfig

    add_fields(parser, RunConfig, names)


def running(parser: Parser, without: Sequence[str] = ()) -> None:
    """Options of a run but for those named in `without`, and how to print what came out."""
    from vfmbench.config import RunConfig

    add_fields(parser, RunConfig, [name for name in RunConfig.model_fields if name not in (*without, "options")])
    overriding(parser, "e.g. task.std=1.5 method.steps=4 latent_dps.step_size=0.3")
    printing(parser)


def overriding(parser: Parser, text: str, metavar: str = "KEY=VALUE") -> None:
    parser.add_argument("--set", action="append", default=[], metavar=metavar, dest="overrides", help=f"{text}; repeatable")


def printing(parser: Parser, instead: str = "a table") -> None:
    parser.add_argument("--json", action="store_true", help=f"print one JSON document instead of {instead}")


def workers(parser: Parser, what: str) -> None:
    parser.add_argument("--workers", type=count, metavar="N", help=f"{what} (default: one for each core)")


def run(parser: Parser) -> None:
    running(parser)
    parser.add_argument(
        "--steps",
        type="method.steps={}".format,
        action="append",
        dest="overrides",
        metavar="N",
        help="network steps of the method: --set method.steps=N",
    )


def compare(parser: Parser) -> None:
    running(parser, ["method", "task"])
    parser.add_argument("--methods", type=listed, metavar="A,B", help="default: those that the suite names, else all")
    parser.add_argument("--tasks", type=listed, metavar="C,D", help="default: all of the suite")


def preview(parser: Parser) -> None:
    running(parser, ["method"])


def bench(parser: Parser) -> None:
    running(parser, ["method", "task"])
    parser.add_argument("--methods", type=listed, metavar="A,B", help="default: all")
    parser.add_argument("--task", help="default: the suite's first")
    parser.add_argument("--largest-batch", type=count, default=256, metavar="N", help="where the search stops (default: 256)")


def train(parser: Parser) -> None:
    parser.add_argument("stage", help="features, flow, frozen_adapter, vfm or all")
    of_a_run(parser, "suite", "device", "fresh")
    overriding(parser, "options of stages, data.* and weights.*", "STAGE.KEY=VALUE")
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: results/training/SUITE")


def metrics(parser: Parser) -> None:
    parser.add_argument(
        "samples", type=Path, metavar="DIR", help="a run directory, or a folder of images (then with --reference)"
    )
    parser.add_argument(
        "--reference",
        type=Path,
        metavar="FOLDER",
        help="the true images, of the same names; DIR may hold a folder NAME of several samples in place of an image NAME",
    )
    parser.add_argument("--metrics", type=listed, metavar="A,B", help="only these metrics (default: all)")
    parser.add_argument(
        "--features",
        type=listed,
        metavar="A,B",
        help="feature spaces, with --reference: inception, dino (default: all whose weights are there)",
    )
    overriding(parser, "weights.*, and data.* of a run's suite")
    of_a_run(parser, "device")
    parser.add_argument("--out", type=Path, metavar="FILE", help="with --reference: also write the JSON document to this file")
    printing(parser)


def tune(parser: Parser) -> None:
    of_a_run(parser, "suite")
    parser.add_argument("--method", type=listed, metavar="A,B", help="default: all that have a grid for the suite")
    parser.add_argument("--task", type=listed, metavar="C,D", help="default: all that the suite's YAML file names")
    overriding(parser, "data.*, weights.* or tuning.*")
    parser.add_argument("--out", type=Path, metavar="FILE", help="the choices (default: the file that --preset tuned reads)")
    parser.add_argument(
        "--trials",
        type=Path,
        metavar="FILE",
        help="the evidence (default: in results/tuned/, by the name of the choices' file)",
    )
    parser.add_argument(
        "--runs", type=Path, default=Path("results/tuning"), metavar="DIR", help="the trials' runs (default: results/tuning)"
    )
    workers(parser, "processes of one thread each")


def launching(parser: Parser) -> None:
    parser.add_argument(
        "--executor",
        default="auto",
        choices=["auto", "slurm", "local", "debug"],
        help="slurm; local: processes of this machine; debug: one after the other in this process; auto: slurm, else local",
    )
    workers(parser, "local processes at a time")
    overriding(parser, "for all runs of the sweep, whatever its file says, e.g. data.path=DIR num_images=8")
    parser.add_argument("--profile", metavar="NAME|FILE", help="what Slurm is asked for (default: the file's, else cpu)")
    parser.add_argument("--wait", action="store_true", help="with Slurm: wait until no job is queued or running")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="folder of runs/, training/, sweeps/ (default: the file's or results)"
    )


def sweep(parser: Parser) -> None:
    parser.add_argument("file", type=Path, metavar="FILE", help="e.g. slurm/smoke.yaml")
    launching(parser)
    parser.add_argument("--dry-run", action="store_true", help="print the jobs and an estimate of their time, and run nothing")


def status(parser: Parser) -> None:
    parser.add_argument("target", type=Path, metavar="FILE|DIR", help="a sweep's YAML file, or a folder of runs")
    launching(parser)
    parser.add_argument("--merge", action="store_true", help="finish runs whose parts are all sampled")
    parser.add_argument(
        "--retry", choices=["failed"], help="start those jobs of the sweep again that failed or were interrupted or cancelled"
    )


def table(parser: Parser) -> None:
    parser.add_argument("folders", type=Path, nargs="+", metavar="DIR", help="run directories, or folders above them")
    parser.add_argument("--tasks", type=listed, metavar="A,B", help="default: all")
    parser.add_argument("--methods", type=listed, metavar="C,D", help="also their order (default: all)")
    parser.add_argument("--reference", metavar="METHOD", help="test every method against this one (or a run's hash)")
    parser.add_argument("--format", default="text", choices=["text", "markdown", "latex"])
    printing(parser, "tables")


def figure(parser: Parser) -> None:
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="KIND")
    for kind in figures.names():
        of_runs = kinds.add_parser(kind, help="from stored runs")
        of_runs.add_argument("folders", type=Path, nargs="+", metavar="DIR", help="runs of one task, or folders above them")
        of_runs.add_argument(
            "--out", type=Path, metavar="FILE.png", help=f"default: {kind}.png in the folder that all runs lie in"
        )
        everywhere(of_runs)
    curves = kinds.add_parser("sweep", help="metrics of a sweep's table over one of its options")
    curves.add_argument("table", type=Path, metavar="TABLE.csv", help="a row for each run, as `vfmbench sweep` writes it")
    curves.add_argument("--x", required=True, metavar="COLUMN", help="e.g. tau, which finds train.tau too")
    curves.add_argument("--metrics", type=listed, required=True, metavar="A,B", help="a panel for each")
    curves.add_argument(
        "--where", action="append", default=[], metavar="COLUMN=VALUE", help="only rows with this value, or none; repeatable"
    )
    curves.add_argument(
        "--by", type=listed, default=[], metavar="C,D", help="columns whose values make a line each: colour, marker, dashes"
    )
    curves.add_argument(
        "--reference",
        type=Path,
        action="append",
        default=[],
        metavar="RUN_DIR",
        help="a run to draw as horizontal lines; repeatable",
    )
    curves.add_argument("--out", type=Path, metavar="FILE.png", help="default: TABLE-COLUMN.png beside the table")
    curves.set_defaults(module="sweep_figure")
    everywhere(curves)


def weights(parser: Parser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    shown = actions.add_parser("status", help="every external file: purpose, licence, size, where it is")
    fetch = actions.add_parser("fetch", help="download files that are not here yet")
    verify = actions.add_parser("verify", help="compare files with their published hashes")
    for action in (fetch, verify):
        action.add_argument("names", nargs="*", metavar="NAME", help="as in `weights status`")
    fetch.add_argument("--suite", help="all that this suite uses")
    for action in (shown, verify):
        overriding(action, "a file of your own", "weights.NAME=PATH")
    printing(shown, "tables")
    convert = actions.add_parser("convert", help="a public SiT, DMF or VFM checkpoint into our format")
    convert.add_argument("file", type=Path, metavar="FILE", help=".pt, .pth or .safetensors")
    convert.add_argument("out", type=Path, nargs="?", metavar="DIR", help="default: where the suite looks for its weights")
    convert.add_argument("--suite", default="imagenet256", help="whose networks these are (default: imagenet256)")
    overriding(convert, "what the file does not say", "convert.KEY=VALUE")
    for action in (shown, fetch, verify, convert):
        everywhere(action)


def doctor(parser: Parser) -> None:
    printing(parser, "a page")


def check_sampler(parser: Parser) -> None:
    parser.add_argument("file", metavar="FILE", help="Python file that registers them")
    parser.add_argument("--suite", metavar="S", help="where to try them (default: every suite of small images)")
    overriding(parser, "options of the samplers", "method.KEY=VALUE")
    of_a_run(parser, "device")
    parser.set_defaults(module="check_sampler")


def listing(parser: Parser) -> None:
    parser.add_argument("kind", nargs="?", choices=["methods", "tasks", "suites", "metrics", "stages"])


COMMANDS: dict[str, tuple[str, Callable[[Parser], None]]] = {
    "run": ("sample and score one method on one task", run),
    "compare": ("several methods and tasks, then one table", compare),
    "preview": ("draw truth, observation, adjoint and pseudo-inverse of a task", preview),
    "bench": ("latency, throughput, memory, FLOPs of methods; timing only", bench),
    "train": ("train one stage of a suite's networks, or all", train),
    "metrics": ("score stored samples, or a folder of images against the true ones, without sampling", metrics),
    "tune": ("choose methods' options on the validation split", tune),
    "sweep": ("a grid of runs, and of trainings before them, from a YAML file (slurm/README.md)", sweep),
    "status": ("what of a sweep, or of the runs in a folder, is done, running, failed or missing", status),
    "table": ("tables from stored runs, one for each task; runs no model", table),
    "figure": ("a figure from stored runs; runs no model", figure),
    "weights": ("weights from elsewhere: which are here, fetching, checking, converting them", weights),
    "doctor": ("whether this machine is ready, and what it lacks", doctor),
    "check-sampler": ("whether a plugin's samplers and tasks hold what the harness relies on", check_sampler),
    "list": ("what is installed", listing),
}
"""What each command does in a line, and what adds its arguments."""
