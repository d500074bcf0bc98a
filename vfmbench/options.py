"""The base of every options block, its validation, and how `key=value` reaches it."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar, get_args

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, ValidationError

from vfmbench.errors import UserError, unknown_name

OptionsType = TypeVar("OptionsType", bound=BaseModel)

_MOST_PROBLEMS = 3

# YAML reads an unquoted true or null as a value of its own.
_YAML_WORDS = {True: "true", None: "null"}
ClassLabel = Annotated[
    Literal["true", "null"], BeforeValidator(lambda value: value if isinstance(value, str) else _YAML_WORDS.get(value, value))
]
"""Which class a network is given: the image's own, or the null class."""


def _fit_for_a_folder(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", value):
        raise ValueError("must consist of letters, digits, '_', '.' and '-', and not begin with the last two")
    return value


FolderName = Annotated[str, AfterValidator(_fit_for_a_folder)]
"""A name that becomes part of a path."""


class Options(BaseModel):
    """Base of every options block that `--set` can reach: unknown keys and wrong types are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class SamplerOptions(Options):
    """Base of a sampler's `Options`: what `--set method.key=value` may change; as it stands, nothing.

    >>> class Langevin(Sampler):
    ...     class Options(SamplerOptions):
    ...         steps: int = Field(50, ge=1, description="Langevin steps")
    """


def validate(model: type[OptionsType], values: Mapping[str, Any], prefix: str = "") -> OptionsType:
    """Builds `model`, or raises UserError: one sentence that names the field, what is allowed, and the nearest key.

    Args:
        prefix: what stands before a field's name where the user wrote it: a section with its dot, or `--` for flags.
    """
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        problems = error.errors()
    if any(problem["type"] == "extra_forbidden" for problem in problems):
        # A misspelt key is a missing one too: say the former.
        problems = [problem for problem in problems if problem["type"] != "missing"]
    key = ".".join(str(part) for part in problems[0]["loc"])
    message = " ".join(_explain(problem, model, prefix) for problem in problems[:_MOST_PROBLEMS])
    if more := len(problems[_MOST_PROBLEMS:]):
        message += f" And {more} more."
    raise UserError(message, key if prefix == "--" else prefix + key)


def _explain(problem: Any, model: type[BaseModel], prefix: str) -> str:
    place = [part for part in problem["loc"] if isinstance(part, str)]
    key = prefix + ".".join(place)
    if prefix == "--":
        key = key.replace("_", "-")
    if problem["type"] == "extra_forbidden":
        known = _block_at(model, place[:-1]).model_fields
        return str(unknown_name("key", place[-1], known, prefix=key.removesuffix(place[-1])))
    if problem["type"] == "missing":
        return f"{key} is required."
    if problem["type"] == "too_short" and not problem["input"]:
        return f"{key} is empty; it takes at least {problem['ctx']['min_length']}."
    return f"{key}: {problem['msg'].removeprefix('Value error, ')}, got {problem['input']!r}."


def _block_at(model: type[BaseModel], place: Sequence[str]) -> type[BaseModel]:
    """The options block that stands at a place of the model, below its lists and mappings too."""
    for part in place:
        if part in model.model_fields:
            model = next(_blocks(model.model_fields[part].annotation), model)
    return model


def _blocks(annotation: Any) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _blocks(inner)


def parse_values(pairs: Sequence[str]) -> dict[str, Any]:
    """`["num_images=8", "data.path=x"]` -> {"num_images": 8, "data.path": "x"}; values are YAML.

    Raises UserError for a pair without "=" or a value that is not YAML.
    """
    values = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals:
            raise UserError(f"--set takes key=value, got {pair!r}.")
        try:
            values[key] = yaml.safe_load(text)
        except yaml.YAMLError:
            raise UserError(f"--set {key}: {text!r} is not a YAML value.", key) from None
    return values


def parse_overrides(pairs: Sequence[str], sections: Sequence[str]) -> dict[str, dict[str, Any]]:
    """`["method.steps=4", "task.std=1.5"]` -> {"method": {"steps": 4}, "task": {"std": 1.5}}.

    Raises UserError for what `parse_values` refuses and for an unknown section.
    """
    result: dict[str, dict[str, Any]] = {}
    for key, value in parse_values(pairs).items():
        section, dot, name = key.partition(".")
        if not dot or section not in sections:
            near = difflib.get_close_matches(section, sections, n=1, cutoff=0.5)
            hint = f" Did you mean '{near[0]}.{name or section}'?" if near else ""
            raise UserError(f"--set {key!r}: keys begin with one of {', '.join(s + '.' for s in sections)}.{hint}", key)
        result.setdefault(section, {})[name] = value
    return result


def dump(options: Options) -> dict[str, Any]:
    return options.model_dump(mode="json")
