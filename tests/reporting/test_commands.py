"""`vfmbench table` and `vfmbench figure` on real runs, and `compare`, which prints the same table."""

import json
import subprocess
import sys

import pytest

from vfmbench.cli import main

from ..pictures import is_picture_of


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs")
    small = ["--num-images", "24", "--samples", "4", "--metrics", "psnr,crps,calibration,tarp,spread_skill"]
    for task in ("gaussian_deblur", "inpaint_box"):
        for method in ("vfm", "pinv"):
            assert main(["run", "--method", method, "--task", task, "--out", str(out), "--json", *small]) == 0
    return out


def no_model(*_):
    raise AssertionError("a stored result must not need a model")


@pytest.fixture
def without_models(monkeypatch):
    for name in ("plan.plan", "runner.execute"):
        monkeypatch.setattr(f"vfmbench.running.{name}", no_model)
    monkeypatch.setattr("vfmbench.registry.suites.get", no_model)


def test_table_of_stored_runs(capsys, runs, without_models):
    assert main(["table", str(runs), "--reference", "pinv"]) == 0
    printed = capsys.readouterr().out
    assert "gaussian_deblur, suite digits, test split: 24 images x 4 samples, seed 0" in printed
    assert "inpaint_box, suite digits" in printed
    row = next(line for line in printed.splitlines() if " crps@pixel " in line)
    assert row.rstrip(" │").endswith("*+")
    assert "better / worse than pinv" in printed
    assert "interval_coverage@digitnet" in printed
    assert "→ 0.6" in printed


def test_other_formats(capsys, runs, without_models):
    for arguments, words in ((["--format", "markdown"], "| psnr | ↑ |"), (["--format", "latex"], r"\toprule")):
        assert main(["table", str(runs), "--tasks", "inpaint_box", *arguments]) == 0
        printed = capsys.readouterr().out
        assert words in printed
        assert "gaussian_deblur" not in printed
    assert main(["table", str(runs), "--methods", "vfm,pinv", "--reference", "vfm", "--json"]) == 0
    tables = json.loads(capsys.readouterr().out)
    assert [run["heading"] for run in tables[0]["runs"]] == ["vfm", "pinv"]
    cell = next(row for row in tables[0]["metrics"] if row["name"] == "psnr")["cells"]["pinv"]
    assert cell["to_reference"]["p_value_corrected"] < 0.05
    assert (cell["best"], cell["n"]) == (False, 24)


def test_compare_prints_the_same_cells(capsys, runs):
    small = ["--num-images", "24", "--samples", "4", "--metrics", "psnr,crps,calibration,tarp,spread_skill"]
    assert main(["compare", "--methods", "vfm,pinv", "--tasks", "gaussian_deblur", "--out", str(runs), *small]) == 0
    compared = capsys.readouterr().out.splitlines()
    assert main(["table", str(runs), "--methods", "vfm,pinv", "--tasks", "gaussian_deblur", "--reference", "vfm"]) == 0
    tabled = capsys.readouterr().out.splitlines()
    rows = [[line for line in lines if line.startswith("│")] for lines in (compared, tabled)]
    assert len(rows[0]) > 10
    assert rows[0] == rows[1]


def test_figure(capsys, runs, tmp_path, without_models, figures):
    out = tmp_path / "calibration.png"
    assert main(["figure", "calibration", str(runs / "digits" / "inpaint_box"), "--out", str(out)]) == 0
    assert capsys.readouterr().out.strip() == str(out)
    (figure,) = figures
    assert is_picture_of(out, figure)
    # A row for pixels and for features, each with histogram, coverage and TARP curve of both runs.
    assert len(figure.axes) == 2 * 3
    assert [len(axis.get_lines()) for axis in figure.axes[::3]] == [2 + 1] * 2
    assert [text.get_text() for text in figure.legends[0].get_texts()][:2] == ["pinv", "vfm"]


@pytest.mark.parametrize(
    "arguments", [["table", "RUNS"], ["status", "RUNS"], ["figure", "calibration", "RUNS/digits/inpaint_box", "--out", "OUT"]]
)
def test_stored_results_are_read_without_torch(runs, tmp_path, arguments):
    words = [word.replace("RUNS", str(runs)).replace("OUT", str(tmp_path / "figure.png")) for word in arguments]
    code = f"import sys; from vfmbench.cli import main; assert main({words}) == 0; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["table", "RUNS/nowhere"], "not a folder"),
        (["table", "RUNS", "--tasks", "denoise"], "Unknown task"),
        (["table", "RUNS", "--reference", "vmf"], "no finished run of vmf"),
        (["figure", "calibration", "RUNS"], "one set of images"),
    ],
)
def test_bad_input_is_one_sentence(capsys, runs, arguments, words):
    assert main([argument.replace("RUNS", str(runs)) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
