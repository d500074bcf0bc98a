"""What a suite's YAML file says."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, InstanceOf, model_validator

from vfmbench.domains import DOMAINS, IMAGES, Domain, Shape
from vfmbench.interfaces import RunDefaults
from vfmbench.yaml_lines import YamlFile, read_yaml


def _domain(name: Any) -> Domain:
    if name not in DOMAINS:
        raise ValueError(f"must be one of {', '.join(DOMAINS)}")
    return DOMAINS[name]


class DataDefinition(BaseModel):
    """Section `data`: a kind of data, and what the suite chooses of it."""

    model_config = ConfigDict(extra="allow", frozen=True)

    source: str = Field(description="one of the data sources")

    def options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class SuiteDefinition(RunDefaults):
    """Schema of a suite's YAML file."""

    name: str
    domain: Annotated[InstanceOf[Domain], BeforeValidator(_domain)] = IMAGES
    data: DataDefinition | None = Field(None, description="none for data that the suite's own code draws")
    image_shape: Shape | None = Field(None, description="[channels, height, width]; may be left out where the data say it")
    latent_shape: Shape | None = Field(None, description="where it is not the images'")
    codec: str = Field("identity", description="a kind of codec; trained: the suite's own weights `codec`")
    num_classes: int = Field(0, ge=0)
    weights: Path | None = Field(
        None, description="folder of its networks, relative to this file; none: the shipped or the user's own"
    )
    feature_spaces: dict[str, str] = Field(
        default_factory=dict, description="feature space -> name of its weights, the suite's own or external ones"
    )
    perceptual: list[str] = Field(default_factory=list, description="perceptual distances")
    tasks: dict[str, dict[str, Any]]
    training: dict[str, dict[str, Any]] = Field(default_factory=dict)
    tuning: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _shape_of_the_domain(self) -> Self:
        if self.image_shape is not None and not self.domain.fits(self.image_shape):
            raise ValueError(f"image_shape is not one of {self.domain}")
        return self


def read_definition(path: Path) -> tuple[YamlFile, SuiteDefinition]:
    """The file and what it says. Raises UserError, with the file and the line, for a mistake."""
    file = read_yaml(path, "suite file")
    return file, file.validate(SuiteDefinition)
