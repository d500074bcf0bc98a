"""The files of weights that vfmbench does not ship: what each is for, where it comes from, where it is looked for.

A file is taken from the option `weights.<name>=PATH`, else from the environment variable `VFMBENCH_WEIGHTS_<NAME>`, else from
the caches of torch hub and Hugging Face. Imports no torch, so that what is there can be listed at once.
"""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, FilePath

from vfmbench.errors import UserError
from vfmbench.files import file_sha256
from vfmbench.options import Options


@dataclass(frozen=True)
class ExternalFile:
    """A published file of weights.

    Attributes:
        url: where it is published.
        megabytes: size, rounded.
        sha256: SHA-256, or its beginning, of each published file that holds these weights; empty where none is known.
        cache_name: the name under which torch hub's cache holds it; empty: the last part of `url`.
        other_names: further names that programs store the same bytes under in torch hub's cache.
        hugging_face: repository on Hugging Face and its files with the same weights, the preferred one first.
        name: as in `weights.<name>`; set by `FILES`.
    """

    purpose: str
    licence: str
    url: str
    megabytes: int
    sha256: tuple[str, ...] = ()
    cache_name: str = ""
    other_names: tuple[str, ...] = ()
    hugging_face: tuple[str, tuple[str, ...]] | None = None
    name: str = ""

    @property
    def file_name(self) -> str:
        return self.cache_name or self.url.rpartition("/")[2]

    @property
    def option(self) -> str:
        return f"weights.{self.name}"

    @property
    def variable(self) -> str:
        """Name of the environment variable that may hold its path."""
        return f"VFMBENCH_WEIGHTS_{self.name.upper()}"

    @property
    def target(self) -> Path:
        """Where it is stored when it is fetched."""
        return torch_hub_folder() / self.file_name

    @property
    def fetch_command(self) -> str:
        """The shell command that puts it where `cached` finds it."""
        return f"curl -fL --create-dirs -o {shlex.quote(str(self.target))} {self.url}"

    def cached(self) -> Path | None:
        """Where a cache holds it."""
        paths = [torch_hub_folder() / name for name in (self.file_name, *self.other_names)]
        return next((path for path in paths if path.is_file()), None) or self._in_hugging_face_cache()

    def is_published(self, sha256: str) -> bool | None:
        """Whether a file of this hash is a published one; None where no hash is known."""
        return any(sha256.startswith(known) for known in self.sha256) if self.sha256 else None

    def _in_hugging_face_cache(self) -> Path | None:
        if self.hugging_face is None:
            return None
        from huggingface_hub import try_to_load_from_cache

        repository, names = self.hugging_face
        found = (try_to_load_from_cache(repository, name) for name in names)
        return next((Path(path) for path in found if isinstance(path, str)), None)


def _file_of(value: str) -> Path:
    """The path without a tilde; of a folder as diffusers stores a network, the file of weights in it."""
    path = Path(value).expanduser()
    inside = [path / f"diffusion_pytorch_model.{suffix}" for suffix in ("safetensors", "bin")]
    return next((file for file in inside if file.is_file()), path)


def _path_text(value: Any) -> Any:
    return str(_file_of(value)) if isinstance(value, str) else value


ExistingFile = Annotated[FilePath, BeforeValidator(_path_text)]


class ExternalPaths(Options):
    """`weights.<name>=PATH` of the user's own copies, and by each name what the published file is.

    A path may be that of a folder of diffusers which holds the file.
    """

    sd_vae: Annotated[
        ExistingFile | None,
        ExternalFile(
            purpose="codec sd_vae: Stable Diffusion's VAE, decoder fine-tuned for squared error (sd-vae-ft-mse)",
            licence="MIT",
            url="https://huggingface.co/stabilityai/sd-vae-ft-mse/resolve/main/diffusion_pytorch_model.safetensors",
            megabytes=335,
            sha256=(
                "a1d993488569e928462932c8c38a0760b874d166399b14414135bd9c42df5815",
                "1b4889b6b1d4ce7ae320a02dedaeff1780ad77d415ea0d744b476155c6377ddc",
            ),
            cache_name="sd-vae-ft-mse.safetensors",
            hugging_face=(
                "stabilityai/sd-vae-ft-mse",
                ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"),
            ),
        ),
    ] = None
    inception: Annotated[
        ExistingFile | None,
        ExternalFile(
            purpose="feature space inception: FID's InceptionV3, ported from TensorFlow by torch-fidelity and pytorch-fid",
            licence="Apache-2.0",
            url="https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth",
            megabytes=91,
            sha256=("6726825d",),
            other_names=("pt_inception-2015-12-05-6726825d.pth",),
        ),
    ] = None
    dino: Annotated[
        ExistingFile | None,
        ExternalFile(
            purpose="feature space dino: self-supervised ViT-S/16 of DINO",
            licence="Apache-2.0",
            url="https://dl.fbaipublicfiles.com/dino/dino_deitsmall16_pretrain/dino_deitsmall16_pretrain.pth",
            megabytes=87,
            hugging_face=("timm/vit_small_patch16_224.dino", ("model.safetensors",)),
        ),
    ] = None
    lpips_alex: Annotated[
        ExistingFile | None,
        ExternalFile(
            purpose="trunk of LPIPS (alex): torchvision's AlexNet; LPIPS's own linear weights come with its package",
            licence="BSD-3-Clause",
            url="https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
            megabytes=233,
            sha256=("7be5be79",),
        ),
    ] = None
    lpips_vgg: Annotated[
        ExistingFile | None,
        ExternalFile(
            purpose="trunk of LPIPS (vgg): torchvision's VGG-16; LPIPS's own linear weights come with its package",
            licence="BSD-3-Clause",
            url="https://download.pytorch.org/models/vgg16-397923af.pth",
            megabytes=528,
            sha256=("397923af",),
        ),
    ] = None

    def path_of(self, name: str) -> Path | None:
        """The user's own copy of one of `FILES`."""
        return dict(self)[name]


FILES = {
    name: replace(file, name=name)
    for name, field in ExternalPaths.model_fields.items()
    for file in field.metadata
    if isinstance(file, ExternalFile)
}


class Place(StrEnum):
    """What named the path of a file that was found."""

    OPTION = "option"
    VARIABLE = "environment variable"
    CACHE = "cache"


@dataclass(frozen=True)
class Located:
    """A file that is there, and what named it."""

    path: Path
    place: Place


def locate(file: ExternalFile, given: Path | None) -> Located | None:
    """Where a file is; None if it is nowhere.

    Args:
        given: the path in the option `weights.<name>`, if there is one.

    Raises UserError if the environment variable names no file.
    """
    if given is not None:
        return Located(given, Place.OPTION)
    value = os.environ.get(file.variable)
    if value:
        path = _file_of(value)
        if not path.is_file():
            raise UserError(f"{file.variable}: there is no file {path}.")
        return Located(path, Place.VARIABLE)
    cached = file.cached()
    return None if cached is None else Located(cached, Place.CACHE)


class HashState(StrEnum):
    """What a file's hash says about it. In a cache another file than the published one is a damaged one."""

    OK = "ok"
    DAMAGED = "damaged"
    OTHER = "another file"
    UNKNOWN = "no hash known"
    UNREADABLE = "unreadable"


def hash_state(file: ExternalFile, located: Located) -> tuple[HashState, str]:
    """The state of a file and its SHA-256, which takes seconds for large ones; empty if it cannot be read."""
    try:
        sha256 = file_sha256(located.path)
    except OSError:
        return HashState.UNREADABLE, ""
    published = file.is_published(sha256)
    if published is None:
        return HashState.UNKNOWN, sha256
    if published:
        return HashState.OK, sha256
    return (HashState.DAMAGED if located.place == Place.CACHE else HashState.OTHER), sha256


def torch_hub_folder() -> Path:
    """Where torch hub keeps downloaded weights; `torch.hub.get_dir()` without importing torch."""
    home = os.environ.get("TORCH_HOME") or os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "torch")
    return Path(home).expanduser() / "hub" / "checkpoints"


def user_weights_folder(suite_name: str) -> Path:
    """Where the weights of a suite that ships none lie by default: $VFMBENCH_WEIGHTS_DIR, else ~/.cache/vfmbench/weights."""
    root = os.environ.get("VFMBENCH_WEIGHTS_DIR") or "~/.cache/vfmbench/weights"
    return Path(root).expanduser() / suite_name
