"""Downloads files of weights: resumable, checked by hash, and in their place only when they are whole."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Callable
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from vfmbench.errors import MissingError, UserError
from vfmbench.files import exclusive
from vfmbench.weights.external_files import ExternalFile, HashState, Located, Place, hash_state

OFFLINE_VARIABLES = ("VFMBENCH_OFFLINE", "HF_HUB_OFFLINE")

Progress = Callable[[int, int], None]
"""Called with the bytes that are there and the bytes in all (0 if the server does not say)."""

_CHUNK = 1 << 20
_SECONDS_OF_SILENCE = 30
_NO, _RANGE_NOT_SATISFIABLE, _PARTIAL_CONTENT = ("", "0", "false", "no", "off"), 416, 206


def offline_by() -> str | None:
    """The environment variable that forbids downloads; None if none does."""
    return next((name for name in OFFLINE_VARIABLES if os.environ.get(name, "").lower() not in _NO), None)


def fetch(file: ExternalFile, progress: Progress) -> Path:
    """Downloads a file to `file.target` and returns that path.

    What has arrived stays beside it as `<name>.part` when the transfer breaks or is interrupted, and is not asked for again.

    Raises:
        MissingError: downloads are forbidden, the server cannot be reached or breaks off, or sends another file; the message
            names the address and where to put the file by hand.
        UserError: the file cannot be written.
    """
    variable = offline_by()
    if variable is not None:
        raise MissingError(f"{variable} is set, so nothing is fetched. {_by_hand(file)}")
    try:
        file.target.parent.mkdir(parents=True, exist_ok=True)
        with exclusive(file.target):
            if _is_there(file):  # another process has fetched it meanwhile
                return file.target
            part = file.target.with_name(file.target.name + ".part")
            try:
                _transfer(file, part, progress)
            except (URLError, HTTPException, TimeoutError, ConnectionError) as error:
                raise MissingError(f"Cannot fetch {file.name} ({_reason(error)}). {_by_hand(file)}") from None
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


def _transfer(file: ExternalFile, part: Path, progress: Progress) -> None:
    """Appends what is lacking to `part`, or begins anew where the server does not send the rest alone."""
    present = part.stat().st_size if part.exists() else 0
    try:
        response = _open(file.url, present)
    except HTTPError as error:
        error.close()
        if not present or error.code != _RANGE_NOT_SATISFIABLE:
            raise
        # It begins behind the end: all is there, or too much.
        if _total(error.headers.get("Content-Range")) == present:
            return
        part.unlink()
        return _transfer(file, part, progress)
    with response:
        resumed = response.status == _PARTIAL_CONTENT
        done = present if resumed else 0
        length = int(response.headers.get("Content-Length") or 0)
        total = done + length if length else 0
        if total - done > shutil.disk_usage(part.parent).free:
            raise UserError(f"There is no room for {file.name} ({total / 1e6:.0f} MB) in {part.parent}.")
        with part.open("ab" if resumed else "wb") as stream:
            progress(done, total)
            while chunk := response.read(_CHUNK):
                stream.write(chunk)
                done += len(chunk)
                progress(done, total)
    if done < total:
        raise ConnectionError(f"the transfer ended after {done / 1e6:.0f} of {total / 1e6:.0f} MB; run it again to go on")


def _open(url: str, start: int) -> HTTPResponse:
    headers = {"User-Agent": "vfmbench", "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    return urlopen(Request(url, headers=headers), timeout=_SECONDS_OF_SILENCE)


def _total(content_range: str | None) -> int | None:
    """The size in `bytes */1234`."""
    found = re.search(r"/(\d+)$", content_range or "")
    return int(found.group(1)) if found else None


def _check(file: ExternalFile, part: Path) -> None:
    with part.open("rb") as stream:
        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
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


def _reason(error: Exception) -> str:
    if isinstance(error, HTTPError):
        return f"the server answers {error.code} {error.reason}"
    if isinstance(error, TimeoutError):
        return "the server is silent"
    inner = error.reason if isinstance(error, URLError) else error
    return getattr(inner, "strerror", None) or str(inner) or type(inner).__name__
