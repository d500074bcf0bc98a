"""The page of `vfmbench weights status`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from vfmbench.weights.external_files import HashState, torch_hub_folder
from vfmbench.weights.inventory import ConvertibleStatus, FileStatus


def page(statuses: Sequence[FileStatus], convertibles: Sequence[ConvertibleStatus]) -> Group:
    """The whole page; print it with crop=False."""
    return Group(*_parts(statuses, convertibles))


def state_text(status: FileStatus) -> str:
    """One or two words."""
    if status.problem:
        return "wrong path"
    if status.located is None:
        return "missing"
    return str(status.state or "there")


def verdict(status: FileStatus) -> str:
    """One line: whether the file is what it should be."""
    name, located = status.file.name, status.located
    if status.problem:
        return f"{name}: {status.problem}"
    if located is None:
        return f"{name}: not here"
    line = f"{name}: {status.state} ({located.path})"
    if status.state == HashState.DAMAGED:
        return f"{line}: it is not the published file; `vfmbench weights fetch {name}` replaces it"
    if status.state == HashState.OTHER:
        return f"{line}: it is not the published file, and results say so"
    return line


def document(statuses: Sequence[FileStatus], convertibles: Sequence[ConvertibleStatus]) -> dict[str, Any]:
    """The same as a JSON document."""
    return {
        "files": [
            {
                "name": status.file.name,
                "purpose": status.file.purpose,
                "licence": status.file.licence,
                "megabytes": status.file.megabytes,
                "url": status.file.url,
                "known_sha256": list(status.file.sha256),
                "state": state_text(status),
                "problem": status.problem or None,
                "path": str(status.located.path) if status.located else None,
                "found_by": str(status.located.place) if status.located else None,
                "sha256": status.sha256 or None,
                "looked_for": {
                    "option": status.file.option,
                    "variable": status.file.variable,
                    "torch_hub": str(status.file.target),
                    "hugging_face": status.file.hugging_face[0] if status.file.hugging_face else None,
                },
            }
            for status in statuses
        ],
        "checkpoints": [
            {
                "purpose": status.convertible.purpose,
                "licence": status.convertible.licence,
                "megabytes": status.convertible.megabytes,
                "source": status.convertible.source,
                "suite": status.convertible.suite,
                "weights": status.convertible.weights,
                "folder": str(status.folder),
                "present": status.present or None,
            }
            for status in convertibles
        ],
    }


def _parts(statuses: Sequence[FileStatus], convertibles: Sequence[ConvertibleStatus]) -> Iterator[RenderableType]:
    yield _files(statuses)
    yield Text(
        "Each is looked for in the option weights.NAME=PATH (with --set), in the environment variable VFMBENCH_WEIGHTS_NAME "
        f"(such as VFMBENCH_WEIGHTS_INCEPTION), in torch hub's cache {torch_hub_folder()} under the name below, and in the "
        "cache of Hugging Face."
    )
    yield from (_line(f"  {status.file.name:<11} {_where(status)}") for status in statuses)
    missing = [status.file.name for status in statuses if status.broken or not status.located]
    if missing:
        yield _line(f"Fetch what is missing: vfmbench weights fetch {' '.join(missing)}")
    yield _convertibles(convertibles)
    for status in convertibles:
        yield _line(f"  {status.convertible.suite}/{status.convertible.weights}: {status.convertible.source}")
    folders = dict.fromkeys(str(status.folder) for status in convertibles)
    yield Text(
        "These have no fixed place: get the file, then `vfmbench weights convert FILE` writes it into "
        f"{', '.join(folders)} in our own format."
    )


def _files(statuses: Sequence[FileStatus]) -> Table:
    table = Table(title="Weights that vfmbench does not ship", title_justify="left")
    for heading in ("name", "MB", "licence", "state"):
        table.add_column(heading, justify="right" if heading == "MB" else "left", no_wrap=True)
    table.add_column("what for")
    for status in statuses:
        file = status.file
        table.add_row(file.name, str(file.megabytes), file.licence, state_text(status), file.purpose)
    return table


def _convertibles(statuses: Sequence[ConvertibleStatus]) -> Table:
    table = Table(title="Checkpoints to be converted", title_justify="left")
    for heading in ("becomes", "MB", "licence"):
        table.add_column(heading, justify="right" if heading == "MB" else "left", no_wrap=True)
    table.add_column("state")
    table.add_column("what it is")
    for status in statuses:
        file = status.convertible
        name = f"{file.suite}/{file.weights}"
        size = "?" if file.megabytes is None else str(file.megabytes)
        table.add_row(name, size, file.licence, status.present or "missing", file.purpose)
    return table


def _line(text: str) -> Text:
    """A line with something to copy, which must not be broken."""
    return Text(text, no_wrap=True, overflow="ignore")


def _where(status: FileStatus) -> str:
    if status.problem:
        return status.problem
    if status.located is None:
        return status.file.file_name
    return f"{status.located.path} (by {status.located.place})"
