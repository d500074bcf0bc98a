"""Validated configuration: what a user may ask for, how `key=value` overrides reach it, what makes two runs the same run."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
)

from vfmbench.errors import MissingError, UserError

if TYPE_CHECKING:
    from vfmbench.interfaces import Suite, Task

Precision = Literal["float32", "bfloat16", "float16"]

RUN_SECTIONS = ("method", "task", "data", "weights")
PRESETS = ("paper", "original", "tuned")


class RunConfig(BaseModel):
    """One run as the user asks for it. None means: the suite's default."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: str
    task: str
    suite: str = "digits"
    split: Literal["test", "validation"] = "test"
    num_images: int | None = Field(None, ge=1)
    samples: int | None = Field(None, ge=1, le=10_000)
    seed: int = Field(0, ge=0, lt=2**63)
    preset: str = Field("paper", description="the method's options by name, or a file that `vfmbench tune` wrote")
    options: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="overrides by section: " + ", ".join(RUN_SECTIONS)
    )
    device: Literal["auto", "cpu", "cuda"] = "auto"
    batch_size: int | None = Field(None, ge=1, description="samples in one batch")
    precision: Precision = Field("float32", description="of the products inside networks; all else stays float32")
    compile: bool = Field(False, description="compile the networks; the first batch of each size is drawn twice, once untimed")
    out: Path = Path("results/runs")
    metrics: tuple[str, ...] | None = None
    fresh: bool = False


class RunIdentity(BaseModel):
    """All that a result depends on, fully resolved. Equal identities share a directory.

    Device, batch size and compilation are not part; a precision other than float32 is.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    suite: str
    suite_options: dict[str, Any]
    dataset_sha256: str
    split: str
    task: str
    problem: str
    task_options: dict[str, Any]
    method: str
    method_options: dict[str, Any]
    plugin_sha256: dict[str, str]
    weights_sha256: dict[str, str]
    num_images: int
    samples: int
    seed: int
    precision: Precision = "float32"

    @model_serializer(mode="wrap")
    def _without_the_usual_precision(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Runs from before there was a choice of precision are those in float32, and keep their hash."""
        content = handler(self)
        if self.precision == "float32":
            content.pop("precision", None)
        return content

    @property
    def hash(self) -> str:
        """Twelve hexadecimal digits."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def is_preset_file(preset: str) -> bool:
    """Whether a preset is a file that `vfmbench tune` wrote, rather than a name."""
    return preset.endswith((".yaml", ".yml"))


def tuned_values(path: Path, method: str, task: Task, suite: Suite) -> dict[str, Any]:
    """The options that `vfmbench tune` chose for a method on a task, from the file that it wrote.

    Raises UserError for a file that it did not write or that is of another suite, MissingError if it has nothing for this
    method and task.
    """
    planned = method in suite.tuning.get("methods", {}) and task.name in suite.tuning.get("tasks", ())
    command = f"vfmbench tune --suite {suite.name} --method {method} --task {task.name}"
    hint = f"run {command}" if planned else f"the suite {suite.name} plans no tuning of it, so take --preset paper or options"
    if not path.is_file():
        raise MissingError(f"Nothing is tuned for the suite {suite.name}: there is no {path.name}; {hint}.")
    try:
        content = yaml.safe_load(path.read_text())
        found, tasks = content["suite"], content["methods"].get(method, {})
        entry = tasks.get(task.name) or tasks.get(task.problem)
        options = None if entry is None else entry["options"]
    except (yaml.YAMLError, KeyError, TypeError, AttributeError):
        raise UserError(f"{path} is not a file that `vfmbench tune` wrote.") from None
    if found != suite.name:
        raise UserError(f"{path} was tuned for the suite {found!r}, not {suite.name!r}.")
    if entry is None:
        raise MissingError(f"{path.name} has no tuned {method} for {task.name}; {hint}.")
    if suite.prior is not None and any(suite.weights.sha256(key) != value for key, value in entry["weights_sha256"].items()):
        raise MissingError(
            f"{path.name} was tuned for other data of the suite {suite.name}; tune with your data.* options and "
            "--out FILE.yaml, then take --preset FILE.yaml."
        )
    if options is None:
        raise MissingError(f"{path.name}: no setting of {method} on {task.name} could be chosen; see its trials there.")
    return dict(options)
