"""What every module leans on: how things end, the user's errors, the base of options.

Imports no torch, so that commands which compute nothing start at once.
"""

from __future__ import annotations

from enum import StrEnum

from pydantic import BaseModel, ConfigDict

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


class Options(BaseModel):
    """Base of every options block that `--set` can reach: unknown keys and wrong types are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
