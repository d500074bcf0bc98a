"""The suite imagenet256 from the command line, on random weights of the published layouts with few channels."""

import hashlib
import json
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from vfmbench import files
from vfmbench.cli import main
from vfmbench.methods.adapter import NoiseAdapter
from vfmbench.models import sd_vae
from vfmbench.models.sit import SiT
from vfmbench.options import dump
from vfmbench.registry import suites
from vfmbench.results.paths import RunPaths
from vfmbench.results.run_directory import RunStore
from vfmbench.tasks.datasets.imagenet import classes
from vfmbench.weights.store import WeightStore

SMALL_VAE = {"block_out_channels": (8, 8, 16, 16), "layers_per_block": 1, "norm_num_groups": 4}
SMALL_SIT = {"patch_size": 8, "hidden_size": 48, "depth": 2, "dmf_depth": 1, "num_heads": 2}
SMALL_ADAPTER = {
    "channels": 8,
    "channel_multipliers": [1, 1, 1, 1],
    "blocks_per_stage": 1,
    "embedding_size": 8,
    "norm_groups": 4,
}
PHOTOGRAPHS = Path(os.environ.get("VFMBENCH_IMAGENET256", Path(__file__).parents[3] / "shared" / "data" / "imagenet256"))
SOLVERS = ["latent_dps", "latent_daps", "psld", "mpgd", "flowchef", "flowdps", "unguided"]


@pytest.fixture
def imagenet(tmp_path):
    """A folder of 24 random images in two of ImageNet's classes."""
    random = np.random.default_rng(0)
    for number in range(24):
        folder = tmp_path / "imagenet" / classes()[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (256, 256, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    return tmp_path / "imagenet"


@pytest.fixture
def weights(tmp_path, monkeypatch):
    """Random weights where the suite looks for them: a converted SiT, a VFM in our own format, a codec."""
    for key, value in SMALL_VAE.items():
        monkeypatch.setitem(sd_vae.CONFIG, key, value)
    torch.manual_seed(0)
    save_file(sd_vae.autoencoder().state_dict(), tmp_path / "vae.safetensors")
    monkeypatch.setenv("VFMBENCH_WEIGHTS_SD_VAE", str(tmp_path / "vae.safetensors"))
    monkeypatch.setenv("VFMBENCH_WEIGHTS_DIR", str(tmp_path / "weights"))
    flow = SiT(input_size=32, in_channels=4, num_classes=1000, **SMALL_SIT)
    for parameter in flow.parameters():
        if not parameter.any():  # what starts at zero would hide the label
            torch.nn.init.normal_(parameter, std=0.02)
    torch.save({"ema": flow.state_dict()}, tmp_path / "sit.pt")
    arguments = ["--set", "convert.num_heads=2", "--set", "convert.dmf_depth=1"]
    assert main(["weights", "convert", str(tmp_path / "sit.pt"), *arguments]) == 0
    suite = suites.get("imagenet256")({})
    store, problems = suite.weights, suite.training["vfm"]["problems"]
    assert store.directory == tmp_path / "weights" / "imagenet256"
    architecture = {
        "flow": store.entry("flow")["architecture"]["flow"],
        "adapter": {**SMALL_ADAPTER, "num_problems": len(problems)},
    }
    adapter = NoiseAdapter(**architecture["adapter"])
    tensors = {f"flow.{name}": value for name, value in flow.state_dict().items()}
    tensors |= {f"adapter.{name}": value for name, value in adapter.state_dict().items()}
    known = {name: dump(suite.task(name, {}).options) for name in problems}
    WeightStore(store.directory, "").save(
        "vfm", tensors, {"architecture": architecture, "problems": problems, "problem_options": known, "inputs": {}}
    )


def run(tmp_path, data, method, *options):
    arguments = [
        "run",
        "--suite",
        "imagenet256",
        "--method",
        method,
        "--set",
        f"data.path={data}",
        "--metrics",
        "psnr,residual",
    ]
    return main([*arguments, "--out", str(tmp_path / "runs"), *options])


def test_all_that_is_missing_is_named_at_once(capsys, tmp_path):
    assert main(["run", "--suite", "imagenet256", "--method", "vfm", "--task", "gaussian_deblur", "--out", str(tmp_path)]) == 3
    message = capsys.readouterr().err
    assert "3 things are missing" in message
    for part in ("vfmbench weights convert FILE", "vfmbench weights fetch sd_vae", "--set data.path=DIR"):
        assert part in message
    assert not list(tmp_path.iterdir())


def test_a_wrong_codec_file_is_refused(capsys, tmp_path, imagenet, weights, monkeypatch):
    save_file({"strange": torch.zeros(1)}, tmp_path / "other.safetensors")
    monkeypatch.setenv("VFMBENCH_WEIGHTS_SD_VAE", str(tmp_path / "other.safetensors"))
    assert run(tmp_path, imagenet, "vfm", "--task", "denoise", "--num-images", "1") == 2
    assert "tensors missing" in capsys.readouterr().err


def test_vfm_finds_its_weights_by_itself(capsys, tmp_path, imagenet, weights):
    capsys.readouterr()
    for task, options in (
        ("gaussian_deblur", ["--set", "method.projection=true"]),
        ("super_resolution", ["--precision", "bfloat16"]),
    ):
        assert run(tmp_path, imagenet, "vfm", "--task", task, "--num-images", "2", "--samples", "2", "--json", *options) == 0
        result = json.loads(capsys.readouterr().out)
        assert result["status"] == "done"
    [blurred] = RunPaths.below(tmp_path / "runs/imagenet256/gaussian_deblur/vfm")
    assert {"vfm", "codec"} == RunStore(blurred.directory).provenance()["weights_sha256"].keys()


def test_compare_hashes_data_and_weights_once(tmp_path, imagenet, weights, random_inception, monkeypatch):
    monkeypatch.setattr(files, "SETTLED_SECONDS", 0)
    hashed = []
    real = hashlib.file_digest

    def counting(file, *arguments):
        hashed.append(Path(file.name).name)
        return real(file, *arguments)

    monkeypatch.setattr(hashlib, "file_digest", counting)
    arguments = [
        "--set",
        f"data.path={imagenet}",
        "--set",
        f"weights.inception={random_inception}",
        "--metrics",
        "psnr,residual",
    ]
    cells = ["--methods", "vfm,autoencoded,unguided", "--tasks", "denoise,inpaint_box", "--set", "unguided.steps=1"]
    size = ["--num-images", "1", "--samples", "1"]
    assert main(["compare", "--suite", "imagenet256", *cells, *size, *arguments, "--out", str(tmp_path / "runs")]) == 0
    counts = Counter(hashed)
    test_images = [name for name in counts if name.endswith(".png")]
    assert len(test_images) >= 12
    used = {"vae.safetensors", "vfm.safetensors", random_inception.name, *test_images}
    assert {name: counts[name] for name in used} == dict.fromkeys(used, 1)


@pytest.mark.parametrize("method", SOLVERS)
def test_one_step_of_every_solver_at_256_pixels(capsys, tmp_path, imagenet, weights, method):
    options = [] if method == "unguided" else ["--set", "method.guidance_scale=2"]
    assert run(tmp_path, imagenet, method, "--task", "inpaint_box", "--num-images", "1", "--steps", "1", *options) == 0


def test_class_labels_reach_the_network(tmp_path, imagenet, weights):
    drawn = []
    for label in ("true", "null"):
        out = tmp_path / label
        options = ["--task", "denoise", "--num-images", "2", "--out", str(out), "--set", f"method.label={label}"]
        assert run(tmp_path, imagenet, "vfm", *options) == 0
        [shard] = next(RunPaths.below(out)).shards()
        drawn.append(load_file(shard)["images"])
    assert not torch.equal(*drawn)


@pytest.mark.slow
def test_all_photographs_of_a_folder_end_to_end(tmp_path, weights):
    # A thousand make 800 test images.
    if not PHOTOGRAPHS.is_dir():
        pytest.skip(f"there are no photographs in {PHOTOGRAPHS} (VFMBENCH_IMAGENET256)")
    size = ["--num-images", "800", "--task", "gaussian_deblur", "--batch-size", "32"]
    assert run(tmp_path, PHOTOGRAPHS, "vfm", *size) == 0
    [stored] = RunPaths.below(tmp_path / "runs")
    assert {row.n for row in RunStore(stored.directory).metrics() if row.metric == "psnr"} == {800}
