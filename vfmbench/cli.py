"""The command line: parses, builds configuration objects, makes one call each, prints."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vfmbench.base import MissingError, UserError

EXIT_FAILED, EXIT_INTERRUPTED = 1, 75


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vfmbench",
        description="Measure posterior samplers of inverse problems: `vfmbench run --method vfm --task gaussian_deblur`.",
        epilog="Exit codes: 0 done; 1 failed; 2 bad usage or configuration; 3 weights or data missing; 75 interrupted.",
    )
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
    run.set_defaults(handler=_run)

    compare = commands.add_parser("compare", parents=[running], help="several methods and tasks, then one table")
    compare.add_argument("--methods", metavar="A,B", help="default: those that the suite names, else all")
    compare.add_argument("--tasks", metavar="C,D", help="default: all of the suite")
    compare.set_defaults(handler=_compare)

    preview = commands.add_parser(
        "preview", parents=[running], help="draw truth, observation, adjoint and pseudo-inverse of a task"
    )
    preview.add_argument("--task", required=True)
    preview.set_defaults(handler=_preview)

    bench = commands.add_parser("bench", parents=[running], help="latency, throughput, memory, FLOPs of methods; timing only")
    bench.add_argument("--methods", metavar="A,B", help="default: all")
    bench.add_argument("--task", help="default: the suite's first")
    bench.add_argument("--largest-batch", type=int, default=256, metavar="N", help="where the search stops (default: 256)")
    bench.set_defaults(handler=_bench)

    train = commands.add_parser("train", parents=[common], help="train one stage of a suite's networks, or all")
    train.add_argument("stage", help="features, flow, frozen_adapter, vfm or all")
    train.add_argument("--suite", default="digits")
    train.add_argument("--set", action="append", default=[], metavar="STAGE.KEY=VALUE", dest="overrides")
    train.add_argument("--out", metavar="DIR", help="default: results/training/SUITE")
    train.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    train.add_argument("--fresh", action="store_true", help="start over instead of resuming")
    train.set_defaults(handler=_train)

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
    metrics.set_defaults(handler=_metrics)

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
    tune.set_defaults(handler=_tune)

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
    sweep.set_defaults(handler=_sweep)

    status = commands.add_parser(
        "status", parents=[launching], help="what of a sweep, or of the runs in a folder, is done, running, failed or missing"
    )
    status.add_argument("target", metavar="FILE|DIR", help="a sweep's YAML file, or a folder of runs")
    status.add_argument("--merge", action="store_true", help="finish runs whose parts are all sampled")
    status.add_argument(
        "--retry", choices=["failed"], help="start those jobs of the sweep again that failed or were interrupted or cancelled"
    )
    status.set_defaults(handler=_status)

    table = commands.add_parser("table", parents=[common], help="tables from stored runs, one for each task; runs no model")
    table.add_argument("folders", nargs="+", metavar="DIR", help="run directories, or folders above them")
    table.add_argument("--tasks", metavar="A,B", help="default: all")
    table.add_argument("--methods", metavar="C,D", help="also their order (default: all)")
    table.add_argument("--reference", metavar="METHOD", help="test every method against this one (or a run's hash)")
    table.add_argument("--format", default="text", choices=["text", "markdown", "latex"])
    table.add_argument("--json", action="store_true", help="print one JSON document instead of tables")
    table.set_defaults(handler=_table)

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
        of_runs.set_defaults(handler=_figure)
    curves = kinds.add_parser("sweep", parents=[common], help="metrics of a sweep's table over one of its options")
    curves.add_argument("table", metavar="TABLE.csv", help="a row for each run, as `vfmbench sweep` writes it")
    curves.add_argument("--x", required=True, metavar="COLUMN", help="e.g. tau, which finds train.tau too")
    curves.add_argument("--metrics", required=True, metavar="A,B", help="a panel for each")
    curves.add_argument("--by", metavar="C,D", help="columns whose values make a line each: colour, marker, dashes")
    curves.add_argument(
        "--reference", action="append", default=[], metavar="RUN_DIR", help="a run to draw as horizontal lines; repeatable"
    )
    curves.add_argument("--out", metavar="FILE.png", help="default: TABLE-COLUMN.png beside the table")
    curves.set_defaults(handler=_sweep_figure)

    listing = commands.add_parser("list", parents=[common], help="what is installed")
    listing.add_argument("kind", nargs="?", choices=["methods", "tasks", "suites", "metrics", "stages"])
    listing.set_defaults(handler=_list)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    options = build_parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        from vfmbench.registry import load_plugin

        for path in options.plugin:
            load_plugin(path)
        return options.handler(options)
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


def _split(text: str | None) -> list[str] | None:
    return None if text is None else [part.strip() for part in text.split(",") if part.strip()]


def _configs(options: argparse.Namespace, pairs: Sequence[tuple[str, str]]) -> list[Any]:
    """One RunConfig for each (method, task). `--set method.key` is for every method, `--set NAME.key` for one."""
    from vfmbench.config import RUN_SECTIONS, RunConfig, parse_overrides, validate

    methods = {method for method, _ in pairs}
    overrides = parse_overrides(options.overrides, [*RUN_SECTIONS, *sorted(methods)])
    if getattr(options, "steps", None) is not None:
        overrides.setdefault("method", {})["steps"] = options.steps
    values = {
        "suite": options.suite,
        "split": options.split,
        "num_images": options.num_images,
        "samples": options.samples,
        "seed": options.seed,
        "preset": options.preset,
        "device": options.device,
        "batch_size": None if options.batch_size == "auto" else options.batch_size,
        "out": options.out,
        "metrics": _split(options.metrics),
        "fresh": options.fresh,
    }

    def sections(method: str) -> dict[str, dict[str, Any]]:
        own = {**overrides.get("method", {}), **overrides.get(method, {})}
        return {**{key: value for key, value in overrides.items() if key in RUN_SECTIONS}, "method": own}

    return [
        validate(RunConfig, {**values, "method": method, "task": task, "options": sections(method)}, "--")
        for method, task in pairs
    ]


def _run(options: argparse.Namespace) -> int:
    from vfmbench.base import Status
    from vfmbench.reporting import console, grid, tables
    from vfmbench.running.runner import execute, plan

    checked = plan(_configs(options, [(options.method, options.task)])[0])
    with console.progress(f"{options.method} on {options.task}") as update:
        result = execute(checked, update)
    if options.json:
        print(json.dumps(tables.run_document(result)))
    if result.note:
        print(f"vfmbench: {result.note}", file=sys.stderr)
    if result.status != Status.DONE:
        return UserError.exit_code
    picture = grid.posterior_grid(checked)
    if not options.json:
        _print_metrics(tables.run_table(result), result.results().metrics())
        console.OUT.print(
            f"{tables.cost_line(result)}\nSamples, records and metrics: {result.results().directory}\nPicture: {picture}"
        )
    return 0


def _compare(options: argparse.Namespace) -> int:
    from vfmbench.base import Status
    from vfmbench.registry import samplers, suites
    from vfmbench.reporting import console, grid, rendering, tables
    from vfmbench.reporting.comparison import compare

    suite = suites.get(options.suite)({})
    methods = _split(options.methods) or list(suite.methods) or samplers.names()
    tasks = _split(options.tasks) or list(suite.task_names)
    pairs = [(method, task) for task in tasks for method in methods]
    cells = [_checked_cell(config) for config in _configs(options, pairs)]
    results: dict[str, dict[str, Any]] = {}
    pictures = []
    for task in tasks:
        row = {method: cell for (method, other), cell in zip(pairs, cells, strict=True) if other == task}
        results[task] = {method: _run_cell(method, task, cell) for method, cell in row.items()}
        finished = [cell for method, cell in row.items() if results[task][method].status == Status.DONE]
        if finished:
            pictures.append(grid.comparison_grid(finished))
    if options.json:
        print(json.dumps({task: {m: tables.run_document(r) for m, r in row.items()} for task, row in results.items()}))
    else:
        for task, row in results.items():
            entries = [_entry(method, result) for method, result in row.items()]
            first = next((entry.heading for entry in entries if entry.run is not None), None)
            console.OUT.print(rendering.to_text(compare(task, entries, first)))
        console.OUT.print(f"{rendering.legend('the first finished method')} {tables.comparison_note(options.preset)}")
        console.OUT.print("\n".join(f"Picture: {path}" for path in pictures))
    statuses = {run.status for row in results.values() for run in row.values()}
    if Status.FAILED in statuses:
        return EXIT_FAILED
    if Status.DONE in statuses:
        return 0
    return MissingError.exit_code if Status.MISSING in statuses else UserError.exit_code


def _entry(method: str, result: Any) -> Any:
    """The column of a comparison for one run."""
    from vfmbench.base import Status
    from vfmbench.reporting.comparison import Entry
    from vfmbench.reporting.stored import StoredRun

    stored = StoredRun.read(result.results()) if result.status == Status.DONE else None
    return Entry(method, result.status, result.note, stored)


def _checked_cell(config: Any) -> Any:
    """The cell's plan, or its MissingError: what one method lacks must not cost the others. Other errors are raised."""
    from vfmbench.running.runner import plan

    try:
        return plan(config)
    except MissingError as error:
        return error
    except UserError as error:
        raise UserError(f"{config.method} on {config.task}: {error}") from error


def _run_cell(method: str, task: str, cell: Any) -> Any:
    """The cell's results; a failure becomes a status with its reason."""
    from vfmbench.base import Status
    from vfmbench.reporting import console, grid
    from vfmbench.running.runner import Run, execute

    if isinstance(cell, MissingError):
        return Run(None, Status.MISSING, str(cell))
    try:
        with console.progress(f"{method} on {task}") as update:
            result = execute(cell, update)
        if result.status == Status.DONE:
            grid.posterior_grid(cell)
        return result
    except MissingError as error:
        return Run(cell.store, Status.MISSING, str(error))
    except Exception as error:
        return Run(cell.store, Status.FAILED, f"{type(error).__name__}: {error}")


def _table(options: argparse.Namespace) -> int:
    from vfmbench.reporting import console, rendering
    from vfmbench.reporting.comparison import tables_of

    folders = [Path(folder) for folder in options.folders]
    comparisons = tables_of(folders, _split(options.tasks), _split(options.methods), options.reference)
    if options.json:
        print(json.dumps([rendering.document(comparison) for comparison in comparisons]))
        return 0
    for comparison in comparisons:
        rendered = rendering.FORMATS[options.format](comparison)
        if isinstance(rendered, str):
            print(f"{rendered}\n")
        else:
            console.OUT.print(rendered)
    legend = rendering.legend(options.reference)
    print(f"% {legend}" if options.format == "latex" else legend)
    return 0


def _figure(options: argparse.Namespace) -> int:
    from vfmbench.reporting.alignment import alignment_figure
    from vfmbench.reporting.calibration import calibration_figure
    from vfmbench.reporting.densities import densities_figure

    draw = {"calibration": calibration_figure, "densities": densities_figure, "alignment": alignment_figure}[options.kind]
    print(draw([Path(folder) for folder in options.folders], options.out and Path(options.out)))
    return 0


def _sweep_figure(options: argparse.Namespace) -> int:
    from vfmbench.reporting.sweep_figure import sweep_figure

    metrics, groups = _split(options.metrics) or [], _split(options.by) or []
    if not metrics:
        raise UserError("--metrics names no metric.")
    references = [Path(folder) for folder in options.reference]
    print(sweep_figure(Path(options.table), options.x, metrics, groups, references, options.out and Path(options.out)))
    return 0


def _preview(options: argparse.Namespace) -> int:
    from vfmbench.reporting import grid
    from vfmbench.running.runner import plan

    checked = plan(_configs(options, [("adjoint", options.task)])[0])
    print(grid.task_preview(checked))
    return 0


def _bench(options: argparse.Namespace) -> int:
    from dataclasses import asdict

    from vfmbench.registry import samplers, suites
    from vfmbench.reporting import console, tables
    from vfmbench.running.bench import bench, matrix_rate
    from vfmbench.running.runner import choose_device

    if options.largest_batch < 1:
        raise UserError(f"--largest-batch takes a whole number of at least 1, got {options.largest_batch}.")
    methods = _split(options.methods) or samplers.names()
    task = options.task or suites.get(options.suite)({}).task_names[0]
    cells = [_checked_cell(config) for config in _configs(options, [(method, task) for method in methods])]
    rate = matrix_rate(choose_device(options.device))
    costs, notes = {}, {}
    with console.progress(f"timing on {task}", "methods") as update:
        for done, (method, cell) in enumerate(zip(methods, cells, strict=True)):
            update(done, len(methods))
            try:
                if isinstance(cell, MissingError):
                    raise cell
                supported, reason = cell.sampler_class.supports(cell.task, cell.suite)
                if not supported:
                    raise UserError(reason)
                costs[method] = bench(cell, rate, options.largest_batch)
            except UserError as error:
                notes[method] = str(error)
            except Exception as error:
                notes[method] = f"{type(error).__name__}: {error}"
        update(len(methods), len(methods))
    if options.json:
        print(json.dumps({"costs": {method: asdict(cost) for method, cost in costs.items()}, "left_out": notes}))
    else:
        console.OUT.print(tables.bench_table(f"{options.suite}, {task}", costs, rate))
        for method, note in notes.items():
            console.OUT.print(f"{method} is left out: {note}")
    return 0


def _train(options: argparse.Namespace) -> int:
    from vfmbench.config import parse_overrides
    from vfmbench.registry import suites
    from vfmbench.reporting import console
    from vfmbench.running.runner import choose_device
    from vfmbench.training.train import train

    sections = ["data", "weights"]
    suite = suites.get(options.suite)
    stages = list(suite({}).training)
    overrides = parse_overrides(options.overrides, [*sections, *stages])
    built = suite({section: overrides.pop(section, {}) for section in sections})
    out = Path(options.out) if options.out else Path("results/training") / built.name
    train(options.stage, built, overrides, out, choose_device(options.device), options.fresh, console.ERR)
    print(f"Weights: {out} (use them with --set weights.path={out})")
    return 0


def _metrics(options: argparse.Namespace) -> int:
    from vfmbench.config import parse_overrides
    from vfmbench.reporting import console, tables
    from vfmbench.running.runner import choose_device
    from vfmbench.running.scoring import score_run

    if options.reference is not None:
        return _folder_metrics(options)
    for name in ("features", "out"):
        if getattr(options, name) is not None:
            raise UserError(f"--{name} goes with --reference; a run has its suite's feature spaces and its own directory.")
    overrides = parse_overrides(options.overrides, ["data", "weights"])
    result = score_run(Path(options.samples), _split(options.metrics), overrides, choose_device(options.device))
    if result.note:
        print(f"vfmbench: {result.note}", file=sys.stderr)
    if options.json:
        print(json.dumps(tables.run_document(result)))
    else:
        _print_metrics(tables.run_table(result), result.results().metrics())
        console.OUT.print(f"Metrics: {result.results().directory}")
    return 0


def _folder_metrics(options: argparse.Namespace) -> int:
    from vfmbench.config import parse_overrides, validate
    from vfmbench.files import file_to_write, replace_file
    from vfmbench.models.external import ExternalPaths
    from vfmbench.reporting import tables
    from vfmbench.running.runner import choose_device
    from vfmbench.running.scoring import score_folders

    paths = validate(ExternalPaths, parse_overrides(options.overrides, ["weights"]).get("weights", {}), "weights.")
    out = None if options.out is None else file_to_write(Path(options.out))
    folders = Path(options.samples), Path(options.reference)
    scores = score_folders(*folders, _split(options.features), _split(options.metrics), paths, choose_device(options.device))
    document = json.dumps(tables.folder_document(scores))
    if out is not None:
        replace_file(out, document.encode())
    if options.json:
        print(document)
    else:
        _print_metrics(tables.folder_table(scores), scores.rows)
    return 0


def _print_metrics(table: Any, rows: Sequence[dict[str, Any]]) -> None:
    """The table, and below it why metrics are missing: whole, and without line breaks in commands to copy."""
    from vfmbench.reporting import console, tables

    console.OUT.print(table)
    for line in tables.missing_reasons(rows):
        console.OUT.print(line, soft_wrap=True, markup=False)


def _tune(options: argparse.Namespace) -> int:
    from vfmbench.config import parse_overrides
    from vfmbench.reporting import console, tables
    from vfmbench.running.tuning import tune

    if options.workers is not None and options.workers < 1:
        raise UserError(f"--workers takes a whole number of at least 1, got {options.workers}.")
    out = Path(options.out or f"baselines/tuned/{options.suite}.yaml")
    with console.progress(f"tuning on {options.suite}", "trials") as update:
        chosen = tune(
            options.suite,
            _split(options.method),
            _split(options.task),
            parse_overrides(options.overrides, ["data", "weights", "tuning"]),
            out,
            Path(options.runs),
            options.workers or os.cpu_count() or 1,
            options.plugin,
            update,
        )
    console.OUT.print(tables.tuning_table(chosen))
    console.OUT.print(f"Written to {out}; use it with --preset {out}")
    return 0


def _sweep(options: argparse.Namespace) -> int:
    from vfmbench.launching import printing
    from vfmbench.launching.sweep import parse_values, prepare
    from vfmbench.reporting import console

    sweep = prepare(Path(options.file), options.out and Path(options.out), options.profile, parse_values(options.overrides))
    if options.dry_run:
        printing.print_plan(sweep, console.OUT)
        return 0
    return _launch(sweep, options)


def _launch(sweep: Any, options: argparse.Namespace) -> int:
    """Starts a sweep's chosen jobs; unless they now wait in Slurm, prints what became of them."""
    from vfmbench.launching import launch, printing, status
    from vfmbench.reporting import console

    if options.workers is not None and options.workers < 1:
        raise UserError(f"--workers takes a whole number of at least 1, got {options.workers}.")
    executor = launch.chosen_executor(options.executor)
    if executor == "slurm":
        launch.on_slurm(sweep, options.plugin, console.ERR)
        if not options.wait:
            return 0
        with console.progress(sweep.name, "jobs") as update:
            failed = launch.wait(sweep.record, update)
        if seconds := launch.overhead(sweep.record):
            console.OUT.print("Slurm: a job waited {:.1f} s and spent {:.1f} s beside its own work (medians).".format(*seconds))
    else:
        workers = options.workers or os.cpu_count() or 1
        failed = launch.here(sweep, executor, workers, options.plugin, console.ERR, console.progress)
    printing.print_status(status.rows(sweep.record), console.OUT)
    console.OUT.print(f"Table: {sweep.record.csv}")
    return EXIT_FAILED if failed else 0


def _status(options: argparse.Namespace) -> int:
    from vfmbench.launching import printing, status
    from vfmbench.launching.record import record_of
    from vfmbench.reporting import console

    target, out = Path(options.target), options.out and Path(options.out)
    if target.suffix not in (".yaml", ".yml"):
        if options.merge or options.retry:
            raise UserError("--merge and --retry take a sweep's YAML file.")
        printing.print_status(status.folder_rows(target), console.OUT)
        return 0
    if options.merge or options.retry:
        from vfmbench.launching import sweep as sweeps

        sweep = sweeps.prepare(target, out, options.profile, sweeps.parse_values(options.overrides))
        if options.merge:
            sweeps.merge_parts(sweep, console.ERR)
        if options.retry:
            return _launch(sweeps.failed_only(sweep), options)
    record = record_of(target, out)
    rows = status.rows(record)
    status.write_csv(record, rows)
    printing.print_status(rows, console.OUT)
    console.OUT.print(f"Table: {record.csv}")
    return 0


def _list(options: argparse.Namespace) -> int:
    from vfmbench import registry

    registries = {
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
                    if kind == "suites":
                        print(f"  {'':<22}tasks: {', '.join(target({}).task_names)}")
    return 0
