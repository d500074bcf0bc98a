"""Parts from outside: what is no such part is refused in one sentence, and what has the documented members works."""

import hashlib
import json
import math

import pytest
import torch

from vfmbench import registry
from vfmbench.cli import main
from vfmbench.errors import MissingError, UserError
from vfmbench.interfaces import Dataset, Sampler, Suite
from vfmbench.registry import load_plugin, load_suite

CPU = torch.device("cpu")

# No more than the docstrings of `Suite` and `Dataset` ask for.
MINIMAL = """
import hashlib
import torch
from vfmbench.interfaces import Dataset, Suite
from vfmbench.registry import suites
from vfmbench.tasks.problems import Denoise


class Stripes(Dataset):
    sha256 = hashlib.sha256(b"stripes").hexdigest()

    def __len__(self):
        return 5

    def load(self, index):
        images = torch.zeros(len(index), 1, 8, 8, dtype=torch.uint8)
        images[..., ::2] = 255
        return images, torch.zeros(len(index), dtype=torch.int64)


class Striped(Suite):
    \"\"\"Stripes.\"\"\"

    name, image_shape, task_names = "striped", (1, 8, 8), ("denoise",)

    def dataset(self, split):
        return Stripes()

    def task(self, name, options):
        return Denoise(self.image_shape, Denoise.Options(**options), name)


suites.register("striped", Striped)
"""


@pytest.fixture
def outside(tmp_path, monkeypatch):
    """The registries, without what a test adds."""
    for entries in (registry.samplers, registry.tasks, registry.suites, registry.metrics, registry.stages):
        monkeypatch.setattr(entries, "_registered", dict(entries._registered))
    return tmp_path


@pytest.fixture
def striped(outside):
    (outside / "striped.py").write_text(MINIMAL)
    load_plugin(str(outside / "striped.py"))
    return load_suite("striped")


def test_a_minimal_suite_runs(striped, tmp_path, capsys):
    arguments = ["--suite", "striped", "--task", "denoise", "--out", str(tmp_path / "runs"), "--samples", "1"]
    assert main(["run", "--method", "pinv", *arguments, "--metrics", "psnr,residual", "--json"]) == 0
    values = {row["name"]: row["value"] for row in json.loads(capsys.readouterr().out)["metrics"]}
    # Noise of 0.05 on pixels at the ends of the range, of which half is clipped.
    assert values["psnr"] == pytest.approx(10 * math.log10(4 / (0.05**2 / 2)), abs=0.5)
    assert values["residual"] == pytest.approx(0.5**0.5, abs=0.15)


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["compare", "--methods", "pinv,tikhonov"], 0, ""),
        (["list"], 0, ""),
        (["preview", "--task", "denoise"], 0, ""),
        (["run", "--method", "vfm", "--task", "denoise"], 3, "The suite striped has no networks; methods without any run."),
        (["run", "--method", "unguided", "--task", "denoise"], 3, "has no networks"),
        (["run", "--method", "autoencoded", "--task", "denoise"], 2, "no codec: its latents are its images"),
        (["run", "--method", "exact", "--task", "denoise"], 2, "the posterior is not known in the suite striped"),
        (
            ["run", "--method", "pinv", "--task", "denoise", "--set", "data.size=3"],
            2,
            "data.size: the suite striped has no",
        ),
        (["run", "--method", "pinv", "--task", "denoise", "--metrics", "fid"], 0, ""),
        (["train", "all"], 2, "The suite striped has no training stages."),
        (["tune"], 2, "says nothing about tuning"),
    ],
)
def test_what_a_minimal_suite_has_not_is_one_sentence(striped, arguments, code, sentence, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    suite = [] if arguments == ["list"] else ["--suite", "striped"]
    assert main([*arguments, *suite]) == code
    error = capsys.readouterr().err
    assert sentence in error
    assert "AttributeError" not in error
    assert "Traceback" not in error


def test_every_member_of_a_minimal_suite_answers(striped, tmp_path):
    backbone = striped.backbone(CPU)
    refused = [
        lambda: backbone.flow,
        lambda: striped.weights.sha256("vfm"),
        lambda: striped.feature_space("inception", CPU),
        lambda: striped.perceptual("lpips_vgg", CPU),
        lambda: striped.with_weights(tmp_path),
    ]
    for ask in refused:
        with pytest.raises(UserError):
            ask()
    images = torch.zeros(1, 1, 8, 8)
    assert backbone.codec.decode(images) is images
    assert (striped.latent_shape, striped.codec_sha256(), striped.prior) == (striped.image_shape, None, None)
    assert striped.for_timing() is striped


class NotASampler:
    def sample(self, measurement, num_samples, noise): ...


class WithoutSample(Sampler):
    pass


class Nameless(Suite):
    image_shape, task_names = (1, 8, 8), ()

    def dataset(self, split): ...


@pytest.mark.parametrize(
    ("kind", "target", "sentence"),
    [
        (
            "samplers",
            NotASampler,
            "The method 'mine' is the class NotASampler, which is not a subclass of Sampler",
        ),
        ("samplers", WithoutSample, "The method 'mine' lacks sample; see vfmbench.interfaces.Sampler."),
        ("samplers", lambda *_: None, "The method 'mine' is a function, not a subclass of Sampler"),
        ("tasks", type("T", (registry.tasks.get("denoise").__mro__[2],), {}), "lacks kind and measure"),
        (
            "stages",
            type("S", (object,), {}),
            "not a subclass of Stage; see vfmbench.training.stage.Stage.",
        ),
        ("suites", Nameless, "The suite 'mine' lacks name and task"),
        ("suites", 3, "The suite 'mine' is an int, not a subclass of Suite"),
        ("metrics", len, "decorate its function with vfmbench.metrics.metric.metric"),
    ],
)
def test_a_part_of_the_wrong_kind_is_refused(outside, kind, target, sentence):
    with pytest.raises(UserError, match=r"^The .* 'mine' .*\.$") as caught:
        getattr(registry, kind).register("mine", target)
    assert sentence in str(caught.value)
    assert "mine" not in getattr(registry, kind).names()


def test_a_factory_that_gives_no_suite_is_refused(outside):
    registry.suites.register("mine", lambda options: object())
    with pytest.raises(UserError, match="The suite 'mine' is an object, not a Suite; see"):
        load_suite("mine")


def test_a_data_set_needs_three_members():
    class Ten(Dataset):
        sha256 = hashlib.sha256(b"ten").hexdigest()

        def __len__(self):
            return 10

        def load(self, index):
            raise MissingError("gone")

    assert Ten().readable([3, 1]) == [3, 1]
    assert (Ten().files, dict(Ten().errors)) == ((), {})
