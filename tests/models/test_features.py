"""Inception and DINO features against the packages called directly, embedded networks, and the cache of features."""

import pytest
import torch
from torch import Tensor
from torchvision.transforms import functional as transforms

from vfmbench.domains import IMAGES
from vfmbench.errors import UserError
from vfmbench.models.feature_cache import CachedFeatures
from vfmbench.models.features import embedded_space, external_space
from vfmbench.models.photonet import PhotoNet
from vfmbench.registry import suites
from vfmbench.weights.external import ExternalPaths, load_external
from vfmbench.weights.store import WeightStore

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def spaces(random_inception, random_dino):
    paths = ExternalPaths(inception=random_inception, dino=random_dino)
    return {name: external_space(name, paths, CPU) for name in ("inception", "dino")}


@pytest.fixture
def images() -> Tensor:
    """Smooth random images, not square."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand((3, 3, 5, 6), generator=generator)
    return (torch.nn.functional.interpolate(coarse, (40, 48), mode="bilinear") * 255).to(torch.uint8)


def test_inception_features_are_torch_fidelitys(images, spaces, random_inception, monkeypatch):
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    monkeypatch.setattr("vfmbench.models.inception._BATCH", 2)
    space = spaces["inception"]
    network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], feature_extractor_weights_path=random_inception)
    expected = network(images)[0]
    assert expected.shape == (3, 2048)
    assert float(expected.std(0).max()) > 0.1
    found = space.features(images)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert found.device.type == "cpu"
    assert space.classify(images) is None
    assert space.name == "inception"
    assert space.weights_sha256 == load_external("inception", random_inception).sha256
    assert "WARNING: random-inception.pth is NOT the published" in space.settings


def test_dino_features_are_timms(images, spaces, random_dino, monkeypatch):
    import timm

    monkeypatch.setattr("vfmbench.models.dino._BATCH", 2)
    space = spaces["dino"]
    network = timm.create_model("vit_small_patch16_224.dino", pretrained=False, num_classes=0).eval()
    network.load_state_dict(torch.load(random_dino, weights_only=True))
    bicubic = transforms.InterpolationMode.BICUBIC
    resized = transforms.resize(images / 255, [224, 224], interpolation=bicubic, antialias=True).clamp(0, 1)
    normalised = transforms.normalize(resized, network.default_cfg["mean"], network.default_cfg["std"])
    with torch.no_grad():
        expected = network.forward_features(normalised)[:, 0]
    assert expected.shape == (3, 384)
    torch.testing.assert_close(space.features(images), expected, rtol=1e-4, atol=1e-5)
    assert space.classify(images) is None
    for word in ("384", "224", "bicubic", "ImageNet"):
        assert word in space.settings


def test_grey_images_are_refused(spaces):
    for name, space in spaces.items():
        with pytest.raises(UserError, match=f"{name} needs RGB images, not 1 channels of 8x8"):
            space.features(torch.zeros(2, 1, 8, 8, dtype=torch.uint8))


@pytest.fixture
def photonet():
    torch.manual_seed(0)
    return PhotoNet(3, [8, 16], feature_size=5)


def test_a_manifest_says_which_network_its_space_is(images, photonet, tmp_path, monkeypatch):
    monkeypatch.setattr("vfmbench.models.features._BATCH", 2)
    store = WeightStore(tmp_path, "")
    tensors = {f"photonet.{key}": value for key, value in photonet.state_dict().items()}
    architecture = {"in_channels": 3, "channels": [8, 16], "feature_size": 5}
    store.save("features", {**tensors, "heads.weight": torch.ones(2)}, {"architecture": {"photonet": architecture}}, dtype=None)
    space = embedded_space("photonet", store.load("features"), CPU)
    found = space.features(images)
    torch.testing.assert_close(found, photonet(images / 127.5 - 1).detach(), rtol=1e-4, atol=1e-6)
    assert found.std(0).min() > 0
    assert not found.requires_grad
    assert space.classify(images) is None
    assert (space.name, space.weights_sha256) == ("photonet", store.sha256("features"))


def test_the_digits_space_classifies():
    suite = suites.get("digits")({})
    space = embedded_space("digitnet", suite.weights.load("features"), CPU)
    images, labels = suite.dataset("validation").load(range(180))
    assert (space.classify(images) == labels).float().mean() > 0.9
    assert space.features(images).shape == (180, 64)


def test_photonet_is_small():
    from torch.utils.flop_counter import FlopCounterMode

    network = PhotoNet()
    with FlopCounterMode(display=False) as counter:
        assert network(torch.zeros(1, 3, 64, 64)).shape == (1, 64)
    assert counter.get_total_flops() / 2 < 25e6
    assert sum(parameter.numel() for parameter in network.parameters()) < 5e5


def test_photonet_treats_each_image_by_itself(images, photonet):
    whole = photonet(IMAGES.restore(images))
    alone = torch.cat([photonet(IMAGES.restore(image[None])) for image in images])
    torch.testing.assert_close(whole, alone)


def test_photonets_gradient_is_that_of_finite_differences(photonet):
    image = torch.rand(1, 3, 6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    assert torch.autograd.gradcheck(photonet.double(), image)


class Counting:
    name, weights_sha256, settings = "counting", "a" * 64, "sums"

    def __init__(self):
        self.calls = 0

    def features(self, images: Tensor) -> Tensor:
        self.calls += 1
        return images.flatten(1).float().cumsum(1)[:, -2:]

    def classify(self, images: Tensor) -> Tensor:
        return images.flatten(1).sum(1)


def test_cached_features_are_computed_once(images, tmp_path):
    space = Counting()
    first = CachedFeatures(space, tmp_path / "cache").features(images)
    again = CachedFeatures(space, tmp_path / "cache").features(images.clone())
    assert space.calls == 1
    assert torch.equal(first, again)
    assert torch.equal(first, Counting().features(images))
    assert torch.equal(CachedFeatures(space, tmp_path).classify(images), space.classify(images))
    assert [path.suffix for path in (tmp_path / "cache" / "counting").iterdir()] == [".safetensors"]


@pytest.mark.parametrize("change", ["images", "order", "weights", "settings"])
def test_another_input_is_computed(images, tmp_path, change):
    space = Counting()
    CachedFeatures(space, tmp_path).features(images)
    if change == "images":
        images = images.clone()
        images[1, 2, 3, 4] ^= 1
    elif change == "order":
        images = images.flip(0)
    elif change == "weights":
        space.weights_sha256 = "b" * 64
    else:
        space.settings = "other sums"
    assert torch.equal(CachedFeatures(space, tmp_path).features(images), space.features(images))
    assert space.calls == 3
    assert len(list((tmp_path / "counting").iterdir())) == 2


@pytest.mark.parametrize("damage", ["cut", "emptied", "changed", "other tensors"])
def test_a_damaged_cache_file_is_computed_again(images, tmp_path, damage):
    from safetensors.torch import save

    space = Counting()
    cached = CachedFeatures(space, tmp_path)
    expected = cached.features(images)
    (path,) = (tmp_path / "counting").iterdir()
    content = bytearray(path.read_bytes())
    if damage == "cut":
        content = content[:-5]
    elif damage == "emptied":
        content = bytearray()
    elif damage == "changed":
        content[-1] ^= 1
    else:
        content = bytearray(save({"features": torch.zeros(3, 2)}))
    path.write_bytes(content)
    assert torch.equal(cached.features(images), expected)
    assert space.calls == 2
    assert torch.equal(cached.features(images), expected)
    assert space.calls == 2


def test_a_cache_that_cannot_be_written_costs_nothing(images, tmp_path, caplog):
    file = tmp_path / "file"
    file.write_text("")
    space = Counting()
    assert torch.equal(CachedFeatures(space, file).features(images), space.features(images))
    assert "features of counting are not stored" in caplog.text


def test_the_cache_folder(monkeypatch, tmp_path):
    from vfmbench.models.feature_cache import cache_folder

    monkeypatch.setenv("VFMBENCH_CACHE", str(tmp_path / "here"))
    assert cache_folder() == tmp_path / "here"
    monkeypatch.delenv("VFMBENCH_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "vfmbench" / "features"
