"""Reads files of weights of others, safely: what `torch.save` wrote, old or new, and safetensors."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from vfmbench.errors import UserError


def read_content(path: Path) -> Mapping[str, Any]:
    """Reads a file by its content, whatever its suffix. Nothing is unpickled but tensors, plain values and argparse.Namespace.

    Tensors stay in the file, mapped into memory, until they are used, where the format allows it.

    Raises UserError: the file cannot be read, is damaged, holds other objects, or no mapping.
    """
    try:
        with path.open("rb") as stream:
            head = stream.read(9)
        content = _tensors(path) if head[8:] == b"{" else _unpickled(path, zipped=head.startswith(b"PK\x03\x04"))
    except OSError as error:
        raise UserError(f"Cannot read the weights {path}: {error.strerror or error}.") from error
    if not isinstance(content, Mapping):
        raise UserError(f"{path} holds a {type(content).__name__}, not a mapping from names to tensors.")
    return content


def _tensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise UserError(f"{path} is damaged or only part of a safetensors file ({error}).") from None


def _unpickled(path: Path, zipped: bool) -> Any:
    """The content of a file of `torch.save`; of the zip format, tensors stay on disk until they are used."""
    size = path.stat().st_size
    if size == 0:
        raise UserError(f"{path} is empty.")
    # torch.load takes a path of this suffix for safetensors, whatever is in it, but can map nothing else than a path.
    mapped = zipped and path.suffix != ".safetensors"
    try:
        with path.open("rb") as stream, torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path if mapped else stream, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # torch.load raises whatever its unpickler and zip reader do
        refused = re.search(r"GLOBAL (\S+)", str(error))
        if refused:
            raise UserError(
                f"{path} holds pickled objects besides tensors ({refused[1]}), which are not loaded: unpickling can run any "
                "code that the file's author chose. Ask for the state dict alone, e.g. as safetensors."
            ) from None
        kind = "a file of torch.save" if zipped else "a file of PyTorch weights or safetensors"
        reason = str(error).partition("\n")[0].partition(". ")[0].strip() or type(error).__name__
        raise UserError(
            f"{path} ({size:,} bytes) is damaged, only partly downloaded, or not {kind} at all ({reason[:120]})."
        ) from None
