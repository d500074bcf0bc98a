"""Suites of images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar

from vfmbench.domains import Shape
from vfmbench.interfaces import Dataset
from vfmbench.options import Options, validate
from vfmbench.tasks import datasets
from vfmbench.tasks.suites.definition import read_definition
from vfmbench.tasks.suites.suite import DefinedSuite, WeightsOptions

DataOptions = TypeVar("DataOptions", bound=Options)


class DigitsData(Options):
    """The digits ship with scikit-learn: nothing to choose."""


def _build(
    name: str,
    schema: type[DataOptions],
    load: Callable[[DataOptions, str], Dataset],
    options: Mapping[str, Mapping[str, Any]],
    shape: Callable[[DataOptions], Shape] | None = None,
) -> DefinedSuite:
    """The suite of `<name>.yaml`.

    Args:
        schema: of the section `data` of `options`.
        load: (data options, split) -> the split.
        options: by section, `data` and `weights`.
        shape: (C, H, W) of images and latents where it depends on the data options; replaces the file's.
    """
    definition = read_definition(name)
    data = validate(schema, options.get("data", {}), "data.")
    weights = validate(WeightsOptions, options.get("weights", {}), "weights.")
    if shape is not None:
        definition = definition.model_copy(update={"image_shape": shape(data), "latent_shape": shape(data)})
    return DefinedSuite(definition, partial(load, data), data, weights)


def digits(options: Mapping[str, Mapping[str, Any]]) -> DefinedSuite:
    """The embedded default: 8x8 handwritten digits."""
    return _build("digits", DigitsData, lambda _, split: datasets.digits(split), options)


def folder(options: Mapping[str, Mapping[str, Any]]) -> DefinedSuite:
    """Any folder of images at any size: data.path, data.size."""
    return _build("folder", datasets.FolderOptions, datasets.folder, options, lambda data: (3, data.size, data.size))


def cifar10(options: Mapping[str, Mapping[str, Any]]) -> DefinedSuite:
    """CIFAR-10, 32x32 pixels, from data.path."""
    return _build("cifar10", datasets.Cifar10Options, datasets.cifar10, options)


def imagenet256(options: Mapping[str, Mapping[str, Any]]) -> DefinedSuite:
    """ImageNet at 256x256 pixels, from data.path; with Stable Diffusion's VAE and SiT-B/2."""
    return _build("imagenet256", datasets.ImageNetOptions, datasets.imagenet, options)


def photos64(options: Mapping[str, Mapping[str, Any]]) -> DefinedSuite:
    """64x64 patches of photographs; data.path names the training photographs and is needed for training only."""
    return _build("photos64", datasets.PatchOptions, datasets.photos64, options)
