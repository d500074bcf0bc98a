import json

import pytest
import torch
from rich.console import Console
from rich.text import Text

from vfmbench.errors import Status
from vfmbench.metrics.values import MetricValue, mean_value
from vfmbench.reporting.columns import Column
from vfmbench.reporting.console import OUT
from vfmbench.reporting.rendering import document, to_latex, to_markdown, to_text, value_text
from vfmbench.results.comparison import Entry, compare


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


@pytest.fixture
def many(make_run):
    """Eleven methods whose names are longer than their numbers, and one cell that is longer than its column's name."""
    n = 40
    noise = torch.randn(n, generator=torch.Generator().manual_seed(0))
    entries = []
    for number in range(11):
        values = [mean_value("psnr", 20 + number + noise, "dB"), MetricValue("nfe", 1.0, 1.0, 1.0, 3)]
        if number == 4:
            values.append(MetricValue("recall@digitnet", 0.019, 0.0, 0.084, n))
        heading = f"latent_sampler_of_kind_{number:02d}"
        entries.append(Entry(heading, Status.DONE, run=make_run(heading, values)))
    return compare("A task", entries)


def printed_at(width, comparison, capsys):
    Console(width=width).print(to_text(comparison))
    return [line.rstrip() for line in capsys.readouterr().out.splitlines()]


def test_a_wide_table_is_split_and_nothing_is_cut_or_folded(many, capsys):
    lines = printed_at(100, many, capsys)
    assert max(map(len, lines)) <= 100
    tops = [number for number, line in enumerate(lines) if line.startswith("┏")]
    assert len(tops) > 2
    assert sum(line.startswith("│ psnr ") for line in lines) == len(tops)
    # One line for each of the three metrics and for the hashes: no cell is in two.
    assert sum(line.startswith("│") for line in lines) == 4 * len(tops)
    whole = "\n".join(lines)
    assert "…" not in whole
    assert "0.019 [0.000, 0.084]" in whole
    for entry in many.entries:
        assert entry.run.hash in whole
    headings = [line for line in lines if line.startswith("┃")]
    assert len(headings) > len(tops)
    assert sum(f"kind_{number:02d} ┃" in line for line in headings for number in range(11)) == 11


def test_a_table_takes_the_width_it_needs_where_there_is_no_limit(many, capsys):
    lines = printed_at(100_000, many, capsys)
    assert sum(line.startswith("┏") for line in lines) == 1
    assert max(map(len, lines)) < 300


def test_output_that_is_no_terminal_has_no_width(many, capsys):
    OUT.print(to_text(many))
    assert capsys.readouterr().out.count("┏") == 1


@pytest.mark.parametrize(
    ("heading", "cell", "lines"),
    [
        ("latent_dps", "17.8 ±0.2", ["latent_", "dps"]),
        ("latent_dps", "17.80 ±0.18", ["latent_dps"]),
        ("classifier_free", "1", ["classifier_", "free"]),
        ("vfm steps=4 #a1b2c3", "16.7 ±0.1", ["vfm ", "steps=4 ", "#a1b2c3"]),
        ("", "↑", [""]),
    ],
)
def test_headings_are_folded_to_the_width_of_their_cells(heading, cell, lines):
    assert Column(heading, [Text(cell)]).lines == lines


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
