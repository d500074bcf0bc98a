"""LPIPS against its package called directly, on random trunks; and what is said where it cannot be computed."""

import warnings

import pytest
import torch

from vfmbench.metrics.compute import compute_metrics
from vfmbench.metrics.perceptual import lpips as metric
from vfmbench.models.perceptual import perceptual_distance
from vfmbench.weights.external import ExternalPaths

CPU = torch.device("cpu")
SHAPE = (3, 33, 40)


@pytest.fixture(scope="module")
def networks(random_trunks):
    paths = ExternalPaths(**random_trunks)
    return {name: perceptual_distance(name, paths, CPU) for name in random_trunks}


@pytest.fixture(scope="module")
def package(random_trunks):
    """`lpips.LPIPS` with the same trunks, set up by hand."""
    import lpips

    built = {}
    for name, path in random_trunks.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            network = lpips.LPIPS(net=name.removeprefix("lpips_"), pnet_rand=True, verbose=False)
        state = torch.load(path, weights_only=True)
        for part in (network.net.slice1, network.net.slice2, network.net.slice3, network.net.slice4, network.net.slice5):
            for number, layer in part.named_children():
                if isinstance(layer, torch.nn.Conv2d):
                    layer.weight.data = state[f"features.{number}.weight"]
                    layer.bias.data = state[f"features.{number}.bias"]
        built[name] = network
    return built


@pytest.mark.parametrize("name", ["lpips_alex", "lpips_vgg"])
def test_equals_the_package(make_set, networks, package, name, monkeypatch):
    monkeypatch.setattr("vfmbench.models.perceptual._BATCH", 3)
    evaluation = make_set(4, 2, SHAPE, perceptual={name: networks[name]})
    with torch.no_grad():
        rows = [
            [float(package[name](truth[None] / 127.5 - 1, sample[None] / 127.5 - 1)) for sample in samples]
            for truth, samples in zip(evaluation.truth.float(), evaluation.samples.float(), strict=True)
        ]
        mean = evaluation.samples.float().mean(1) / 127.5 - 1
        of_mean = package[name](evaluation.truth.float() / 127.5 - 1, mean).flatten()
    single, averaged = metric(evaluation)
    expected = torch.tensor(rows).double().mean(1)
    assert float(expected.min()) > 0.01
    torch.testing.assert_close(single.per_image, expected, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(averaged.per_image, of_mean.double(), rtol=1e-5, atol=1e-7)
    assert (single.name, averaged.name) == (name, f"{name}_mean")
    for value in (single, averaged):
        assert value.n == 4
        assert value.low <= value.value <= value.high
        assert value.feature_space == name
        assert value.feature_weights_sha256 == networks[name].weights_sha256
        assert f"net {name.removeprefix('lpips_')}" in value.settings
        assert "NOT the published" in value.settings


def test_equal_images_have_distance_zero(make_set, networks):
    (value,) = metric(make_set(3, 1, SHAPE, noise=0, perceptual={"lpips_alex": networks["lpips_alex"]}))
    assert (value.name, value.value) == ("lpips_alex", 0)


def test_missing_networks_and_small_or_grey_images_are_missing_with_the_reason(make_set, networks):
    evaluation = make_set(3, 2, (3, 30, 40), perceptual={**networks, "other": "no file"})
    values = [result.row for result in compute_metrics(evaluation, {"lpips": metric})]
    assert [value.name for value in values] == [
        f"{name}{suffix}" for name in ("lpips_alex", "lpips_vgg", "other") for suffix in ("", "_mean")
    ]
    assert values[0].value is None
    assert values[0].reason == "lpips_alex needs RGB images of at least 31x31 pixels, not 3 channels of 30x40"
    assert values[2].value > 0
    assert values[4].reason == "no file"
    (grey,) = metric(make_set(2, 1, (1, 40, 40), perceptual={"lpips_alex": networks["lpips_alex"]}))
    assert "needs RGB images" in grey.reason
    (none,) = (result.row for result in compute_metrics(make_set(), {"lpips": metric}))
    assert (none.name, none.value) == ("lpips", None)
    assert "no network is set" in none.reason


def test_trunks_have_hashes_of_their_own(networks):
    assert networks["lpips_alex"].weights_sha256 != networks["lpips_vgg"].weights_sha256
