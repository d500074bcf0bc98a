import json

import pytest
import torch
from rich.console import Console

from vfmbench.interfaces import MetricValue, Status
from vfmbench.metrics.values import mean_value
from vfmbench.reporting.comparison import Entry, compare
from vfmbench.reporting.rendering import document, to_latex, to_markdown, to_text, value_text


@pytest.mark.parametrize(
    ("numbers", "text"),
    [
        ((17.2134, 17.05, 17.37), "17.21 ±0.16"),
        ((0.13071, 0.1208, 0.1406), "0.1307 ±0.0099"),
        ((12345.6, 12000, 12690), "12346 ±345"),
        ((0.00010521, 0.0000852, 0.0001252), "1.05e-04 ±2.0e-05"),
        ((1.0, 0.9894, 1.0), "1.0000 [0.9894, 1.0000]"),
        ((1.0, 1.0, 1.0), "1"),
        ((0.4545454545, 0.45454545449, 0.45454545451), "0.4545"),
        ((3.5, None, None), "3.5"),
        ((0.0, -0.2, 0.2), "0.00 ±0.20"),
    ],
)
def test_value_text(numbers, text):
    assert value_text(*numbers) == text


@pytest.fixture
def comparison(make_run):
    n = 40
    noise = torch.randn(n, generator=torch.Generator().manual_seed(0))
    better = [mean_value("psnr", 20 + noise, "dB"), MetricValue("nfe", 1.0, 1.0, 1.0, 3)]
    worse = [mean_value("psnr", 18 + 1.1 * noise, "dB")]
    entries = [
        Entry("good_one", Status.DONE, run=make_run("good", better)),
        Entry("bad", Status.DONE, "trained elsewhere", make_run("bad", worse, num_images=50)),
        Entry("none", Status.FAILED, "RuntimeError: boom"),
    ]
    return compare("A task", entries, "good_one")


def test_text(comparison, capsys):
    Console(width=160).print(to_text(comparison))
    printed = capsys.readouterr().out
    row = next(line for line in printed.splitlines() if " psnr " in line)
    cells = [cell.strip() for cell in row.split("│")[1:-1]]
    assert cells[:2] == ["psnr", "↑"]
    assert cells[2].endswith("*")
    assert cells[3].endswith("-")
    assert "(40/50)" in cells[3]
    assert cells[4] == "failed"
    assert "bad: trained elsewhere" in printed
    assert "none: RuntimeError: boom" in printed
    assert comparison.entries[0].run.hash in printed


def test_markdown_and_latex(comparison):
    lines = to_markdown(comparison).splitlines()
    assert lines[0] == "**A task**"
    assert lines[2].count("|") == lines[3].count("|") == lines[4].count("|") == 6
    assert lines[4].startswith("| psnr | ↑ | **19.")
    assert lines[4].endswith(" (-) | failed |")
    tex = to_latex(comparison)
    assert tex.count(r" \\") == 3
    assert r"good\_one" in tex
    assert r"\textbf{19." in tex
    assert "$^{-}$" in tex
    assert r"$\uparrow$" in tex


def test_document_is_json_with_whole_numbers(comparison):
    content = json.loads(json.dumps(document(comparison)))
    assert [run["status"] for run in content["runs"]] == ["done", "done", "failed"]
    cell = content["metrics"][0]["cells"]["bad"]
    assert cell["to_reference"]["difference"] == pytest.approx(-2, abs=0.1)
    assert cell["to_reference"]["low"] < cell["to_reference"]["difference"] < cell["to_reference"]["high"]
    assert cell["to_reference"]["p_value_corrected"] == pytest.approx(1e-4)
    assert content["metrics"][0]["cells"]["none"]["value"] is None
    assert content["metrics"][0]["direction"] == "↑"
