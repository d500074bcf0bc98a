"""`vfmbench check-sampler FILE`, as the author of a plugin uses it."""

import re
import textwrap
from pathlib import Path

import pytest

from vfmbench import registry
from vfmbench.cli import main

HEAD = """
import numpy as np
import torch
from pydantic import Field

from vfmbench import registry
from vfmbench.interfaces import Sampler
from vfmbench.measurement import Samples
from vfmbench.options import SamplerOptions


class Mine(Sampler):
    "The pseudo-inverse and noise."

    class Options(SamplerOptions):
        size: float = Field(0.1, ge=0)

    @classmethod
    def supports(cls, task, suite):
        return task.linear, "" if task.linear else "it is not linear"

    def sample(self, measurement, num_samples, noise):
        rows = measurement.repeat(num_samples)
        x = rows.operator.pinv(rows.y)
        x = x + self.options.size * noise.normal(x.shape[1:], 0)
        return Samples(self.change(x).unflatten(0, (len(measurement), num_samples)))

    def change(self, x):
        return x


registry.samplers.register("mine", Mine)
"""


@pytest.fixture
def check(tmp_path, monkeypatch, capsys):
    """Runs the command on a file that is `HEAD` and what is given, with registries that forget it afterwards."""
    for entries in (registry.samplers, registry.tasks):
        monkeypatch.setattr(entries, "_registered", {})

    def run(text, *arguments):
        file = tmp_path / "plugin.py"
        file.write_text(textwrap.dedent(text))
        code = main(["check-sampler", str(file), *arguments])
        return code, capsys.readouterr()

    return run


def test_the_example_of_the_readme_is_a_good_one(check):
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    example = re.search(r"saved as `my_sampler.py`:\n\n```python\n(.*?)```", readme, re.DOTALL)[1]
    code, shown = check(example)
    assert code == 0, shown.out
    assert "first_coordinate of checkerboard" in shown.out


def test_a_good_sampler(check):
    code, shown = check(HEAD)
    assert code == 0
    lines = shown.out.splitlines()
    assert lines[0].startswith("mine, checked on first_coordinate of checkerboard, denoise of digits, inpaint_random of digi")
    assert all(line.startswith("  yes ") for line in lines[1:-1])
    assert "  yes samples do not depend on the batch size" in lines
    assert lines[-1].endswith(" checks passed.")


@pytest.mark.parametrize(
    ("change", "statement", "words"),
    [
        ("x + torch.randn_like(x)", "the same noise gives the same samples", "draws from the global generator of torch"),
        ("x - x.mean()", "samples do not depend on the batch size", "reduce over each row by itself"),
        ("x[1:]", "its samples have the right shape, dtype and device, and are finite", "it fails with RuntimeError"),
        ("x[:, :, :1]", "its samples have the right shape, dtype and device, and are finite", "have the shape [4, 2, 1, 1, 8]"),
        ("np.asarray(x)", "its samples have the right shape, dtype and device, and are finite", "AttributeError"),
        ("x + len(x) * 0.01", "samples do not depend on the batch size", "between a measurement alone"),
    ],
)
def test_wrong_samplers(check, change, statement, words):
    code, shown = check(f"{HEAD}\nMine.change = lambda self, x: {change}\n", "--suite", "digits")
    assert code == 1
    lines = shown.out.splitlines()
    place = lines.index(f"  NO  {statement}")
    assert lines[place + 1].startswith("      on denoise of digits")
    assert words in lines[place + 1]
    assert "of what must hold does not" in lines[-1]


def test_what_is_skipped_says_why_and_nothing_checked_is_not_good(check):
    never = 'Mine.supports = classmethod(lambda cls, task, suite: (False, "never"))'
    code, shown = check(f"{HEAD}\n{never}\n", "--suite", "digits")
    assert code == 1
    lines = shown.out.splitlines()
    assert lines[0] == "mine, checked on nothing:"
    assert lines[-2].startswith("  not checked on denoise of digits, ")
    assert lines[-2].endswith(": never")
    assert "could not be checked" in lines[-1]


def test_tasks_are_checked_too_and_a_sampler_on_them(check):
    task = """
    from vfmbench.tasks.operators import Identity
    from vfmbench.tasks.problems import Denoise

    class Halved(Identity):
        def _forward(self, x):
            return x / 2

    class Half(Denoise):
        problem = "half"

        def _operator(self, noise, rows):
            return Halved(rows, self.image_shape)

    registry.tasks.register("half", Half)
    """
    code, shown = check(HEAD + textwrap.dedent(task), "--suite", "digits")
    assert code == 1
    lines = shown.out.splitlines()
    assert lines[0] == "half, checked on images of digits:"
    assert "<A x, y> and <x, A^T y> differ by" in lines[lines.index("  NO  the adjoint is the transpose") + 1]
    assert any("half of digits" in line for line in lines if line.startswith("mine, checked on"))


def test_bad_files_are_one_sentence(check, tmp_path, capsys):
    code, shown = check("import vfmbench\n")
    assert code == 2
    assert (
        "plugin.py registers no sampler and no task; end it with vfmbench.registry.samplers.register(NAME, CLASS)" in shown.err
    )
    code, shown = check("import no_such_module\n")
    assert code == 2
    assert "No module named 'no_such_module'" in shown.err
    assert main(["check-sampler", str(tmp_path / "nowhere.py")]) == 2
    assert "there is no file" in capsys.readouterr().err
    code, shown = check(HEAD, "--suite", "digit")
    assert "Did you mean 'digits'" in shown.err
    registry.samplers._registered.clear()
    code, shown = check(HEAD, "--set", "method.sise=1")
    assert code == 2
    assert "Did you mean 'method.size'" in shown.err


def test_options_reach_the_sampler(check):
    needs = "Mine.change = lambda self, x: x / (self.options.size > 0.5)"
    assert check(f"{HEAD}\n{needs}\n", "--suite", "digits")[0] == 1
    registry.samplers._registered.clear()
    assert check(f"{HEAD}\n{needs}\n", "--suite", "digits", "--set", "method.size=0.6")[0] == 0
