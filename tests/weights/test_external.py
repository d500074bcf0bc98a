"""Files of weights that are not shipped: where they are looked for, and what is said when they are not there or not right."""

import hashlib
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from vfmbench.errors import MissingError, UserError
from vfmbench.models.dino import DinoFeatures
from vfmbench.models.features import external_space
from vfmbench.models.inception import InceptionFeatures
from vfmbench.models.perceptual import LPIPS, perceptual_distance
from vfmbench.options import validate
from vfmbench.weights.external import FILES, ExternalPaths, load_external
from vfmbench.weights.external_files import torch_hub_folder

CPU = torch.device("cpu")


@pytest.fixture
def caches(tmp_path, monkeypatch):
    """An empty torch hub folder."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch home"))
    folder = tmp_path / "torch home" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "given.pth"
    torch.save({"layer.weight": torch.ones(2)}, path)
    return path


def test_the_addresses_are_those_of_the_packages():
    import timm
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3
    from torchvision.models import AlexNet_Weights, VGG16_Weights

    dino = timm.get_pretrained_cfg("vit_small_patch16_224.dino")
    assert FILES["inception"].url == URL_INCEPTION_V3
    assert FILES["dino"].url == dino.url
    assert FILES["dino"].hugging_face == ("timm/vit_small_patch16_224.dino", ("model.safetensors",))
    assert FILES["lpips_alex"].url == AlexNet_Weights.IMAGENET1K_V1.url
    assert FILES["lpips_vgg"].url == VGG16_Weights.IMAGENET1K_V1.url
    for name, file in FILES.items():
        assert file.name == name
        assert all(len(known) == 64 or known in file.file_name for known in file.sha256)
        assert file.purpose
        assert file.licence


@pytest.mark.parametrize("name", FILES)
def test_missing_weights_say_where_to_put_them_and_how_to_fetch_them(caches, name):
    file = FILES[name]
    with pytest.raises(MissingError) as error:
        load_external(name, None)
    command = f"curl -fL --create-dirs -o {shlex.quote(str(caches / file.file_name))} {file.url}"
    assert str(error.value).endswith(f"fetch them with: {command}")
    assert f"`vfmbench weights fetch {name}`" in str(error.value)
    for word in (file.file_name, f"weights.{name}", file.variable, f"{file.megabytes} MB", file.licence):
        assert word in str(error.value)


def test_the_option_comes_before_the_variable_and_that_before_the_cache(caches, weights, tmp_path, monkeypatch):
    monkeypatch.setitem(FILES, "dino", replace(FILES["dino"], hugging_face=None))
    (caches / FILES["dino"].file_name).write_bytes(weights.read_bytes())
    assert load_external("dino", None).path == caches / FILES["dino"].file_name
    other = tmp_path / "other.pth"
    other.write_bytes(weights.read_bytes())
    monkeypatch.setenv("VFMBENCH_WEIGHTS_DINO", str(other))
    assert load_external("dino", None).path == other
    loaded = load_external("dino", weights)
    assert loaded.path == weights
    assert loaded.sha256 == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert torch.equal(loaded.tensors["layer.weight"], torch.ones(2))
    monkeypatch.setenv("VFMBENCH_WEIGHTS_DINO", str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="VFMBENCH_WEIGHTS_DINO: there is no file"):
        load_external("dino", None)


def test_the_hugging_face_cache_is_searched(caches, tmp_path, monkeypatch):
    import huggingface_hub

    path = tmp_path / "model.safetensors"
    save_file({"layer.weight": torch.ones(3)}, path)
    asked = []
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *place: asked.append(place) or str(path))
    loaded = load_external("dino", None)
    assert asked == [("timm/vit_small_patch16_224.dino", "model.safetensors")]
    assert loaded.tensors["layer.weight"].tolist() == [1, 1, 1]


def test_a_cached_file_must_be_the_published_one_and_a_given_one_says_if_it_is_not(caches, weights, monkeypatch):
    cached = caches / FILES["inception"].file_name
    cached.write_bytes(weights.read_bytes())
    with pytest.raises(MissingError, match=r"is damaged: .* not 6726825d; delete it .* weights fetch inception.* curl -fL"):
        load_external("inception", None)
    assert load_external("inception", weights).origin.startswith("WARNING: given.pth is NOT the published weights-inception")
    prefix = hashlib.sha256(weights.read_bytes()).hexdigest()[:8]
    monkeypatch.setitem(FILES, "inception", replace(FILES["inception"], sha256=(prefix,)))
    assert load_external("inception", None).origin == f"weights {cached.name}"
    assert "no hash" in load_external("dino", weights).origin


def test_the_name_that_pytorch_fid_stores_it_under_is_found(caches, weights, monkeypatch):
    prefix = hashlib.sha256(weights.read_bytes()).hexdigest()[:8]
    monkeypatch.setitem(FILES, "inception", replace(FILES["inception"], sha256=(prefix,)))
    path = caches / "pt_inception-2015-12-05-6726825d.pth"
    path.write_bytes(weights.read_bytes())
    assert load_external("inception", None).path == path


class Payload:
    def __reduce__(self):
        return (print, ("unpickled",))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"state": Payload()}, "pickled objects besides tensors"),
        ([1, 2], "not a mapping from names to tensors"),
        ({"model": {"weight": torch.ones(1)}}, "other things than a mapping from names to tensors"),
        (None, "not a file of PyTorch weights"),
    ],
)
def test_files_that_hold_no_tensors_are_refused_and_nothing_is_executed(capsys, tmp_path, content, words):
    path = tmp_path / "weights.pth"
    path.write_text("text") if content is None else torch.save(content, path)
    with pytest.raises(UserError, match=words) as error:
        load_external("inception", path)
    assert str(path) in str(error.value)
    assert len(str(error.value).splitlines()) == 1
    assert capsys.readouterr().out == ""


def test_a_broken_safetensors_file(tmp_path):
    path = tmp_path / "weights.safetensors"
    path.write_text("text")
    with pytest.raises(UserError, match="not a file of PyTorch weights or safetensors"):
        load_external("dino", path)


@pytest.mark.parametrize(
    ("name", "build"),
    [
        ("inception", InceptionFeatures),
        ("dino", DinoFeatures),
        ("lpips_alex", lambda loaded, device: LPIPS("lpips_alex", loaded, device)),
    ],
)
def test_weights_of_another_layout_are_one_sentence(weights, name, build):
    with pytest.raises(UserError) as error:
        build(load_external(name, weights), CPU)
    assert str(error.value).startswith(f"{weights} has another layout than {FILES[name].file_name}: ")
    assert len(str(error.value)) < 500
    assert len(str(error.value).splitlines()) == 1


def test_paths_are_checked_before_any_work(tmp_path, weights):
    assert ExternalPaths(dino=weights).path_of("dino") == weights
    assert ExternalPaths().path_of("dino") is None
    with pytest.raises(UserError, match=r"weights\.dino: .*nowhere"):
        validate(ExternalPaths, {"dino": str(tmp_path / "nowhere")}, "weights.")
    with pytest.raises(UserError, match=r"weights\.dinno.*'weights\.dino'"):
        validate(ExternalPaths, {"dinno": str(weights)}, "weights.")


def test_a_path_in_the_home_folder(tmp_path, weights, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert validate(ExternalPaths, {"dino": "~/given.pth"}).dino == tmp_path / "given.pth"


def test_unknown_names():
    with pytest.raises(UserError, match="Did you mean 'inception'"):
        external_space("incepton", ExternalPaths(), CPU)
    with pytest.raises(UserError, match="Did you mean 'lpips_vgg'"):
        perceptual_distance("lpips_vg", ExternalPaths(), CPU)


def test_the_torch_hub_folder_is_torchs_own(caches):
    assert torch_hub_folder() == caches == Path(torch.hub.get_dir()) / "checkpoints"


def test_a_folder_of_diffusers_stands_for_the_file_in_it(caches, tmp_path, monkeypatch):
    folder = tmp_path / "vae"
    folder.mkdir()
    with pytest.raises(UserError, match=r"weights\.sd_vae: .*vae"):
        validate(ExternalPaths, {"sd_vae": str(folder)}, "weights.")
    old = folder / "diffusion_pytorch_model.bin"
    torch.save({"layer.weight": torch.ones(2)}, old)
    assert validate(ExternalPaths, {"sd_vae": str(folder)}).path_of("sd_vae") == old
    new = folder / "diffusion_pytorch_model.safetensors"
    save_file({"layer.weight": torch.ones(2)}, new)
    monkeypatch.setenv("VFMBENCH_WEIGHTS_SD_VAE", str(folder))
    assert load_external("sd_vae", None).path == new
