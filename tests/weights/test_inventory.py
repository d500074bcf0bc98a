"""What is listed and verified of the weights on a machine, and the commands that do it."""

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console

from vfmbench.commands import weights as command
from vfmbench.errors import UserError
from vfmbench.reporting.weights_table import document, page, state_text
from vfmbench.weights.download import OFFLINE_VARIABLES
from vfmbench.weights.external_files import FILES, ExternalPaths, HashState, Place
from vfmbench.weights.inventory import convertible_statuses, damage, file_statuses, shipped_folders, user_folders
from vfmbench.weights.store import WeightStore


@pytest.fixture(autouse=True)
def empty_machine(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("VFMBENCH_WEIGHTS_DIR", str(tmp_path / "weights"))
    for name in (*OFFLINE_VARIABLES, *(file.variable for file in FILES.values())):
        monkeypatch.delenv(name, raising=False)


def options(action, *names, json=False, overrides=(), suite=None):
    return argparse.Namespace(action=action, names=list(names), json=json, overrides=list(overrides), suite=suite)


def store(tmp_path, name, entry):
    WeightStore(tmp_path / "weights" / "imagenet256", "").save(name, {"flow.x": torch.ones(1)}, {"architecture": {}, **entry})


def cached(name, content=b"content"):
    path = FILES[name].target
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def test_states(tmp_path, monkeypatch):
    known = hashlib.sha256(b"content").hexdigest()
    monkeypatch.setitem(FILES, "lpips_alex", replace(FILES["lpips_alex"], sha256=("00", known)))
    for name in ("sd_vae", "dino", "lpips_alex"):
        cached(name)
    given = tmp_path / "mine.pth"
    given.write_bytes(b"content")
    monkeypatch.setenv("VFMBENCH_WEIGHTS_LPIPS_VGG", str(tmp_path / "nowhere"))
    found = {status.file.name: status for status in file_statuses(ExternalPaths(inception=given))}
    assert {name: state_text(status) for name, status in found.items()} == {
        "sd_vae": "damaged",
        "inception": "another file",
        "dino": "no hash known",
        "lpips_alex": "ok",
        "lpips_vgg": "wrong path",
    }
    assert {name for name, status in found.items() if status.broken} == {"sd_vae", "lpips_vgg"}
    assert found["inception"].located.place == Place.OPTION
    assert found["dino"].sha256 == known
    unhashed = file_statuses(ExternalPaths(), ["sd_vae", "inception"], hashed=False)
    assert [state_text(status) for status in unhashed] == ["there", "missing"]


def test_convertible_files_are_told_by_what_they_became(tmp_path):
    assert [status.present for status in convertible_statuses()] == ["", "", ""]
    store(tmp_path, "flow", {})
    store(tmp_path, "vfm", {"source": {"file": "vfm-b2.pt"}})
    statuses = convertible_statuses()
    assert [status.present for status in statuses] == ["trained", "trained", "converted from vfm-b2.pt"]
    assert statuses[0].folder == tmp_path / "weights" / "imagenet256"


def test_the_shipped_weights_are_what_their_manifests_say():
    folders = shipped_folders()
    assert {"digits", "checkerboard", "gaussian"} <= {folder.name for folder in folders}
    assert [problem for folder in folders for _, problem in damage(folder) if problem] == []


def test_damage_of_every_kind(tmp_path):
    for name in ("flow", "vfm", "frozen_adapter", "features"):
        store(tmp_path, name, {})
    (folder,) = user_folders()
    (folder / "flow.safetensors").write_bytes(b"other")
    (folder / "vfm.safetensors").unlink()
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["features"]["sha256"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    found = dict(damage(folder))
    assert "flow.safetensors is damaged: SHA-256 is" in found["flow"]
    assert found["vfm"].startswith(f"Cannot read {folder / 'vfm.safetensors'}: No such file")
    assert "'features' has no sha256" in found["features"]
    assert found["frozen_adapter"] == ""
    (folder / "manifest.json").write_text("{")
    assert "Cannot read" in dict(damage(folder))["manifest"]


@pytest.mark.parametrize("width", [80, 140])
def test_the_page_fits_and_what_is_to_be_copied_is_whole(capsys, width):
    console = Console(width=width)
    console.print(page(file_statuses(ExternalPaths()), convertible_statuses()), crop=False)
    lines = capsys.readouterr().out.splitlines()
    assert f"Fetch what is missing: vfmbench weights fetch {' '.join(FILES)}" in lines
    assert any(line.endswith("SiT-XL-2-256.pt?rlkey=uxzxmpicu46coq3msb17b9ofa&dl=0") for line in lines)
    assert all(len(line) <= width for line in lines if not line.startswith(("  ", "Fetch")))
    # Names, sizes and licences are never broken.
    for file in FILES.values():
        assert any(file.name in line and f" {file.megabytes} " in line and file.licence in line for line in lines)


def test_status_as_json(capsys, tmp_path):
    path = cached("dino")
    assert command.main(options("status", json=True)) == 0
    content = json.loads(capsys.readouterr().out)
    assert content == document(file_statuses(ExternalPaths()), convertible_statuses())
    entries = {entry["name"]: entry for entry in content["files"]}
    assert entries["dino"]["path"] == str(path)
    assert entries["dino"]["found_by"] == "cache"
    assert entries["sd_vae"]["state"] == "missing"
    assert entries["sd_vae"]["looked_for"]["variable"] == "VFMBENCH_WEIGHTS_SD_VAE"
    assert command.main(options("status", overrides=[f"weights.sd_vae={path}"])) == 0
    assert "another file" in capsys.readouterr().out


def test_verify(capsys, tmp_path):
    assert command.main(options("verify")) == 0
    out = capsys.readouterr().out
    assert "sd_vae: not here" in out
    assert "digits/vfm: ok" in out
    path = cached("sd_vae")
    assert command.main(options("verify")) == 1
    expected = f"sd_vae: damaged ({path}): it is not the published file; `vfmbench weights fetch sd_vae` replaces it"
    assert expected in capsys.readouterr().out.splitlines()
    assert command.main(options("verify", "digits", "dino")) == 0
    (digits,) = (folder for folder in shipped_folders() if folder.name == "digits")
    assert len(capsys.readouterr().out.splitlines()) == 1 + len(json.loads((digits / "manifest.json").read_text()))
    store(tmp_path, "flow", {})
    (tmp_path / "weights" / "imagenet256" / "flow.safetensors").write_bytes(b"")
    assert command.main(options("verify", "imagenet256")) == 1
    assert "is damaged" in capsys.readouterr().out
    with pytest.raises(UserError, match="Did you mean 'digits'"):
        command.main(options("verify", "digit"))


def test_fetch_chooses_what_is_missing(capsys, monkeypatch):
    asked = []
    monkeypatch.setattr(command, "fetch", lambda file: asked.append(file.name) or file.target)
    cached("dino")
    cached("sd_vae", b"damaged")
    assert command.main(options("fetch", "all")) == 0
    assert asked == ["sd_vae", "inception", "lpips_alex", "lpips_vgg"]
    assert f"dino is there: {FILES['dino'].target}" in capsys.readouterr().err
    asked.clear()
    suite = SimpleNamespace(external_names=["sd_vae", "inception"])
    monkeypatch.setattr(command, "load_suite", lambda name: suite)
    assert command.main(options("fetch", suite="imagenet256")) == 0
    assert asked == ["sd_vae", "inception"]
    with pytest.raises(UserError, match="takes names"):
        command.main(options("fetch"))
    with pytest.raises(UserError, match="Did you mean 'inception'"):
        command.main(options("fetch", "incepton"))


def test_one_that_cannot_be_fetched_does_not_stop_the_others(capsys, monkeypatch):
    monkeypatch.setenv("VFMBENCH_OFFLINE", "1")
    assert command.main(options("fetch", "dino", "lpips_vgg")) == 3
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if line.startswith("vfmbench: VFMBENCH_OFFLINE is set")] == lines
    assert FILES["dino"].url in lines[0]
    assert str(FILES["lpips_vgg"].target) in lines[1]


def test_what_is_there_can_be_listed_without_torch():
    code = (
        "import sys; from vfmbench.commands import weights as w; print(len(w.convertible_statuses()), 'torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "3 False\n"


def test_hash_states_are_words():
    assert {str(state) for state in HashState} == {"ok", "damaged", "another file", "no hash known", "unreadable"}
    assert shutil.which("curl") is None or FILES["dino"].fetch_command.startswith("curl ")
