"""What a suite's data are, images or points: how their numbers are stored, quoted, checked and drawn.

torch is imported where numbers are computed with, so that a reader of stored results may ask for a domain by its name.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from vfmbench.errors import UserError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Shape = tuple[int, int, int]
DomainName = Literal["images", "points"]


@dataclass(frozen=True)
class Domain(ABC):
    """One kind of data; there are two, `IMAGES` and `POINTS`.

    >>> stored = suite.domain.store(samples)  # what a run keeps
    >>> seen = suite.domain.restore(stored)  # what metrics and figures see

    Attributes:
        name: as in a suite's YAML file.
        unit: what stands behind the name of a metric of the numbers themselves, as in `crps@pixel`.
        entries: what the numbers of one image or point are called.
        scale: from stored numbers to quoted ones.
        settings: what the quoted numbers are.
        keeps_sources: whether a run also stores the noise that each sample was made from and a draw from the method's own
            prior, which take as much room as the sample.
        picture: how samples are drawn.
    """

    name: DomainName
    unit: str
    entries: str
    scale: float
    settings: str
    keeps_sources: bool
    picture: Literal["grid", "scatter"]

    @property
    @abstractmethod
    def stored_dtype(self) -> torch.dtype:
        """Type of the numbers that are stored."""

    @property
    @abstractmethod
    def exact_dtype(self) -> torch.dtype:
        """Floating type in which the mean of equal stored numbers is that number."""

    @abstractmethod
    def store(self, values: Tensor) -> Tensor:
        """What is kept of floating values of any shape, in `stored_dtype`."""

    @abstractmethod
    def restore(self, stored: Tensor) -> Tensor:
        """The values that stored numbers of any shape stand for, float32."""

    @abstractmethod
    def fits(self, shape: Shape) -> bool:
        """Whether (C, H, W) can be the shape of one image or point."""

    def check(self, found: Domain, what: str) -> None:
        """Raises UserError, which says that `what` needs this domain, unless the data are of it."""
        if found is not self:
            raise UserError(f"{what} needs {self.name}, and the data are {found.name}")

    def __str__(self) -> str:
        return self.name


class _Images(Domain):
    @property
    def stored_dtype(self) -> torch.dtype:
        import torch

        return torch.uint8

    @property
    def exact_dtype(self) -> torch.dtype:
        import torch

        # 8-bit levels are exact integers.
        return torch.float32

    def store(self, values: Tensor) -> Tensor:
        """Rounds and clamps [-1, 1] to 0..255; used before every metric, file and picture."""
        return ((values.clamp(-1, 1) + 1) * 127.5).round().to(self.stored_dtype)

    def restore(self, stored: Tensor) -> Tensor:
        """0..255 to [-1, 1]."""
        return stored.float() / 127.5 - 1

    def fits(self, shape: Shape) -> bool:
        return min(shape) >= 1


class _Points(Domain):
    @property
    def stored_dtype(self) -> torch.dtype:
        import torch

        return torch.float32

    @property
    def exact_dtype(self) -> torch.dtype:
        import torch

        return torch.float64

    def store(self, values: Tensor) -> Tensor:
        return values.to(self.stored_dtype)

    def restore(self, stored: Tensor) -> Tensor:
        return stored

    def fits(self, shape: Shape) -> bool:
        return shape[0] >= 1 and tuple(shape[1:]) == (1, 1)


# [-1, 1] is 255 levels wide.
IMAGES: Domain = _Images("images", "pixel", "pixels", 2 / 255, "images in [-1,1]", keeps_sources=False, picture="grid")
POINTS: Domain = _Points(
    "points", "point", "coordinates", 1.0, "points in their own unit", keeps_sources=True, picture="scatter"
)

DOMAINS: dict[DomainName, Domain] = {domain.name: domain for domain in (IMAGES, POINTS)}
