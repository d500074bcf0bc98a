"""`figure sweep` from tables with numbers that were chosen."""

import numpy as np
import pandas as pd
import pytest

from vfmbench.cli import main
from vfmbench.errors import UserError
from vfmbench.metrics.values import MetricValue
from vfmbench.reporting.sweep_figure import sweep_figure

from ..pictures import is_picture_of

TAUS = (0.1, 1.0, 10.0)


@pytest.fixture
def table(tmp_path):
    """A row for every tau, alpha and K, in no order, with one failed run and one of a method without tau."""
    rows = []
    for alpha in (1.0, 0.5):
        for steps in (4, 1):
            for tau in reversed(TAUS):
                row = {"suite": "checkerboard", "task": "first_coordinate", "method": "vfm", "seed": 0, "vfm.steps": steps}
                row |= {"train.alpha": alpha, "train.tau": tau, "status": "done", "note": "", "hash": f"{alpha}{steps}{tau}"}
                value = tau + 100 * alpha + 1000 * steps
                if (alpha, steps, tau) != (0.5, 4, 1.0):
                    row |= {"nlpd": value, "nlpd_low": value - 1, "nlpd_high": value + 1, "crps@point": -value}
                    row |= {"nlpd_direction": "↓", "crps@point_direction": "→ 1"}
                rows.append(row)
    rows.append(
        {"suite": "checkerboard", "task": "first_coordinate", "method": "frozen_adapter", "status": "done", "nlpd": 5.0}
    )
    path = tmp_path / "tau.csv"
    pd.DataFrame(rows).to_csv(path, index=False)
    return path


def test_lines_are_the_tables_rows(table, figures):
    path = sweep_figure(table, "tau", ["nlpd", "crps@point"], ["steps", "alpha"])
    assert path == table.parent / "tau-tau.png"
    (figure,) = figures
    assert is_picture_of(path, figure)
    nlpd, crps = figure.axes
    lines = {tuple(line.get_xdata()): [] for line in nlpd.lines}
    for line in nlpd.lines:
        lines[tuple(line.get_xdata())].append(tuple(line.get_ydata()))
    assert sorted(lines[TAUS]) == [
        tuple(tau + 100 * alpha + 1000 * steps for tau in TAUS) for steps, alpha in ((1, 0.5), (1, 1.0), (4, 1.0))
    ]
    assert lines[(0.1, 10.0)] == [(4050.1, 4060.0)]
    assert len(nlpd.collections) == 4
    assert len(crps.collections) == 0
    assert (nlpd.get_xscale(), nlpd.get_xlabel()) == ("log", "tau")
    assert (nlpd.get_title(), crps.get_title()) == ("nlpd ↓", "crps@point → 1")
    assert figures[0].get_suptitle() == "suite checkerboard, task first_coordinate, method vfm, seed 0"
    labels = [text.get_text() for text in figures[0].legends[0].get_texts()]
    assert labels == [f"steps = {steps}, alpha = {alpha}" for steps in (1, 4) for alpha in ("0.5", "1")]
    looks = {(line.get_color(), line.get_marker()) for line in nlpd.lines}
    assert len(looks) == 4


def test_values_between_zero_and_one_have_a_linear_axis(tmp_path, figures):
    path = tmp_path / "alpha.csv"
    pd.DataFrame({"alpha": [0.0, 0.5, 1.0], "nlpd": [1, 2, 3]}).to_csv(path, index=False)
    assert sweep_figure(path, "alpha", ["nlpd"], out=tmp_path / "a.png") == tmp_path / "a.png"
    (axis,) = figures[0].axes
    assert (axis.get_xscale(), axis.get_title()) == ("linear", "nlpd")
    np.testing.assert_array_equal(axis.lines[0].get_xydata(), [[0, 1], [0.5, 2], [1, 3]])
    assert figures[0].get_suptitle() == "alpha"


def test_references_are_horizontal_lines(table, make_run, figures):
    exact = make_run("exact", [MetricValue("nlpd", -0.5, n=4)], suite="checkerboard")
    frozen = make_run("frozen_adapter", [MetricValue("nlpd", 7.0, n=4), MetricValue("crps@point", 2.0, n=4)])
    folders = [exact.store.directory, frozen.store.directory]
    sweep_figure(table, "tau", ["nlpd", "crps@point"], ["steps", "alpha"], folders)
    nlpd, crps = figures[0].axes
    assert [line.get_ydata()[0] for line in nlpd.lines[4:]] == [-0.5, 7.0]
    assert [line.get_ydata()[0] for line in crps.lines[4:]] == [2.0]
    assert nlpd.lines[4].get_linestyle() != nlpd.lines[5].get_linestyle() == crps.lines[4].get_linestyle()
    assert [text.get_text() for text in figures[0].legends[0].get_texts()][4:] == ["exact", "frozen_adapter"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"x": "tua"}, "Unknown column of the table 'tua'"),
        ({"metrics": ["nlpb"]}, "Did you mean 'nlpd'"),
        ({"by": ["kind"]}, "Unknown column"),
        ({"x": "method"}, "values that are not numbers, such as 'vfm'"),
        ({"metrics": ["status"]}, "values that are not numbers"),
        ({"x": "note"}, "No row"),
        ({"by": ["steps"]}, r"2 rows have train.tau = 0.1 with the same vfm.steps; .*they differ in train.alpha\)"),
        ({"by": []}, "4 rows have"),
        ({"by": ["steps", "alpha", "seed", "method"]}, "at most 3"),
        ({"by": ["hash"]}, "at most 6 can be told apart"),
        ({"references": ["nowhere"]}, "not a folder"),
        ({"out": "nowhere/a.png"}, "cannot write"),
        ({"out": "a.pdf"}, "ends in .png"),
    ],
)
def test_bad_requests(table, changes, words):
    options = {"x": "tau", "metrics": ["nlpd"], "by": ["steps", "alpha"], **changes}
    references = [table.parent / name for name in options.get("references", [])]
    out = table.parent / options["out"] if "out" in options else None
    before = sorted(table.parent.iterdir())
    with pytest.raises(UserError, match=words):
        sweep_figure(table, options["x"], options["metrics"], options["by"], references, out)
    assert sorted(table.parent.iterdir()) == before


def test_bad_tables(tmp_path, table, make_run):
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "header.csv").write_text("tau,nlpd\n")
    (tmp_path / "picture.csv").write_bytes(b"\x89PNG\r\n\x1a\n\xff\xfe")
    for name, words in (("nowhere.csv", "No such file"), ("empty.csv", "Cannot read"), ("header.csv", "no rows")):
        with pytest.raises(UserError, match=words):
            sweep_figure(tmp_path / name, "tau", ["nlpd"])
    with pytest.raises(UserError):
        sweep_figure(tmp_path / "picture.csv", "tau", ["nlpd"])
    (tmp_path / "twice.csv").write_text("a.tau,b.tau,nlpd\n1,2,3\n")
    with pytest.raises(UserError, match=r"Several columns end in 'tau': a.tau, b.tau"):
        sweep_figure(tmp_path / "twice.csv", "tau", ["nlpd"])
    run = make_run("exact", [MetricValue("psnr", 1.0, n=4)])
    with pytest.raises(UserError, match="none of the metrics nlpd"):
        sweep_figure(table, "tau", ["nlpd"], ["steps", "alpha"], [run.store.directory])


def test_command(table, capsys):
    arguments = ["figure", "sweep", str(table), "--x", "tau", "--metrics", "nlpd,crps@point", "--by", "steps,alpha"]
    assert main([*arguments, "--out", str(table.parent / "f.png")]) == 0
    assert capsys.readouterr().out.strip() == str(table.parent / "f.png")
    assert main(["figure", "sweep", str(table), "--x", "tau", "--metrics", ","]) == 2
    assert "--metrics names no metric" in capsys.readouterr().err
    for kind in ("densities", "alignment"):
        assert main(["figure", kind, str(table.parent)]) == 2
        assert "There are no runs in" in capsys.readouterr().err


def test_where_keeps_rows_of_one_value(table, figures):
    sweep_figure(table, "tau", ["nlpd"], ["alpha"], where={"steps": "4"})
    assert sorted(line.get_ydata()[0] for line in figures[0].axes[0].lines) == [4050.1, 4100.1]
    with pytest.raises(UserError, match=r"value of vfm.steps '5'.*Available: 1, 4"):
        sweep_figure(table, "tau", ["nlpd"], ["alpha"], where={"steps": "5"})


def test_where_is_a_column_and_a_value(table, capsys):
    arguments = ["figure", "sweep", str(table), "--x", "tau", "--metrics", "nlpd", "--by", "alpha"]
    assert main([*arguments, "--where", "steps"]) == 2
    assert "--where takes COLUMN=VALUE" in capsys.readouterr().err
    assert main([*arguments, "--where", "steps=1"]) == 0
