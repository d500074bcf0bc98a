"""Suites of images: those of this package, and any YAML file of a user's."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

from vfmbench.errors import UserError, unknown_name
from vfmbench.options import validate
from vfmbench.registry import codecs, data_sources
from vfmbench.tasks.suites.definition import read_definition
from vfmbench.tasks.suites.suite import DefinedSuite, WeightsOptions

Sections = Mapping[str, Mapping[str, Any]]


def digits(options: Sections) -> DefinedSuite:
    """The embedded default: 8x8 handwritten digits."""
    return _packaged("digits", options)


def folder(options: Sections) -> DefinedSuite:
    """Any folder of images at any size: data.path, data.size."""
    return _packaged("folder", options)


def cifar10(options: Sections) -> DefinedSuite:
    """CIFAR-10, 32x32 pixels, from data.path."""
    return _packaged("cifar10", options)


def imagenet256(options: Sections) -> DefinedSuite:
    """ImageNet at 256x256 pixels, from data.path; with Stable Diffusion's VAE and SiT-B/2."""
    return _packaged("imagenet256", options)


def photos64(options: Sections) -> DefinedSuite:
    """64x64 patches of photographs; data.path names the training photographs and is needed for training only."""
    return _packaged("photos64", options)


def _packaged(name: str, options: Sections) -> DefinedSuite:
    return suite_of_file(Path(str(files(__package__ or __name__))) / f"{name}.yaml", options)


def suite_of_file(path: Path, options: Sections) -> DefinedSuite:
    """The suite that a YAML file defines; `SuiteDefinition` is its schema.

    >>> # mine.yaml: name: mine; data: {source: folder, path: photographs, size: 64}; weights: trained; tasks: {denoise: {}}
    >>> suite = suite_of_file(Path("mine.yaml"), {})

    Args:
        options: by section, `data` and `weights`; they go before the file's.

    Raises UserError, with the file and the line, for a mistake in it.
    """
    file, definition = read_definition(path)
    if definition.data is None:
        raise file.error(f"data is required: {{source: ...}}, one of {', '.join(data_sources.names())}.")
    if definition.data.source not in data_sources.names():
        raise file.located(unknown_name("data source", definition.data.source, data_sources.names()), "data.source")
    source = data_sources.get(definition.data.source)
    if definition.codec not in codecs.names():
        raise file.located(unknown_name("codec", definition.codec, codecs.names()), "codec")
    own = _beside(path, definition.data.options())
    try:
        validate(source.Options, own, "data.")
    except UserError as error:
        raise file.located(error) from None
    data = validate(source.Options, {**own, **options.get("data", {})}, "data.")
    folder = _beside(path, {"path": definition.weights}) if definition.weights is not None else {}
    weights = validate(WeightsOptions, {**folder, **options.get("weights", {})}, "weights.")
    shape = definition.image_shape if source.shape is None else source.shape(data)
    if shape is None:
        raise file.error(f"image_shape is required for the data source {definition.data.source}: [channels, height, width].")
    return DefinedSuite(definition, shape, partial(source.load, data), data, weights)


def _beside(path: Path, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values, a `path` among them being relative to the folder of the file that says it."""
    if not isinstance(values.get("path"), str | Path):
        return dict(values)
    return {**values, "path": path.parent / Path(values["path"]).expanduser()}
