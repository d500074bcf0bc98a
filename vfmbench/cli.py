"""The command line: finds the command, and says what its errors come to. The commands are in `vfmbench.commands`."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from typing import Any

from vfmbench import __version__
from vfmbench.commands.arguments import COMMANDS, everywhere
from vfmbench.config import first_command
from vfmbench.errors import EXIT_FAILED, EXIT_INTERRUPTED, UserError

_NESTED = ("figure", "weights")  # whose own commands take what all take


def build_parser(command: str = "") -> argparse.ArgumentParser:
    """The grammar of the command line with the arguments of one command; those of all take longer than `--help` may."""
    parser = argparse.ArgumentParser(
        prog="vfmbench",
        description=f"Measure posterior samplers of inverse problems: `{first_command()}`.",
        epilog="Exit codes: 0 done; 1 failed; 2 bad usage or configuration; 3 weights or data missing; 75 interrupted.",
    )
    parser.add_argument("--version", action="version", version=f"vfmbench {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (summary, add_arguments) in COMMANDS.items():
        own = commands.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.")
        own.set_defaults(module=name)
        if name == command:
            add_arguments(own)
            if name not in _NESTED:
                everywhere(own)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in arguments
    try:
        _load_plugins(arguments)
        options = build_parser(next(iter(arguments), "")).parse_args(arguments)
        signal.signal(signal.SIGTERM, _interrupt)
        return import_module(f"vfmbench.commands.{options.module}").main(options)
    except UserError as error:
        if debug:
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
        if debug:
            raise
        print(f"vfmbench: failed: {type(error).__name__}: {error} (--debug shows the traceback)", file=sys.stderr)
        return EXIT_FAILED


def _load_plugins(arguments: Sequence[str]) -> None:
    """Before the command line is read as a whole: a plugin may add to what it may say."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--plugin", action="append", default=[])
    with suppress(argparse.ArgumentError):  # the whole parser tells it
        plugins = parser.parse_known_args(arguments)[0].plugin
        if plugins:
            from vfmbench.registry import load_plugin

            for path in plugins:
                load_plugin(path)


def _interrupt(signum: int, frame: Any) -> None:
    raise KeyboardInterrupt
