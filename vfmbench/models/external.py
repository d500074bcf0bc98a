"""Weights that vfmbench does not ship: what each file is for, where it comes from, where it is looked for.

A file is taken from the option `weights.<name>=PATH`, else from the environment variable `VFMBENCH_WEIGHTS_<NAME>`, else from
the caches of torch hub and Hugging Face. Nothing is downloaded: the error for a missing file ends with the command that fetches
it.
"""

from __future__ import annotations

import hashlib
import os
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BeforeValidator, FilePath
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from vfmbench.base import MissingError, Options, UserError


@dataclass(frozen=True)
class ExternalFile:
    """A published file of weights.

    Attributes:
        name: as in `weights.<name>`.
        url: where it is published; its last part is the name under which torch hub's cache holds it.
        megabytes: size, rounded.
        sha256_prefix: the beginning of its SHA-256, which the publisher writes into the file's name; empty where none is known.
        other_names: further names that programs store the same bytes under in torch hub's cache.
        hugging_face: repository and file of the same weights on Hugging Face, if there.
    """

    name: str
    purpose: str
    licence: str
    url: str
    megabytes: int
    sha256_prefix: str = ""
    other_names: tuple[str, ...] = ()
    hugging_face: tuple[str, str] | None = None

    @property
    def file_name(self) -> str:
        return self.url.rpartition("/")[2]

    @property
    def variable(self) -> str:
        """Name of the environment variable that may hold its path."""
        return f"VFMBENCH_WEIGHTS_{self.name.upper()}"

    @property
    def fetch_command(self) -> str:
        """The shell command that puts it where `cached` finds it."""
        target = _torch_hub_folder() / self.file_name
        return f"curl -fL --create-dirs -o {shlex.quote(str(target))} {self.url}"

    def cached(self) -> Path | None:
        """Where a cache holds it."""
        paths = [_torch_hub_folder() / name for name in (self.file_name, *self.other_names)]
        return next((path for path in paths if path.is_file()), None) or self._in_hugging_face_cache()

    def _in_hugging_face_cache(self) -> Path | None:
        if self.hugging_face is None:
            return None
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(*self.hugging_face)
        return Path(found) if isinstance(found, str) else None


FILES = {
    file.name: file
    for file in (
        ExternalFile(
            name="inception",
            purpose="feature space inception: FID's InceptionV3, ported from TensorFlow by torch-fidelity and pytorch-fid",
            licence="Apache-2.0",
            url="https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth",
            megabytes=91,
            sha256_prefix="6726825d",
            other_names=("pt_inception-2015-12-05-6726825d.pth",),
        ),
        ExternalFile(
            name="dino",
            purpose="feature space dino: self-supervised ViT-S/16 of DINO",
            licence="Apache-2.0",
            url="https://dl.fbaipublicfiles.com/dino/dino_deitsmall16_pretrain/dino_deitsmall16_pretrain.pth",
            megabytes=87,
            hugging_face=("timm/vit_small_patch16_224.dino", "model.safetensors"),
        ),
        ExternalFile(
            name="lpips_alex",
            purpose="trunk of LPIPS (alex): torchvision's AlexNet; LPIPS's own linear weights come with its package",
            licence="BSD-3-Clause",
            url="https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
            megabytes=233,
            sha256_prefix="7be5be79",
        ),
        ExternalFile(
            name="lpips_vgg",
            purpose="trunk of LPIPS (vgg): torchvision's VGG-16; LPIPS's own linear weights come with its package",
            licence="BSD-3-Clause",
            url="https://download.pytorch.org/models/vgg16-397923af.pth",
            megabytes=528,
            sha256_prefix="397923af",
        ),
    )
}


def _without_tilde(value: Any) -> Any:
    return os.path.expanduser(value) if isinstance(value, str) else value


ExistingFile = Annotated[FilePath, BeforeValidator(_without_tilde)]


class ExternalPaths(Options):
    """`weights.<name>=PATH` for each of `FILES`."""

    inception: ExistingFile | None = None
    dino: ExistingFile | None = None
    lpips_alex: ExistingFile | None = None
    lpips_vgg: ExistingFile | None = None

    def path_of(self, name: str) -> Path | None:
        return getattr(self, name)


@dataclass(frozen=True)
class ExternalWeights:
    """A file that was found and read: tensors by name, SHA-256 of its bytes."""

    file: ExternalFile
    path: Path
    tensors: Mapping[str, Tensor]
    sha256: str

    @property
    def origin(self) -> str:
        """For a metric's settings: which file this is, and whether it is known to be the published one."""
        if not self.file.sha256_prefix:
            return f"weights {self.path.name}, whose publisher gives no hash to check it by"
        if self.sha256.startswith(self.file.sha256_prefix):
            return f"weights {self.file.file_name}"
        return f"WARNING: {self.path.name} is NOT the published {self.file.file_name}"

    def fill(self, load: Callable[[dict[str, Tensor]], object]) -> None:
        """`load(tensors)`, as `load_state_dict` does. Raises UserError if they are not the network's."""
        try:
            load(dict(self.tensors))
        except RuntimeError as error:
            problem = str(error).strip().splitlines()[-1].strip()
            shown = problem if len(problem) <= 160 else problem[:160] + "..."
            raise UserError(f"{self.path} has another layout than {self.file.file_name}: {shown}") from None


def load_external(name: str, given: Path | None) -> ExternalWeights:
    """Finds and reads one of `FILES`; pickled objects other than tensors are refused.

    Args:
        given: the path in the option `weights.<name>`, if there is one. A file that the user names may be another than the
            published one, and then says so in `origin`; one from a cache may not.

    Raises:
        MissingError: it is nowhere, or a cache holds a damaged copy; the message ends with the command that fetches it.
        UserError: the file that the user names cannot be read or holds no weights.
    """
    file = FILES[name]
    named = given or _from_environment(file)
    path = named or file.cached()
    if path is None:
        raise MissingError(
            f"The weights {file.file_name} ({file.megabytes} MB, {file.licence}) are neither in weights.{name} nor in "
            f"{file.variable} nor in the caches of torch hub and Hugging Face; fetch them with: {file.fetch_command}"
        )
    try:
        with path.open("rb") as stream:
            sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"Cannot read the weights {path}: {error.strerror}.") from error
    if named is None and path.suffix == ".pth" and not sha256.startswith(file.sha256_prefix):
        raise MissingError(
            f"{path} is damaged: its SHA-256 begins with {sha256[:8]}, not {file.sha256_prefix}; delete it and fetch it again "
            f"with: {file.fetch_command}"
        )
    return ExternalWeights(file, path, _tensors(path), sha256)


def _from_environment(file: ExternalFile) -> Path | None:
    value = os.environ.get(file.variable)
    if not value:
        return None
    path = Path(value).expanduser()
    if not path.is_file():
        raise UserError(f"{file.variable}: there is no file {path}.")
    return path


def _tensors(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise UserError(f"{path} is not a safetensors file ({error}).") from None
    except Exception as error:  # torch.load raises whatever its unpickler and zip reader do
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise UserError(f"{path} is not a file of PyTorch weights ({reason[:160]}).") from None
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise UserError(f"{path} holds no mapping from names to tensors.")
    return dict(content)


def _torch_hub_folder() -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints"
