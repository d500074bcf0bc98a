"""What a suite's YAML file says."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, InstanceOf, model_validator

from vfmbench.domains import DOMAINS, IMAGES, Domain, Shape
from vfmbench.interfaces import RunDefaults
from vfmbench.yaml_lines import read_yaml


def _domain(name: Any) -> Domain:
    if name not in DOMAINS:
        raise ValueError(f"must be one of {', '.join(DOMAINS)}")
    return DOMAINS[name]


class SuiteDefinition(RunDefaults):
    """Schema of a suite's YAML file."""

    name: str
    domain: Annotated[InstanceOf[Domain], BeforeValidator(_domain)] = IMAGES
    image_shape: Shape
    latent_shape: Shape
    codec: Literal["identity", "sd_vae", "trained"] = Field("identity", description="trained: the suite's own weights `codec`")
    num_classes: int = Field(ge=0)
    feature_spaces: dict[str, str] = Field(
        default_factory=dict, description="feature space -> name of its weights, the suite's own or external ones"
    )
    perceptual: list[str] = Field(default_factory=list, description="perceptual distances")
    tasks: dict[str, dict[str, Any]]
    training: dict[str, dict[str, Any]] = Field(default_factory=dict)
    tuning: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _shape_of_the_domain(self) -> Self:
        if not self.domain.fits(self.image_shape):
            raise ValueError(f"image_shape is not one of {self.domain}")
        return self


def read_definition(name: str) -> SuiteDefinition:
    """The definition in `<name>.yaml`."""
    return read_yaml(Path(__file__).with_name(f"{name}.yaml"), "suite file").validate(SuiteDefinition)
