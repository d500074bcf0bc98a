"""Files that survive a kill and a second process: replaced in one step, and guarded by a lock."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from vfmbench.interfaces import UserError


def replace_file(path: Path, write: bytes | Callable[[Path], None]) -> None:
    """Writes under a temporary name and renames: a reader sees the old file or the new one, never a part.

    Args:
        write: the content, or a function that writes it to the path it is given.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    if isinstance(write, bytes):
        temporary.write_bytes(write)
    else:
        write(temporary)
    temporary.replace(path)


def file_to_write(path: Path) -> Path:
    """The path itself. Raises UserError if no file can be written there, which is better learnt before the work."""
    if path.is_dir() or not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise UserError(f"--out: cannot write to {path}.")
    return path


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Holds `path` against other processes that do the same, waiting for them; for reading and replacing a shared file."""
    with path.with_name(f".{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def locked_directory(directory: Path) -> Iterator[None]:
    """Creates `directory` and holds it for one process; the lock ends with the process, however it ends.

    Raises UserError if it cannot be written or another process holds it.
    """
    try:
        for ancestor in (directory, *directory.parents):
            if ancestor.exists() and not ancestor.is_dir():
                raise UserError(f"--out: {ancestor} is a file, not a directory.")
        directory.mkdir(parents=True, exist_ok=True)
        lock = (directory / ".lock").open("w")
    except OSError as error:
        raise UserError(f"--out: cannot write to {directory}: {error.strerror}.") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"Another process is working on {directory}; wait for it or choose another --out.") from None
        yield
