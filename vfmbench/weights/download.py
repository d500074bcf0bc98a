"""Fetches files of weights: resumed, checked by hash, and in their place only when they are whole."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from vfmbench.errors import MissingError, UserError
from vfmbench.files import exclusive, file_sha256
from vfmbench.weights.external_files import ExternalFile, HashState, Located, Place, hash_state

OFFLINE_VARIABLES = ("VFMBENCH_OFFLINE", "HF_HUB_OFFLINE")
_NO, _RANGE_NOT_SATISFIABLE = ("", "0", "false", "no", "off"), 416


def offline_by() -> str | None:
    """The environment variable that forbids downloads; None if none does."""
    return next((name for name in OFFLINE_VARIABLES if os.environ.get(name, "").lower() not in _NO), None)


def fetch(file: ExternalFile) -> Path:
    """Downloads a file to `file.target`, with a progress bar on standard error, and returns that path.

    What has arrived stays beside it as `<name>.part` when the transfer breaks or is interrupted, and is not asked for again.

    Raises:
        MissingError: downloads are forbidden, the server cannot be reached or breaks off, or sends another file; the message
            names the address and where to put the file by hand.
        UserError: the file cannot be written.
    """
    variable = offline_by()
    if variable is not None:
        raise MissingError(f"{variable} is set, so nothing is fetched. {_by_hand(file)}")
    part = file.target.with_name(file.target.name + ".part")
    try:
        part.parent.mkdir(parents=True, exist_ok=True)
        with exclusive(file.target):
            if not _is_there(file):  # else another process has fetched it meanwhile
                _transfer(file, part)
                _check(file, part)
                part.replace(file.target)
    except OSError as error:
        raise UserError(f"Cannot write {file.target}: {error.strerror or error}.") from error
    return file.target


def _is_there(file: ExternalFile) -> bool:
    if not file.target.is_file():
        return False
    state, _ = hash_state(file, Located(file.target, Place.CACHE))
    return state in (HashState.OK, HashState.UNKNOWN)


def _transfer(file: ExternalFile, part: Path) -> None:
    """Appends what is lacking to `part`; Hugging Face Hub's transfer, of any address, tries again where it breaks."""
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import HfHubHTTPError

    present = part.stat().st_size if part.exists() else 0
    if file.megabytes * 10**6 - present > shutil.disk_usage(part.parent).free:
        raise UserError(f"There is no room for {file.name} ({file.megabytes} MB) in {part.parent}.")
    try:
        with part.open("ab") as stream:
            http_get(file.url, stream, resume_size=present, displayed_filename=file.name)
        return
    except HfHubHTTPError as error:
        status = error.response.status_code
        reason = f"the server answers {status}"
        if present and status == _RANGE_NOT_SATISFIABLE:
            # It begins behind the end: all is there, or too much.
            if not file.is_published(file_sha256(part)):
                part.unlink()
                _transfer(file, part)
            return
    except Exception as error:  # of whichever library sends the requests
        if isinstance(error, OSError) and error.errno is not None:
            raise
        reason = _cause(error)
    arrived = part.stat().st_size / 10**6
    kept = f"; {arrived:.0f} of {file.megabytes} MB are kept, run it again to go on" if arrived else ""
    raise MissingError(f"Cannot fetch {file.name} ({reason}{kept}). {_by_hand(file)}") from None


def _check(file: ExternalFile, part: Path) -> None:
    sha256 = file_sha256(part)
    if file.is_published(sha256) is False:
        # To resume it would give the same again.
        part.unlink()
        raise MissingError(
            f"{file.url} sent another file than the published one: its SHA-256 begins with {sha256[:8]}, not "
            f"{file.sha256[0][:8]}. Nothing was stored. {_by_hand(file)}"
        )


def _by_hand(file: ExternalFile) -> str:
    return (
        f"By hand: get {file.url} ({file.megabytes} MB) on a machine with a network and put it at {file.target}, or name it in "
        f"{file.variable} or {file.option}."
    )


def _cause(error: BaseException) -> str:
    """What the system said, where it did ("Connection refused"), else the error's first line."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        cause = cause.__cause__ or cause.__context__
    return str(error).partition("\n")[0] or type(error).__name__
