"""What one run is: the options that a user may give it, and the identity that makes two runs the same.

The fields of `RunConfig` are the only list of a run's options. The flags of `vfmbench run` and their help, the keys of a sweep
and the keywords in Python are made of it, and those that a result depends on stand in config.yaml: another option is one field.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, SerializerFunctionWrapHandler, model_serializer

from vfmbench.options import Options
from vfmbench.precision import Precision

RUN_SECTIONS = ("method", "task", "data", "weights")
PRESETS = ("paper", "original", "tuned")
FIRST_RUN = {"method": "vfm", "task": "gaussian_deblur"}
"""A run of the default suite that works wherever vfmbench is installed: what help texts show and `vfmbench doctor` tries."""


def _listed(value: Any) -> Any:
    """`a,b` -> [a, b], as a list is written on the command line."""
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def _automatic(value: Any) -> Any:
    return None if value == "auto" else value


class RunOptions(Options):
    """Options that a result depends on; they are part of a run's identity under the same names."""

    method: str = Field(description="a sampler; `vfmbench list methods` names them")
    task: str = Field(description="a task of the suite, or a YAML file that defines one")
    suite: str = Field("digits", description="data, networks and feature spaces")
    split: Literal["test", "validation"] = Field("test", description="part of the suite's data")
    num_images: int | None = Field(None, ge=1, description="first images of the split (default: the suite's number)")
    samples: int | None = Field(None, ge=1, le=10_000, description="posterior samples of each image (default: the suite's)")
    seed: int = Field(0, ge=0, lt=2**63, description="of operators, noise and samplers")
    precision: Precision = Field("float32", description="of the products inside networks; all else stays float32")


class RunConfig(RunOptions):
    """One run as the user asks for it. None means: the suite's default.

    >>> RunConfig(method="vfm", task="gaussian_deblur", num_images=16, options={"method": {"steps": 4}})
    """

    preset: str = Field(
        "paper", description=f"the method's options by name, {', '.join(PRESETS)}, or a file that `vfmbench tune` wrote"
    )
    options: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="overrides by section: " + ", ".join(RUN_SECTIONS)
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: CUDA where there is one")
    batch_size: Annotated[int | None, BeforeValidator(_automatic)] = Field(
        None, ge=1, description="samples in one batch, or auto (default: auto, the suite's number)"
    )
    compile: bool = Field(
        False, description="compile the networks: slow at first, then faster; the first batch of each size is drawn twice"
    )
    out: Path = Field(Path("results/runs"), description="where run directories go")
    metrics: Annotated[tuple[str, ...] | None, BeforeValidator(_listed)] = Field(
        None, description="only these metrics (default: the suite's, else all)"
    )
    fresh: bool = Field(False, description="start over instead of resuming")


class RunIdentity(RunOptions):
    """All that a result depends on, fully resolved. Equal identities share a directory."""

    suite: str
    split: Literal["test", "validation"]
    seed: int
    num_images: int
    samples: int
    problem: str
    condition: str | None = Field(None, description="what adapters are conditioned on, where it is not the problem's own name")
    suite_options: dict[str, Any]
    dataset_sha256: str
    task_options: dict[str, Any]
    method_options: dict[str, Any]
    plugin_sha256: dict[str, str]
    weights_sha256: dict[str, str]

    @model_serializer(mode="wrap")
    def _without_usual_values(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Runs from before there was an option are those with its default, and keep their hash."""
        later = [name for name in RunOptions.model_fields if not RunIdentity.model_fields[name].is_required()]
        usual = [name for name in later if getattr(self, name) == RunOptions.model_fields[name].default]
        unset = [] if self.condition is not None else ["condition"]
        return {name: value for name, value in handler(self).items() if name not in [*usual, *unset]}

    @property
    def hash(self) -> str:
        """Twelve hexadecimal digits."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def is_preset_file(preset: str) -> bool:
    """Whether a preset is a file that `vfmbench tune` wrote, rather than a name."""
    return preset.endswith((".yaml", ".yml"))


def first_command() -> str:
    """`FIRST_RUN` as it is typed."""
    return " ".join(["vfmbench run", *(f"--{key} {value}" for key, value in FIRST_RUN.items())])
