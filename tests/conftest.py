"""Every test sees empty caches; random weights in external networks' layouts, run directories of chosen numbers."""

from __future__ import annotations

import vfmbench  # isort: skip  # noqa: F401 - settles the threads, which must come before torch

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from matplotlib.figure import Figure

from vfmbench.registry import forget_suites

if TYPE_CHECKING:
    from vfmbench.metrics.values import MetricValue
    from vfmbench.results.schema import MetricSpec
    from vfmbench.results.stored import StoredRun

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


@pytest.fixture(scope="session")
def spec_of() -> Callable[[str], MetricSpec]:
    """`spec_of("crps@pixel")`: the specification of a value of this package's metrics; of others, one that says nothing."""
    from vfmbench.metrics.compute import chosen_metrics
    from vfmbench.registry import metrics
    from vfmbench.results.schema import MetricSpec
    from vfmbench.running.cost import COST_SPECS

    declared = {spec.name: spec for metric in chosen_metrics(metrics.names()).values() for spec in metric.specs} | COST_SPECS

    def find(name: str) -> MetricSpec:
        base = name.partition("@")[0]
        return declared["*"] if base.startswith("lpips_") else declared.get(base, MetricSpec(name=base))

    return find


@pytest.fixture
def make_run(tmp_path, spec_of) -> Callable[..., StoredRun]:
    """`make_run(method, values, **identity)`: a stored run with the given metric values, of images 0..n-1 or `index`.

    `specs` has specifications by a value's name where they are not this package's.
    """
    from vfmbench.config import RunIdentity
    from vfmbench.errors import Status
    from vfmbench.results.run_directory import RunStore
    from vfmbench.results.stored import StoredRun

    def make(
        method: str,
        values: Sequence[MetricValue] = (),
        *,
        specs: Mapping[str, MetricSpec] | None = None,
        options: dict | None = None,
        status: Status = Status.DONE,
        index: Sequence[int] | None = None,
        out: Path = tmp_path,
        **changes,
    ) -> StoredRun:
        n = max((value.n for value in values), default=4)
        fields = {
            "suite": "digits",
            "suite_options": {},
            "dataset_sha256": "d" * 64,
            "split": "test",
            "task": "denoise",
            "problem": "denoise",
            "task_options": {"noise_std": 0.1},
            "method": method,
            "method_options": options or {},
            "plugin_sha256": {},
            "weights_sha256": {},
            "num_images": n,
            "samples": 10,
            "seed": 0,
        }
        identity = RunIdentity(**{**fields, **changes})
        store = RunStore.at(out, identity)
        store.paths.samples.mkdir(parents=True)
        store.write_config(identity)
        store.write_provenance({"status": status, "note": ""})
        results = [value.stored(value.name, (specs or {}).get(value.name) or spec_of(value.name)) for value in values]
        store.write_metrics(results, list(index or range(n)))
        return StoredRun.read(store)

    return make
