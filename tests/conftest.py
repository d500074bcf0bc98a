"""Every test sees empty caches; random weights in the layouts of the external networks for those that need one."""

from __future__ import annotations

import vfmbench  # isort: skip  # noqa: F401 - settles the threads, which must come before torch

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure

from vfmbench.registry import forget_suites

# Set before anything is imported that reads them: no test may find, or write, what the user keeps in these folders.
_CACHES = tempfile.TemporaryDirectory(prefix="vfmbench-tests-")
for _variable in ("TORCH_HOME", "HF_HOME", "VFMBENCH_CACHE", "VFMBENCH_WEIGHTS_DIR"):
    os.environ[_variable] = str(Path(_CACHES.name) / _variable)


def _he_normal(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The state with convolutions that keep activations' size through ReLUs, so that features differ, and no biases."""
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(value.shape, generator=generator) * (2 / value[0].numel()) ** 0.5 if value.ndim == 4 else value
        for name, value in state.items()
    }


@pytest.fixture
def figures(monkeypatch) -> Iterator[list[Figure]]:
    """The figures that a test draws, in order; they stay open until it ends, so that it can look at what is in them."""
    from matplotlib import pyplot

    close, kept = pyplot.close, []
    monkeypatch.setattr(pyplot, "close", kept.append)
    yield kept
    close("all")


@pytest.fixture(scope="session")
def random_inception(tmp_path_factory) -> Path:
    """A file of random weights in the layout of torch-fidelity's InceptionV3."""
    from torch_fidelity import feature_extractor_inceptionv3 as module

    with pytest.MonkeyPatch.context() as patch:
        # The class cannot be built without a file; skip its loading.
        patch.setattr(module, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(module.FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        network = module.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])
    path = tmp_path_factory.mktemp("weights") / "random-inception.pth"
    torch.save(_he_normal(network.state_dict()), path)
    return path


@pytest.fixture(scope="session")
def random_dino(tmp_path_factory) -> Path:
    """A file of random weights in the layout of timm's `vit_small_patch16_224.dino`."""
    import timm

    torch.manual_seed(0)
    network = timm.create_model("vit_small_patch16_224.dino", pretrained=False, num_classes=0)
    path = tmp_path_factory.mktemp("weights") / "random-dino.pth"
    torch.save(network.state_dict(), path)
    return path


@pytest.fixture(scope="session")
def random_trunks(tmp_path_factory) -> dict[str, Path]:
    """Files of random weights in the layouts of torchvision's AlexNet and VGG-16 (without their classifiers)."""
    from torchvision.models import alexnet, vgg16

    files = {}
    for name, build in (("lpips_alex", alexnet), ("lpips_vgg", vgg16)):
        # Only the shapes are needed, and initialising VGG takes seconds.
        with torch.device("meta"):
            shapes = build(weights=None).state_dict()
        state = {key: torch.zeros(value.shape) for key, value in shapes.items() if key.startswith("features.")}
        files[name] = tmp_path_factory.mktemp("weights") / f"random-{name}.pth"
        torch.save(_he_normal(state), files[name])
    return files


@pytest.fixture(autouse=True)
def _suites_of_its_own():
    """No test sees what another one's suites have read of folders and variables that are gone."""
    forget_suites()
