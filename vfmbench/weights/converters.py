"""What turns public files of weights into a suite's own: its protocol, and the published files that it is for.

Imports no torch, so that `vfmbench weights status` answers at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, runtime_checkable

from pydantic import Field

from vfmbench.options import Options

if TYPE_CHECKING:
    from torch import Tensor

    from vfmbench.interfaces import Suite


@dataclass(frozen=True)
class Convertible:
    """A published file that `vfmbench weights convert FILE` turns into a suite's own weights.

    Attributes:
        source: where it is published.
        suite: whose weights it becomes.
        weights: their name in the suite's folder.
        megabytes: size, rounded; None where it is not known.
    """

    purpose: str
    licence: str
    source: str
    suite: str
    weights: str
    megabytes: int | None = None


class ConversionOptions(Options):
    """What every conversion can be told; a converter adds what no shape in its files tells."""

    licence: str = Field("unknown", description="of the weights, for the manifest")


OptionsType = TypeVar("OptionsType", bound=ConversionOptions)


@dataclass(frozen=True)
class Converted:
    """A file in our format, before it is written.

    Attributes:
        name: of the weights in the suite's folder.
        tensors: by name, each beginning with its network's: "flow.", "adapter.", ...
        entry: for the manifest: at least `architecture`, by network.
        notes: for the manifest and the user: what was taken of the file, and what was assumed.
    """

    name: str
    tensors: Mapping[str, Tensor]
    entry: Mapping[str, Any]
    notes: Mapping[str, Any]


@runtime_checkable
class Converter(Protocol[OptionsType]):
    """Knows one layout of public files; registered as an object in the entry-point group `vfmbench.converters`.

    >>> from vfmbench.registry import converters
    >>> published = converters.get("published")
    >>> published.lacks({"model": {}})
    'no SiT: no x_embedder.proj.weight, neither by itself nor in ema, model, state_dict'

    Attributes:
        options: what `--set convert.key=value` may change.
        convertibles: the published files that it is for, as `vfmbench weights status` lists them.
    """

    @property
    def options(self) -> type[OptionsType]: ...

    @property
    def convertibles(self) -> Sequence[Convertible]: ...

    def lacks(self, content: Mapping[str, Any]) -> str:
        """What a file of its layout has and this content has not ("no SiT: ..."); empty where the content is of its layout."""

    def convert(self, path: Path, content: Mapping[str, Any], suite: Suite, options: OptionsType) -> Converted:
        """Args: path: for messages; content: what the file holds; options: an instance of its own `options`.

        Raises UserError for a content that is damaged or does not fit the suite.
        """
