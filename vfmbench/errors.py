"""How things end: the user's errors, the states of runs and images, exit codes.

Imports nothing of this package and no torch, so that commands which compute nothing start at once.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from enum import StrEnum

EXIT_FAILED, EXIT_INTERRUPTED = 1, 75
"""Exit codes of a command that failed by itself, and of one that saved what it had when it was interrupted."""


class Status(StrEnum):
    """State of a run or of one image. A closed set: tables show it, and means count only what is `done`."""

    DONE = "done"
    FAILED = "failed"
    DIVERGED = "diverged"
    SKIPPED = "skipped"
    INTERRUPTED = "interrupted"
    MISSING = "missing"


class UserError(Exception):
    """Something the user can put right: unknown name, bad value, bad file. Shown as one sentence; exit code 2."""

    exit_code = 2


class MissingError(UserError):
    """Something needed is not there (weights, data, Slurm); the message says how to get it. Exit code 3."""

    exit_code = 3


def unknown_name(kind: str, name: str, allowed: Iterable[str]) -> UserError:
    """The error for a name that is not among `allowed`: names the nearest and lists all."""
    allowed = sorted(allowed)
    near = difflib.get_close_matches(name, allowed, n=3, cutoff=0.5)
    hint = f" Did you mean {' or '.join(repr(item) for item in near)}?" if near else ""
    return UserError(f"Unknown {kind} {name!r}.{hint} Available: {', '.join(allowed) or 'none'}.")
