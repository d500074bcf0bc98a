"""photos64's training from a folder of photographs: every stage in turn, stopped and resumed, and samplers on what it wrote."""

import json
import os
import signal

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from vfmbench import RunConfig
from vfmbench.cli import main
from vfmbench.domains import IMAGES
from vfmbench.errors import MissingError, UserError
from vfmbench.methods.stages import FrozenAdapterStage, VFMStage
from vfmbench.registry import suites
from vfmbench.running.runner import run
from vfmbench.training.batches import Batch
from vfmbench.training.codec import CodecStage

CPU = torch.device("cpu")
STAGES = ["codec", "features", "flow_matching", "flow", "frozen_adapter", "vfm"]
SMALL = {
    "codec": ["linear_images=64", "validate_images=8"],
    "features": ["validate_images=8"],
    "flow_matching": ["validate_images=4"],
    "flow": ["validate_images=4"],
    "frozen_adapter": ["validate_images=2"],
    "vfm": ["validate_images=2"],
}


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    root = tmp_path_factory.mktemp("photographs")
    for number in range(3):
        small = np.random.default_rng(number).integers(0, 256, (12, 16, 3), dtype=np.uint8)
        Image.fromarray(small).resize((128, 96), Image.Resampling.BICUBIC).save(root / f"{number}.png")
    return root


def arguments(stage, photographs, out, steps=2):
    changes = [f"{name}.{change}" for name, values in SMALL.items() for change in [*values, f"steps={steps}", "batch_size=4"]]
    overrides = [part for change in changes if stage in ("all", change.partition(".")[0]) for part in ("--set", change)]
    data = ["--set", f"data.path={photographs}", "--set", "data.held_out=0.67"]
    return ["train", stage, "--suite", "photos64", *data, *overrides, "--out", str(out)]


@pytest.fixture(scope="module")
def trained(photographs, tmp_path_factory):
    out = tmp_path_factory.mktemp("weights")
    assert main(arguments("all", photographs, out)) == 0
    return out


def test_all_stages_are_trained_in_turn_and_start_from_one_another(trained):
    manifest = json.loads((trained / "manifest.json").read_text())
    assert list(manifest) == STAGES
    inputs = {name: set(entry["inputs"]) - {"training data"} for name, entry in manifest.items()}
    assert inputs["codec"] == inputs["features"] == set()
    assert inputs["flow_matching"] == {"codec weights"}
    assert inputs["flow"] == {"codec weights", "flow_matching weights"}
    assert inputs["vfm"] == inputs["frozen_adapter"] == {"codec weights", "flow weights"}
    assert manifest["flow"]["inputs"]["flow_matching weights"] == manifest["flow_matching"]["sha256"]


def test_the_codec_standardises_what_it_was_trained_on(trained, photographs):
    options = {"data": {"path": str(photographs), "held_out": 0.67}, "weights": {"path": str(trained)}}
    suite = suites.get("photos64")(options)
    images = IMAGES.restore(suite.dataset("train").load(range(0, 256, 4))[0])
    latents = suite.backbone(CPU).codec.encode(images)
    torch.testing.assert_close(latents.mean((0, 2, 3)), torch.zeros(8), atol=0.02, rtol=0)
    torch.testing.assert_close(latents.std((0, 2, 3)), torch.ones(8), atol=0.02, rtol=0)


@pytest.mark.parametrize("stage_class", [VFMStage, FrozenAdapterStage])
def test_the_recipes_posterior_starts_at_the_prior_and_its_weights_are_those_of_the_elbo(stage_class, photographs, trained):
    data = {"path": str(photographs), "held_out": 0.67}
    suite = suites.get("photos64")({"data": data, "weights": {"path": str(trained)}})
    recipe = suite.training[stage_class.name]
    options = stage_class.Options(**{**recipe, "batch_size": 8, "problems": ["super_resolution"]})
    stage = stage_class(suite, options, suite.weights, CPU)
    batch = Batch.draw(0, len(suite.dataset("train")), 8, torch.Generator().manual_seed(0))
    _, terms = stage.loss(batch, stage.networks if "flow" in stage.networks else {})
    assert terms["kl"].item() == 0
    # Half of the squared residual in units of the noise, summed over the 3x16x16 entries of y: at least that of the noise.
    assert terms["observation"].item() > 0.4 * 3 * 16 * 16
    assert options.observation_weight == options.kl_weight == 1


def test_samplers_run_on_what_was_trained(trained, tmp_path):
    for method in ("vfm", "frozen_adapter"):
        options = {"weights": {"path": str(trained)}}
        config = RunConfig(
            method=method, task="motion_deblur", suite="photos64", num_images=2, samples=2, options=options, out=tmp_path
        )
        assert run(config).samples().read("images").shape[-3:] == (3, 64, 64)


@pytest.mark.parametrize("stage", ["codec", "vfm"])
def test_a_stage_that_was_stopped_goes_on(stage, photographs, trained, tmp_path, monkeypatch):
    stage_class = {"codec": CodecStage, "vfm": VFMStage}[stage]
    weights = []
    for folder, stop in (("whole", None), ("stopped", 1)):
        out = tmp_path / folder
        real = stage_class.loss

        def loss(self, batch, ema, stop=stop, real=real):
            if batch.step == stop:
                os.kill(os.getpid(), signal.SIGTERM)
            return real(self, batch, ema)

        command = [*arguments(stage, photographs, out, steps=3), "--set", f"weights.path={trained}"]
        with monkeypatch.context() as patch:
            patch.setattr(stage_class, "loss", loss)
            assert main(command) == (0 if stop is None else 75)
        if stop is not None:
            assert main(command) == 0
        weights.append(load_file(out / f"{stage}.safetensors"))
    assert all(torch.equal(weights[0][name], value) for name, value in weights[1].items())


def test_weights_of_another_size_are_refused(trained, tmp_path):
    """A folder that holds another suite's weights under the same name."""
    shipped = suites.get("digits")({}).weights.directory
    for name in ("manifest.json", "flow.safetensors", "features.safetensors", "frozen_adapter.safetensors", "vfm.safetensors"):
        (tmp_path / name).write_bytes((shipped / name).read_bytes())
    config = RunConfig(
        method="vfm",
        task="gaussian_deblur",
        suite="photos64",
        num_images=2,
        samples=2,
        options={"weights": {"path": str(tmp_path)}},
        out=tmp_path / "runs",
    )
    with pytest.raises((MissingError, UserError), match="codec"):
        run(config)


def test_an_adapter_of_another_codec_is_refused(trained, tmp_path, photographs):
    other = tmp_path / "other"
    assert main([*arguments("codec", photographs, other, steps=3)]) == 0
    manifest = json.loads((other / "manifest.json").read_text())
    manifest["vfm"] = json.loads((trained / "manifest.json").read_text())["vfm"]
    (other / "manifest.json").write_text(json.dumps(manifest))
    (other / "vfm.safetensors").write_bytes((trained / "vfm.safetensors").read_bytes())
    options = {"weights": {"path": str(other)}}
    config = RunConfig(method="vfm", task="inpaint_box", suite="photos64", num_images=2, options=options, out=tmp_path / "runs")
    with pytest.raises(MissingError, match="were trained on another codec"):
        run(config)
