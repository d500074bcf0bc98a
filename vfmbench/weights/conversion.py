"""Public files of weights into this project's own format, by the converter that knows the file's layout."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from vfmbench.errors import UserError
from vfmbench.files import file_sha256, locked_directory
from vfmbench.interfaces import Suite
from vfmbench.options import validate
from vfmbench.registry import converters
from vfmbench.weights.converters import Converter
from vfmbench.weights.inventory import manifest_entries
from vfmbench.weights.reading import read_content
from vfmbench.weights.store import WeightStore

_SHOWN = 4


@dataclass(frozen=True)
class Conversion:
    """What was written: the weights' name in the store, their manifest entry, and where."""

    name: str
    entry: dict[str, Any]
    path: Path

    def report(self) -> list[str]:
        """Lines for the user: what was found in the source, what was taken and what was assumed."""
        lines = [f"{key.replace('_', ' ')}: {value}" for key, value in self.entry["source"].items()]
        shapes = [f"{part}: {architecture}" for part, architecture in self.entry["architecture"].items()]
        return [*lines, *shapes, f"wrote {self.path}"]


def convert(source: Path, destination: Path, suite: Suite, options: Mapping[str, Any]) -> Conversion:
    """Writes a public file into the weights folder `destination`. Numbers keep the precision of the source.

    Args:
        options: values by name, for the converter that knows the file's layout.

    Raises:
        UserError: the file cannot be read, no converter knows its layout, an option is wrong, it does not fit the suite, or the
            folder cannot be written.
    """
    if any(entry.get("file") == source.name for entry in manifest_entries(source.parent).values()):
        raise UserError(f"{source} is in vfmbench's own format already: use it by weights.path={source.parent}.")
    content = read_content(source)
    converter_name, converter = _converter_of(source, content)
    chosen = validate(converter.options, options, "convert.")
    converted = converter.convert(source, content, suite, chosen)
    sha256 = file_sha256(source)
    entry = {
        **converted.entry,
        "inputs": {"checkpoint": sha256},
        "source": {
            "file": source.name,
            "sha256": sha256,
            "converter": converter_name,
            **converted.notes,
            "licence": chosen.licence,
        },
    }
    with locked_directory(destination):
        WeightStore(destination, "").save(converted.name, converted.tensors, entry, dtype=None)
    return Conversion(converted.name, entry, destination / f"{converted.name}.safetensors")


def _converter_of(path: Path, content: Mapping[str, Any]) -> tuple[str, Converter[Any]]:
    """The first converter, by name, that knows the layout. Raises UserError that says what each of them misses."""
    lacking = []
    for name, converter in converters.load_all().items():
        lacks = converter.lacks(content)
        if not lacks:
            return name, converter
        lacking.append(lacks)
    held = ", ".join(map(str, list(content)[:8])) or "nothing"
    raise UserError(f"{path} holds {'; '.join(lacking)}. It has: {held}.")


def shape_of(path: Path, state: Mapping[str, Tensor], name: str, dimensions: int) -> tuple[int, ...]:
    """Shape of a parameter that the architecture is read from. Raises UserError if it is missing or of other dimensions."""
    if name not in state:
        raise UserError(f"{path} has another layout than the published networks: {name} is missing.")
    shape = tuple(state[name].shape)
    if len(shape) != dimensions:
        raise UserError(f"{path} has another layout than the published networks: {name} has the shape {shape}.")
    return shape


def check_layout(
    path: Path,
    what: str,
    found: Mapping[str, Tensor],
    expected: Mapping[str, tuple[int, ...]],
    hints: Mapping[str, str] | None = None,
) -> None:
    """Raises one UserError that says which names are missing, unexpected or of another shape.

    Args:
        what: the network that it should be, e.g. "a SiT for the suite digits".
        expected: names and shapes of its parameters.
        hints: part of an unexpected name -> what a network with such parameters is.
    """
    missing = sorted(expected.keys() - found.keys())
    unexpected = sorted(found.keys() - expected.keys())
    shapes = [
        f"{name} {tuple(found[name].shape)} instead of {expected[name]}"
        for name in expected
        if name in found and tuple(found[name].shape) != expected[name]
    ]
    problems = [
        f"{len(names)} {kind}: {', '.join(names[:_SHOWN])}{', ...' if len(names) > _SHOWN else ''}"
        for kind, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
        if names
    ]
    if not problems:
        return
    known = [text for part, text in (hints or {}).items() if any(part in name for name in unexpected)]
    hint = f" Going by the names, {'; and '.join(known)}." if known else ""
    raise UserError(f"{path} is not {what}; parameters {'; '.join(problems)}.{hint}")
