"""How things end: the user's errors, the states of runs and images, exit codes.

Imports nothing of this package and no torch, so that commands which compute nothing start at once.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
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
    """Something the user can put right: unknown name, bad value, bad file. Shown as one sentence; exit code 2.

    Attributes:
        key: dotted key of the option that it is about, e.g. `num_images` or `method.steps`; None if it is about none. Whoever
            has read the option from a file finds its line by it.
    """

    exit_code = 2

    def __init__(self, message: str, key: str | None = None):
        super().__init__(message)
        self.key = key


class MissingError(UserError):
    """Something needed is not there (weights, data, Slurm); the message says how to get it. Exit code 3."""

    exit_code = 3


@contextmanager
def about(key: str) -> Iterator[None]:
    """Errors raised inside are about the option `key`, unless they know better.

    >>> with about("task"):
    ...     suite.task(config.task, options)
    """
    try:
        yield
    except UserError as error:
        error.key = error.key or key
        raise


def unknown_name(kind: str, name: str, allowed: Iterable[str], key: str | None = None, prefix: str = "") -> UserError:
    """The error for a name that is not among `allowed`: names the nearest and lists all.

    Args:
        key: of the option that has the name as its value, or is called so.
        prefix: what stands before the name and all others where the user writes them.
    """
    allowed = sorted(allowed)
    near = difflib.get_close_matches(name, allowed, n=3, cutoff=0.5)
    hint = f" Did you mean {' or '.join(repr(prefix + item) for item in near)}?" if near else ""
    known = ", ".join(prefix + item for item in allowed) or "none"
    return UserError(f"Unknown {kind} {prefix + name!r}.{hint} Available: {known}.", key)
