import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex

from vfmbench.errors import UserError
from vfmbench.metrics.ranks import rank_shares
from vfmbench.metrics.values import MetricValue
from vfmbench.reporting.calibration import calibration_figure

from ..pictures import is_picture_of


def values(scale=1.0, spaces=("pixel", "digitnet"), n=50):
    generator = torch.Generator().manual_seed(0)
    found = []
    for space in spaces:
        truth, samples = torch.randn(n, 20, generator=generator), scale * torch.randn(n, 10, 20, generator=generator)
        curves = rank_shares(truth, samples)
        found.append(MetricValue(f"calibration_error@{space}", 0.1, n=n, curves=curves))
        found.append(MetricValue(f"tarp@{space}", 0.1, n=n, curves=rank_shares(truth[:, :1], samples[..., :1])))
    return found


def test_figure_of_several_runs_shows_each(make_run, tmp_path, figures):
    make_run("calibrated", values())
    make_run("narrow", values(0.6))
    path = calibration_figure([tmp_path])
    assert path == tmp_path / "digits" / "denoise" / "calibration.png"
    (figure,) = figures
    assert is_picture_of(path, figure)
    for axis in figure.axes:
        # The third line is the diagonal, or that of the uniform law.
        assert len({to_hex(line.get_color()) for line in axis.get_lines()}) == 3
    assert [text.get_text() for text in figure.legends[0].get_texts()][:2] == ["calibrated", "narrow"]
    assert [axis.get_title().rpartition(", ")[2] for axis in figure.axes[::3]] == ["pixels", "features of digitnet"]


def test_figure_of_one_run_lies_in_its_directory(make_run):
    run = make_run("vfm", values(spaces=("pixel",)))
    assert calibration_figure([run.store.directory]) == run.store.directory / "calibration.png"


def test_figure_plots_the_stored_ranks(make_run, tmp_path, figures):
    run = make_run("narrow", values(0.6, spaces=("pixel",)))
    out = tmp_path / "figure.png"
    assert calibration_figure([run.store.directory], out) == out
    histogram, coverage, tarp = figures[0].axes
    shares = run.curves["calibration_error@pixel"].mean(0)
    np.testing.assert_allclose(histogram.lines[0].get_ydata(), 11 * shares)
    np.testing.assert_allclose(coverage.lines[0].get_ydata()[-1], shares[1:-1].sum())
    np.testing.assert_allclose(coverage.lines[0].get_xdata()[-1], 9 / 11)
    np.testing.assert_allclose(tarp.lines[0].get_ydata()[0], run.curves["tarp@pixel"].mean(0)[0])
    assert "p ≤ 0.0001" in histogram.get_xlabel()
    assert all(axis.get_xlabel() and axis.get_ylabel() and axis.get_title() for axis in (histogram, coverage, tarp))


def test_what_a_figure_cannot_show(make_run, tmp_path):
    run = make_run("old", [MetricValue("psnr", 1.0, n=4)])
    with pytest.raises(UserError, match="--metrics calibration,tarp"):
        calibration_figure([run.store.directory])
    make_run("old", [MetricValue("psnr", 1.0, n=4)], task="hdr")
    with pytest.raises(UserError, match="one set of images"):
        calibration_figure([tmp_path])
    runs = [make_run("vfm", values(spaces=("pixel",)), options={"steps": steps}) for steps in range(8)]
    with pytest.raises(UserError, match="at most 7 runs, not 8"):
        calibration_figure([run.store.directory for run in runs])
    with pytest.raises(UserError, match="cannot write"):
        calibration_figure([runs[0].store.directory], tmp_path / "nowhere" / "figure.png")
