"""Files that survive a kill and a second process: replaced in one step, and guarded by a lock."""

from __future__ import annotations

import fcntl
import hashlib
import os
import secrets
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

from vfmbench.errors import UserError

SETTLED_SECONDS = 1.0


def file_sha256(path: Path) -> str:
    """Hash of a file of any size, read piece by piece, once a process as long as the file stays as it is. Raises OSError."""
    found = path.stat()
    # Two changes of a file can carry the same time, so what has just changed is not remembered.
    if time.time() - found.st_ctime < SETTLED_SECONDS:
        return _digest(path)
    return _remembered(path, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


@lru_cache(maxsize=1024)
def _remembered(path: Path, *state: int) -> str:
    return _digest(path)


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


LOCK = ".lock"
"""File in a directory that `locked_directory` holds it by; it stays there afterwards."""


class BusyError(UserError):
    """Another process is working on the same directory."""


def foreign_source_sha256(module: str) -> str | None:
    """Hash of a module's source file; None for one of this package, whose code has a version, and where there is no file."""
    file = vars(sys.modules[module]).get("__file__") if module in sys.modules else None
    return None if file is None or module.startswith("vfmbench.") else file_sha256(Path(file))


def replace_file(path: Path, write: bytes | Callable[[Path], object]) -> None:
    """Writes under a temporary name and renames: a reader sees the old file or the new one, never a part.

    Args:
        write: the content, or a function that writes it to the path it is given.
    """
    # Process ids repeat on other machines that share the folder.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    if isinstance(write, bytes):
        temporary.write_bytes(write)
    else:
        write(temporary)
    temporary.replace(path)


def file_to_write(path: Path, option: str = "out") -> Path:
    """The path itself. Raises UserError if no file can be written there, which is better learnt before the work.

    Args:
        option: that names the path.
    """
    if path.is_dir() or not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise UserError(f"--{option}: cannot write to {path}.", option)
    return path


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Holds `path` against other processes that do the same, waiting for them; for reading and replacing a shared file."""
    with path.with_name(f".{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def locked_directory(directory: Path, part: str | None = None) -> Iterator[None]:
    """Creates `directory` and holds it for one process; the lock ends with the process, however it ends.

    Args:
        part: hold only this part of it, beside the holders of other parts; the whole directory cannot be held meanwhile.

    Raises UserError if it cannot be written, BusyError if another process holds it or the part.
    """
    try:
        for ancestor in (directory, *directory.parents):
            if ancestor.exists() and not ancestor.is_dir():
                raise UserError(f"--out: {ancestor} is a file, not a directory.", "out")
        directory.mkdir(parents=True, exist_ok=True)
        # Network file systems share a lock only of a file that is open for reading, and exclude only by one for writing.
        lock = (directory / LOCK).open("a+")
    except OSError as error:
        raise UserError(f"--out: cannot write to {directory}: {error.strerror}.", "out") from error
    with lock:
        try:
            fcntl.flock(lock, (fcntl.LOCK_EX if part is None else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except OSError:
            message = f"Another process is working on {directory}; wait for it or choose another --out."
            raise BusyError(message, "out") from None
        if part is None:
            yield
        else:
            with locked_directory(directory / part):
                yield


def is_held(directory: Path) -> bool:
    """Whether some process holds the directory, or a part of it."""
    try:
        with (directory / LOCK).open("r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # no such file, or not ours to open: nobody can hold it
        return False
    return False
