"""What it costs to add something from outside the package: one file each, and nothing of the package is touched."""

import json
import os
import shutil
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vfmbench.results.paths import RunPaths

SAMPLER = """
from vfmbench import registry
from vfmbench.interfaces import Sampler
from vfmbench.measurement import Samples


class Denoised(Sampler):
    \"\"\"One step of the flow from noise, and of no use.\"\"\"

    weights = ("flow",)

    def sample(self, measurement, num_samples, noise):
        z = noise.normal(self.suite.latent_shape, 0)
        label = measurement.label.repeat_interleave(num_samples)
        x = z - self.backbone.flow.average_velocity(z, 1.0, 0.0, label)
        return Samples(self.backbone.codec.decode(x).unflatten(0, (len(measurement), num_samples)))


registry.samplers.register("denoised", Denoised)
"""

TASK = """
import torch

from vfmbench import registry
from vfmbench.tasks.operators import Mask
from vfmbench.tasks.problems import InverseProblem


class UpperHalf(InverseProblem):
    \"\"\"The lower half is missing.\"\"\"

    kind = "upper_half"

    def _operator(self, noise, rows):
        height, width = self.image_shape[1:]
        observed = (torch.arange(height) < height // 2)[:, None].expand(rows, 1, height, width)
        return Mask(observed, self.image_shape)


registry.tasks.register("upper_half", UpperHalf)
"""

FEATURE_SPACE = """
from vfmbench import registry


class Quarters:
    \"\"\"Mean of each quarter of an image.\"\"\"

    name, weights_sha256, settings = "quarters", "1", "means of four quarters"

    def features(self, images):
        means = images.float().mean(1).unflatten(2, (2, -1)).unflatten(1, (2, -1)).mean((2, 4))
        return means.flatten(1)

    def classify(self, images):
        return None


registry.feature_spaces.register("quarters", lambda paths, device: Quarters())
"""

FIGURE = """
from matplotlib.figure import Figure

from vfmbench import registry
from vfmbench.results.stored import find_runs


def scatter(folders, out=None):
    \"\"\"One metric over another, a point for each run.\"\"\"
    figure = Figure()
    axes = figure.subplots()
    for run in find_runs(folders):
        axes.plot(run.metrics["psnr"].value, run.metrics["residual"].value, "o", label=run.identity.method)
    path = folders[0] / "scatter.svg" if out is None else out
    figure.savefig(path)
    return path


registry.figures.register("scatter", scatter)
"""

SUITE = """
name: mine
data: {source: digits}
image_shape: [1, 8, 8]
num_classes: 10
feature_spaces: {digitnet: features}
weights: networks
num_images: 12
num_samples: 2
tasks:
  soft: {kind: gaussian_deblur, kernel_size: 3, std: 0.8, noise_std: 0.1}
training: {flow: {}}
"""


def vfmbench(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "vfmbench", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment, check=False)


def rows(done: subprocess.CompletedProcess[str]) -> dict[str, dict]:
    assert done.returncode == 0, done.stderr
    return {row["name"]: row for row in json.loads(done.stdout)["metrics"]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder of somebody else's: five files, and networks."""
    path = tmp_path_factory.mktemp("outside")
    parts = {"sampler.py": SAMPLER, "task.py": TASK, "space.py": FEATURE_SPACE, "figure.py": FIGURE, "mine.yaml": SUITE}
    for name, text in parts.items():
        (path / name).write_text(text)
    shutil.copytree(str(files("vfmbench.assets") / "digits"), path / "networks")
    return path


def test_a_sampler_and_a_task_are_a_file_each(folder):
    found = rows(
        vfmbench(
            *("run", "--plugin", "sampler.py", "--plugin", "task.py", "--method", "denoised", "--task", "upper_half"),
            *("--num-images", "4", "--samples", "2", "--metrics", "psnr,residual", "--json"),
            folder=folder,
        )
    )
    assert found["psnr"]["n"] == 4
    assert found["nfe"]["value"] == 1


def test_a_feature_space_is_a_file(folder):
    found = rows(
        vfmbench(
            *("run", "--plugin", "space.py", "--method", "pinv", "--task", "denoise", "--num-images", "8", "--samples", "2"),
            *("--metrics", "crps,feature_distance", "--json"),
            folder=folder,
        )
    )
    assert found["crps@quarters"]["value"] is not None
    assert found["crps@quarters"]["feature_space"] == "quarters"
    assert found["crps@digitnet"]["value"] is not None


def test_a_figure_is_a_file(folder):
    run = ("run", "--task", "denoise", "--num-images", "4", "--samples", "2", "--metrics", "psnr,residual", "--out", "drawn")
    assert vfmbench(*run, "--method", "pinv", folder=folder).returncode == 0
    done = vfmbench("figure", "scatter", "drawn", "--plugin", "figure.py", folder=folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "drawn/scatter.svg"
    assert "<path" in (folder / "drawn/scatter.svg").read_text()
    assert "invalid choice: 'scatter'" in vfmbench("figure", "scatter", "drawn", folder=folder).stderr


def test_a_suite_is_a_yaml_file_with_networks_of_its_own(folder):
    run = ("run", "--suite", "mine.yaml", "--method", "unguided", "--task", "soft", "--steps", "2", "--json")
    found = rows(vfmbench(*run, "--metrics", "psnr,crps", folder=folder))
    assert found["psnr"]["n"] == 12
    assert found["crps@digitnet"]["value"] is not None
    (directory,) = (folder / "results/runs/mine/soft/unguided").iterdir()
    assert "suite: mine" in RunPaths(directory).config.read_text()
    # From another folder, the networks still lie beside the file.
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    again = rows(vfmbench(*run[:2], "../mine.yaml", *run[3:], "--metrics", "psnr", folder=elsewhere))
    assert again["psnr"]["value"] == found["psnr"]["value"]
    (folder / "networks/flow.safetensors").unlink()
    done = vfmbench(*run, "--set", "method.steps=3", folder=folder)
    assert done.returncode == 3
    assert "networks/flow.safetensors" in done.stderr


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("source: digits", "source: dogs"), "bad.yaml:3: Unknown data source 'dogs'"),
        (("source: digits", "source: digits, size: 3"), "bad.yaml:3: Unknown key 'data.size'"),
        (("image_shape: [1, 8, 8]", ""), "image_shape is required for the data source digits"),
        (("image_shape: [1, 8, 8]", "image_shape: [1, 8]"), "bad.yaml:4: image_shape"),
        (("num_images: 12", "num_image: 12"), "bad.yaml:8: Unknown key 'num_image'"),
        (("weights: networks", "codec: jpeg"), "bad.yaml:7: Unknown codec 'jpeg'"),
        (("tasks:", "tusks:"), "bad.yaml:10: Unknown key 'tusks'. Did you mean 'tasks'"),
        (("data: {source: digits}", ""), "data is required"),
    ],
)
def test_mistakes_of_a_suites_file_are_told_with_its_line(tmp_path, capsys, change, message):
    from vfmbench.cli import main

    path = tmp_path / "bad.yaml"
    path.write_text(SUITE.replace(*change))
    assert main(["run", "--suite", str(path), "--method", "pinv", "--task", "soft", "--out", str(tmp_path / "runs")]) == 2
    assert message in capsys.readouterr().err.replace("\n", " ")
    assert not (tmp_path / "runs").exists()


def test_a_suites_file_that_is_not_there_is_named(tmp_path, capsys):
    from vfmbench.cli import main

    assert main(["run", "--suite", str(tmp_path / "none.yaml"), "--method", "pinv", "--task", "soft"]) == 2
    assert "none.yaml" in capsys.readouterr().err


def test_readmes_suite_runs(tmp_path):
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    text = readme.partition("## Your own suite")[2].partition("```yaml\n")[2].partition("```")[0]
    assert "strong_blur" in text
    (tmp_path / "mine.yaml").write_text(text)
    (tmp_path / "photographs").mkdir()
    generator = np.random.default_rng(0)
    for number in range(12):
        pixels = generator.integers(0, 256, (64, 80, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photographs" / f"{number}.png")
    run = ("run", "--suite", "mine.yaml", "--task", "strong_blur", "--method", "tikhonov", "--num-images", "2")
    found = rows(vfmbench(*run, "--samples", "1", "--metrics", "psnr", "--json", folder=tmp_path))
    assert found["psnr"]["n"] == 2
