"""Weight files in our own format: precision, damage, and where a user's own lie."""

import hashlib
import json
from pathlib import Path

import pytest
import torch

from vfmbench.errors import MissingError, UserError
from vfmbench.models.networks import flow_network
from vfmbench.weights.external_files import user_weights_folder
from vfmbench.weights.store import WeightStore

ENTRY = {"architecture": {"flow": {}}}
TENSORS = {"flow.a": torch.randn(5, 3, generator=torch.Generator().manual_seed(0)), "flow.b": torch.arange(4.0).bfloat16()}


@pytest.fixture
def store(tmp_path):
    store = WeightStore(tmp_path / "weights", "Fetch them.")
    store.save("flow", TENSORS, ENTRY, dtype=None)
    return store


def test_tensors_come_back_in_float32_as_they_were(store):
    weights = store.load("flow")
    assert torch.equal(weights.part("flow")["a"], TENSORS["flow.a"])
    assert torch.equal(weights.part("flow")["b"], torch.arange(4.0))
    assert {tensor.dtype for tensor in weights.tensors.values()} == {torch.float32}


def test_the_default_is_half_precision(store):
    store.save("half", TENSORS, ENTRY)
    found = store.load("half").part("flow")["a"]
    assert torch.equal(found, TENSORS["flow.a"].half().float())
    assert not torch.equal(found, TENSORS["flow.a"])


def test_loaded_tensors_can_be_changed_without_changing_the_file(store):
    store.load("flow").tensors["flow.a"].zero_()
    assert torch.equal(store.load("flow").tensors["flow.a"], TENSORS["flow.a"])


def test_the_manifest_holds_the_hash_of_the_file(store):
    content = (store.directory / "flow.safetensors").read_bytes()
    expected = hashlib.sha256(content).hexdigest()
    assert (
        json.loads((store.directory / "manifest.json").read_text())["flow"]["sha256"] == expected == store.load("flow").sha256
    )


def test_weights_can_be_read_by_whoever_can_read_other_files_of_the_user(store):
    (store.directory / "other").touch()
    assert (store.directory / "flow.safetensors").stat().st_mode == (store.directory / "other").stat().st_mode


def test_views_of_one_tensor_are_stored_each_by_itself(store):
    whole = torch.arange(12.0).reshape(3, 4)
    store.save("views", {"flow.row": whole[1], "flow.column": whole[:, 1]}, ENTRY, dtype=None)
    part = store.load("views").part("flow")
    assert part["row"].tolist() == [4, 5, 6, 7]
    assert part["column"].tolist() == [1, 5, 9]


def test_every_damage_names_the_file_and_the_way_out(store):
    path = store.directory / "flow.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + b"?")
    with pytest.raises(MissingError, match=r"flow\.safetensors are damaged: SHA-256.*Fetch them"):
        store.load("flow")
    manifest = store.directory / "manifest.json"
    entry = {"flow": {**ENTRY, "file": path.name, "sha256": hashlib.sha256(b"text").hexdigest()}}
    path.write_bytes(b"text")
    manifest.write_text(json.dumps(entry))
    with pytest.raises(MissingError, match=r"not a safetensors file.*Fetch them"):
        store.load("flow")
    path.unlink()
    with pytest.raises(MissingError, match=r"Cannot read.*Fetch them"):
        store.load("flow")
    with pytest.raises(MissingError, match=r"'vfm' are not in .* \(it has: flow\)"):
        store.load("vfm")


def test_the_users_own_folder(monkeypatch):
    monkeypatch.setenv("VFMBENCH_WEIGHTS_DIR", "~/elsewhere")
    assert user_weights_folder("imagenet256") == Path.home() / "elsewhere/imagenet256"
    monkeypatch.delenv("VFMBENCH_WEIGHTS_DIR")
    assert user_weights_folder("imagenet256") == Path.home() / ".cache/vfmbench/weights/imagenet256"


def test_weights_of_another_size_say_which_tensor(tmp_path):
    store = WeightStore(tmp_path, "")
    store.save("linear", {"head.weight": torch.ones(2, 3), "head.bias": torch.ones(2)}, {"architecture": {}})
    weights = store.load("linear")
    layer = torch.nn.Linear(3, 2)
    weights.fill(layer, "head")
    assert torch.equal(layer.weight, torch.ones(2, 3))
    with pytest.raises(MissingError, match=r"linear\.safetensors do not fit the network 'head': size mismatch for weight"):
        weights.fill(torch.nn.Linear(4, 2), "head")


def test_a_flow_of_other_latents_is_refused():
    architecture = {
        "input_size": 8,
        "patch_size": 4,
        "in_channels": 1,
        "hidden_size": 16,
        "depth": 1,
        "dmf_depth": 1,
        "num_heads": 1,
    }
    flow_network((1, 8, 8), architecture)
    with pytest.raises(UserError, match="for latents of 1x8x8, not of 8x16x16"):
        flow_network((8, 16, 16), architecture)
