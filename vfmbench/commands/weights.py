"""`vfmbench weights`: which weights of others are here, fetching them, checking them."""

from __future__ import annotations

import argparse
import json
import sys

from vfmbench.errors import EXIT_FAILED, MissingError, UserError, unknown_name
from vfmbench.options import parse_overrides, validate
from vfmbench.registry import load_suite
from vfmbench.reporting import console
from vfmbench.reporting.weights_table import document, page, verdict
from vfmbench.weights.download import fetch
from vfmbench.weights.external_files import FILES, ExternalPaths, user_weights_folder
from vfmbench.weights.inventory import (
    convertible_statuses,
    damage,
    file_status,
    file_statuses,
    shipped_folders,
    user_folders,
)


def main(options: argparse.Namespace) -> int:
    return {"status": _status, "fetch": _fetch, "verify": _verify, "convert": _convert}[options.action](options)


def _status(options: argparse.Namespace) -> int:
    """`weights status [--set weights.NAME=PATH] [--json]`."""
    statuses, convertibles = file_statuses(_paths(options)), convertible_statuses()
    if options.json:
        print(json.dumps(document(statuses, convertibles)))
        return 0
    console.OUT.print(page(statuses, convertibles), crop=False)
    return 0


def _fetch(options: argparse.Namespace) -> int:
    """`weights fetch NAME...|all|--suite S`: one that cannot be fetched does not keep the others from being tried."""
    code = 0
    for name in _to_fetch(options):
        found = file_status(FILES[name], ExternalPaths())
        if found.problem:
            raise UserError(found.problem)
        if found.located is not None and not found.broken:
            console.ERR.print(f"{name} is there: {found.located.path}", soft_wrap=True)
            continue
        try:
            path = fetch(FILES[name])
        except MissingError as error:
            print(f"vfmbench: {error}", file=sys.stderr)
            code = error.exit_code
        else:
            console.ERR.print(f"{name}: {path}", soft_wrap=True)
    return code


def _verify(options: argparse.Namespace) -> int:
    """`weights verify [NAME...]`: external files by name, weights folders by their suite; all by default."""
    folders = [*shipped_folders(), *user_folders()]
    known = [*FILES, *dict.fromkeys(folder.name for folder in folders)]
    for name in options.names:
        if name not in known:
            raise unknown_name("weights", name, known)
    damaged = False
    chosen = options.names or known
    for found in file_statuses(_paths(options), [name for name in FILES if name in chosen]):
        damaged |= found.broken
        console.OUT.print(verdict(found), soft_wrap=True, markup=False)
    for folder in folders:
        if folder.name in chosen:
            for name, problem in damage(folder):
                damaged |= bool(problem)
                console.OUT.print(f"{folder.name}/{name}: {problem or 'ok'}", soft_wrap=True, markup=False)
    return EXIT_FAILED if damaged else 0


def _convert(options: argparse.Namespace) -> int:
    """`weights convert FILE [DIR] [--suite S] [--set convert.KEY=VALUE]`."""
    # Reads networks, which the other actions do without.
    from vfmbench.weights.conversion import convert

    suite = load_suite(options.suite)
    values = parse_overrides(options.overrides, ["convert"]).get("convert", {})
    folder = user_weights_folder(suite.name) if options.out is None else options.out
    for line in convert(options.file, folder, suite, values).report():
        console.OUT.print(line, soft_wrap=True, markup=False)
    return 0


def _paths(options: argparse.Namespace) -> ExternalPaths:
    return validate(ExternalPaths, parse_overrides(options.overrides, ["weights"]).get("weights", {}), "weights.")


def _to_fetch(options: argparse.Namespace) -> list[str]:
    """The files asked for by name, by suite, or all; each once."""
    names = list(options.names)
    if options.suite is not None:
        names += load_suite(options.suite).external_names
    if not names and options.suite is None:
        raise UserError(f"weights fetch takes names ({', '.join(FILES)}), all, or --suite SUITE.")
    if "all" in names:
        return list(FILES)
    for name in names:
        if name not in FILES:
            raise unknown_name("weights", name, [*FILES, "all"])
    return list(dict.fromkeys(names))
