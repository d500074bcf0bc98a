"""The suite photos64 from its shipped weights, as a user runs it."""

import json

import pytest
import torch

from vfmbench import RunConfig
from vfmbench.cli import main
from vfmbench.domains import IMAGES
from vfmbench.errors import UserError
from vfmbench.registry import suites
from vfmbench.running.plan import plan

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def suite():
    return suites.get("photos64")({})


def test_a_run_needs_nothing_but_the_package(tmp_path, capsys):
    arguments = ["--suite", "photos64", "--method", "vfm", "--task", "inpaint_box", "--num-images", "8", "--samples", "2"]
    assert main(["run", *arguments, "--out", str(tmp_path), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    values = {row["name"]: row["value"] for row in printed["metrics"]}
    assert values["psnr"] > 15
    assert values["fid@photonet"] is not None
    assert set(printed["identity"]["weights_sha256"]) == {"vfm", "codec"}


def test_the_codec_is_better_than_block_pca_of_the_same_size(suite):
    codec = suite.backbone(CPU).codec
    images = IMAGES.restore(suite.dataset("test").load(range(64))[0])
    blocks = images.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 1, 4, 5).reshape(-1, 48)
    centred = blocks - blocks.mean(0)
    # Fitted to the very images that it is judged on.
    basis = torch.linalg.svd(centred, full_matrices=False)[2][:8]
    linear = (centred - centred @ basis.T @ basis).square().mean()
    with torch.no_grad():
        error = (codec.decode(codec.encode(images)) - images).square().mean()
    assert error < 0.7 * linear


def test_shipped_weights_fit_into_twenty_megabytes(suite):
    files = list(suite.weights.directory.glob("*.safetensors"))
    assert sum(file.stat().st_size for file in files) < 20e6
    assert {file.stem for file in files} >= {"codec", "features", "flow", "vfm", "frozen_adapter"}


def test_a_class_label_is_refused():
    options = {"method": {"label": "null"}}
    with pytest.raises(UserError, match=r"method\.label: the suite photos64 has no classes"):
        plan(RunConfig(method="vfm", task="inpaint_box", suite="photos64", options=options))


def test_training_without_photographs_says_how_to_name_them(tmp_path, capsys):
    assert main(["train", "codec", "--suite", "photos64", "--out", str(tmp_path)]) == 3
    assert "--set data.path=DIR" in " ".join(capsys.readouterr().err.split())
