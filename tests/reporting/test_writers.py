import json
import re
from dataclasses import replace

import pytest
import torch
from rich.console import Console
from rich.text import Text

from vfmbench.errors import Status
from vfmbench.metrics.values import MetricValue, mean_value
from vfmbench.reporting.console import OUT
from vfmbench.reporting.quoting import quote
from vfmbench.reporting.writers.columns import Column
from vfmbench.reporting.writers.document import document
from vfmbench.reporting.writers.latex import comments, escaped, latex
from vfmbench.reporting.writers.markdown import markdown
from vfmbench.reporting.writers.text import text
from vfmbench.results.comparison import Entry, compare


@pytest.mark.parametrize(
    ("numbers", "words"),
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
def test_digits_are_those_that_the_interval_allows(numbers, words):
    assert str(quote(*numbers)) == words


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
    Console(width=160).print(text(comparison))
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
    Console(width=width).print(text(comparison))
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
    OUT.print(text(many))
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


def test_markdown(comparison):
    lines = markdown(comparison).splitlines()
    assert lines[0] == "**A task**"
    assert lines[2].count("|") == lines[3].count("|") == lines[4].count("|") == 6
    assert lines[4].startswith("| psnr | ↑ | **19.")
    assert lines[4].endswith(" (-) | failed |")
    assert "none: RuntimeError: boom" in lines


def test_a_bar_in_a_heading_begins_no_cell_of_markdown(comparison):
    entries = [replace(entry, heading="a|b") for entry in comparison.entries]
    heading = markdown(replace(comparison, entries=entries)).splitlines()[2]
    assert heading == r"| metric |  | a\|b | a\|b | a\|b |"


def cells_of(line):
    """Cells of a line of a LaTeX table; an escaped ampersand divides nothing."""
    assert line.endswith(r" \\")
    return [cell.strip() for cell in re.split(r"(?<!\\)&", line.removesuffix(r"\\"))]


def test_latex_has_the_structure_of_a_table(comparison):
    lines = latex(comparison).splitlines()
    begin, end = lines.index(r"\begin{tabular}{llrrr}"), lines.index(r"\end{tabular}")
    assert [lines[begin + 1], lines[begin + 3], lines[end - 1]] == [r"\toprule", r"\midrule", r"\bottomrule"]
    # Outside of the table there are comments only: the title, which run is in which column, and the notes.
    good, bad, _ = comparison.entries
    assert lines[:begin] == ["% A task"]
    runs = [f"% {entry.heading}: run {entry.run.hash}" for entry in (good, bad)]
    assert lines[end + 1 :] == [*runs, "% bad: trained elsewhere", "% none: RuntimeError: boom"]
    heading, *rows = (cells_of(lines[number]) for number in (begin + 2, *range(begin + 4, end - 1)))
    assert heading == ["metric", "", r"good\_one", "bad", "none"]
    assert [len(row) for row in rows] == [5, 5]
    table = "\n".join(lines[begin:end])
    assert table.isascii()
    assert table.count("$") % 2 == 0
    assert table.count("{") - table.count(r"\{") == table.count("}") - table.count(r"\}")


def test_numbers_are_mathematics_in_latex(comparison):
    psnr, nfe = (next(line for line in latex(comparison).splitlines() if line.startswith(name)) for name in ("psnr", "nfe"))
    name, arrow, good, bad, none = cells_of(psnr)
    assert (name, arrow, none) == ("psnr", r"$\uparrow$", "failed")
    rows = [cell.row for cell in comparison.rows[0].cells[:2]]
    value, margin = (f"{number:.2f}" for number in (rows[0].value, (rows[0].high - rows[0].low) / 2))
    assert good == rf"$\mathbf{{{value}}} \pm {margin}$"
    value, margin = (f"{number:.2f}" for number in (rows[1].value, (rows[1].high - rows[1].low) / 2))
    assert bad == rf"${value} \pm {margin}{{}}^{{-}}$ (40/50)"
    assert cells_of(nfe) == ["nfe", "", "$1$ (3/40)", "missing", "failed"]


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ((-0.00010521, -0.0001252, -0.0000852), r"$-1.05 \times 10^{-4} \pm 2.0 \times 10^{-5}$"),
        ((1.188e-05, None, None), r"$1.188 \times 10^{-5}$"),
        ((1.0, 0.9894, 1.0), r"$1.0000\;[0.9894, 1.0000]$"),
    ],
)
def test_powers_of_ten_and_ends_in_latex(make_run, numbers, words):
    value, low, high = numbers
    entry = Entry("a", Status.DONE, run=make_run("a", [MetricValue("residual", value, low, high, 4)]))
    line = next(line for line in latex(compare("t", [entry])).splitlines() if line.startswith("residual"))
    assert cells_of(line) == ["residual", r"$\rightarrow 1$", words]


def test_what_latex_would_take_for_commands_is_escaped():
    assert escaped(r"50_% #1 & {x} $") == r"50\_\% \#1 \& \{x\} \$"
    assert (
        escaped("a\\b~c^d<e>|\n")
        == r"a\textbackslash{}b\textasciitilde{}c\textasciicircum{}d\textless{}e\textgreater{}\textbar{} "
    )
    assert comments(["first\nsecond", "third"]) == ["% first", "% second", "% third"]


def test_document_is_json_with_whole_numbers(comparison):
    content = json.loads(json.dumps(document(comparison)))
    assert [run["status"] for run in content["runs"]] == ["done", "done", "failed"]
    cell = content["metrics"][0]["cells"]["bad"]
    assert cell["to_reference"]["difference"] == pytest.approx(-2, abs=0.1)
    assert cell["to_reference"]["low"] < cell["to_reference"]["difference"] < cell["to_reference"]["high"]
    assert cell["to_reference"]["p_value_corrected"] == pytest.approx(1e-4)
    assert content["metrics"][0]["cells"]["none"]["value"] is None
    assert content["metrics"][0]["direction"] == "↑"
