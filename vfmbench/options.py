"""The base of every options block, its validation, and how `key=value` reaches it."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from vfmbench.errors import UserError, unknown_name

OptionsType = TypeVar("OptionsType", bound=BaseModel)

# YAML reads an unquoted true or null as a value of its own.
_YAML_WORDS = {True: "true", None: "null"}
ClassLabel = Annotated[
    Literal["true", "null"], BeforeValidator(lambda value: value if isinstance(value, str) else _YAML_WORDS.get(value, value))
]
"""Which class a network is given: the image's own, or the null class."""


class Options(BaseModel):
    """Base of every options block that `--set` can reach: unknown keys and wrong types are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class SamplerOptions(Options):
    """Base of a sampler's `Options`: what `--set method.key=value` may change; as it stands, nothing.

    >>> class Langevin:
    ...     class Options(SamplerOptions):
    ...         steps: int = Field(50, ge=1, description="Langevin steps")
    """


def validate(model: type[OptionsType], values: Mapping[str, Any], prefix: str = "") -> OptionsType:
    """Builds `model`, or raises UserError: one sentence that names the field, what is allowed, and the nearest key."""
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        raise UserError(" ".join(_explain(problem, model, prefix) for problem in error.errors())) from None


def _explain(problem: Any, model: type[BaseModel], prefix: str) -> str:
    key = prefix + ".".join(str(part) for part in problem["loc"])
    if prefix == "--":
        key = key.replace("_", "-")
    if problem["type"] == "extra_forbidden":
        return str(unknown_name("key", key, [prefix + name for name in model.model_fields]))
    if problem["type"] == "missing":
        return f"{key} is required."
    return f"{key}: {problem['msg']}, got {problem['input']!r}."


def parse_overrides(pairs: Sequence[str], sections: Sequence[str]) -> dict[str, dict[str, Any]]:
    """`["method.steps=4", "task.std=1.5"]` -> {"method": {"steps": 4}, "task": {"std": 1.5}}; values are YAML.

    Raises UserError for a pair without "=", an unknown section or a value that is not YAML.
    """
    result: dict[str, dict[str, Any]] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        section, dot, name = key.partition(".")
        if not equals:
            raise UserError(f"--set takes key=value, got {pair!r}.")
        if not dot or section not in sections:
            near = difflib.get_close_matches(section, sections, n=1, cutoff=0.5)
            hint = f" Did you mean '{near[0]}.{name or section}'?" if near else ""
            raise UserError(f"--set {key!r}: keys begin with one of {', '.join(s + '.' for s in sections)}.{hint}")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            raise UserError(f"--set {key}: {text!r} is not a YAML value.") from None
        result.setdefault(section, {})[name] = value
    return result


def dump(options: Options) -> dict[str, Any]:
    return options.model_dump(mode="json")
