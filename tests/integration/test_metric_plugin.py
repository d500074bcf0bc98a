"""A metric in one file outside the package, through the command line: one among equals, and computed again when it changes."""

import json
from pathlib import Path

import pytest

from vfmbench import registry
from vfmbench.cli import main
from vfmbench.registry import samplers
from vfmbench.results.paths import RunPaths
from vfmbench.results.run_directory import RunStore

README = (Path(__file__).parents[2] / "README.md").read_text()
PLUGIN = README.partition("## Your own metric")[2].partition("```python\n")[2].partition("```")[0]


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """`plugin(text)`: the options that load a plugin file of this text, as a new process would."""

    def write(text=PLUGIN):
        monkeypatch.setattr(registry.metrics, "_registered", {})
        path = tmp_path / "l1.py"
        path.write_text(text)
        return ["--plugin", str(path)]

    return write


@pytest.fixture
def compare(tmp_path, capsys):
    """`compare(*options)`: runs two methods on 24 images, and returns the table that is printed."""

    def call(*options):
        small = ["--num-images", "24", "--samples", "3", "--out", str(tmp_path / "runs"), "--tasks", "gaussian_deblur"]
        assert main(["compare", "--methods", "vfm,pinv", *small, *options]) == 0
        return capsys.readouterr().out

    return call


def test_a_plugins_metric_is_as_good_as_any(plugin, compare, tmp_path, capsys):
    printed = compare(*plugin(), "--metrics", "psnr,crps,l1")
    line = next(line for line in printed.splitlines() if "l1 " in line)
    assert "↓" in line
    assert "*" in line
    # Reports read what was stored, without the plugin.
    registry.metrics._registered.clear()
    assert main(["table", str(tmp_path / "runs"), "--reference", "pinv", "--json"]) == 0
    (table,) = json.loads(capsys.readouterr().out)
    rows = {row["name"]: row for row in table["metrics"]}
    # Behind the package's own in its section, before the next section.
    names = list(rows)
    assert names.index("psnr_mean") < names.index("l1") < names.index("crps@pixel")
    assert rows["l1"]["direction"] == "↓"
    cells = rows["l1"]["cells"]
    assert cells["vfm"]["value"] < cells["pinv"]["value"]
    assert (cells["vfm"]["best"], cells["pinv"]["best"]) == (True, False)
    assert cells["vfm"]["to_reference"]["p_value_corrected"] < 0.05
    assert main(["table", str(tmp_path / "runs"), "--reference", "pinv", "--format", "markdown"]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if "l1 " in line)
    assert "| ↓ |" in line
    assert "** (+) |" in line


@pytest.mark.parametrize(
    "change",
    [
        ('MetricSpec(name="l1"', 'MetricSpec(name="l1", version=2'),
        ("error.abs()", "error.square()"),
    ],
)
def test_only_a_changed_metric_is_computed_again(plugin, compare, tmp_path, monkeypatch, change):
    options = ["--metrics", "psnr,l1"]
    compare(*plugin(), *options)
    store = RunStore(next(RunPaths.below(tmp_path / "runs/digits/gaussian_deblur/vfm")).directory)
    for method in ("vfm", "pinv"):
        monkeypatch.setattr(samplers.get(method), "sample", None)

    def sessions():
        return store.provenance()["sessions"]

    compare(*plugin(), *options)
    assert len(sessions()) == 1
    changed = PLUGIN.replace(*change)
    assert changed != PLUGIN
    compare(*plugin(changed), *options)
    assert [(session["images"], session["metrics"]) for session in sessions()[1:]] == [(0, ["l1"])]
    rows = {row.name: row for row in store.metrics()}
    assert {"psnr", "psnr_mean", "l1", "seconds_per_sample"} <= set(rows)
    assert len(rows["l1"].source_sha256) == 64
    assert rows["psnr"].source_sha256 is None
    compare(*plugin(changed), *options)
    assert len(sessions()) == 2


def test_listed_with_its_direction(plugin, capsys):
    assert main(["list", "metrics", *plugin()]) == 0
    lines = capsys.readouterr().out.splitlines()
    place = next(number for number, line in enumerate(lines) if line.startswith("  l1 "))
    assert "absolute error of a sample's pixels" in lines[place]
    assert lines[place + 1].strip() == "values: l1 ↓"


def test_a_function_without_a_specification_is_told_what_it_lacks(plugin, tmp_path, capsys):
    bare = plugin("from vfmbench import registry\nregistry.metrics.register('bare', lambda evaluation: [])\n")
    small = ["--num-images", "2", "--samples", "1", "--out", str(tmp_path / "runs")]
    assert main(["run", "--method", "pinv", "--task", "denoise", *small, "--metrics", "bare", *bare]) == 2
    assert "The metric 'bare' is a function, not a Metric; decorate" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
