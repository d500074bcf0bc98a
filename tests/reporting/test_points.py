"""Pictures of runs on suites of points: `run`, `compare` and `preview`."""

import numpy as np
import pytest
import torch
from matplotlib import pyplot

from vfmbench.cli import main
from vfmbench.config import RunConfig
from vfmbench.reporting.pictures import posterior_picture
from vfmbench.reporting.point_panels import PointPanels, observed_lines
from vfmbench.reporting.point_runs import PointRun, observations
from vfmbench.running.plan import plan
from vfmbench.running.runner import execute

from ..pictures import is_picture_of

TASKS = {"checkerboard": "first_coordinate", "gaussian": "linear_observation", "mixture": "linear_observation"}


def planned(out, suite, data=None, **changes):
    options = {"data": data or {}}
    fields = {"method": "exact", "num_images": 3, "samples": 20, "metrics": ("residual",), "out": out, **changes}
    return plan(RunConfig(suite=suite, task=TASKS[suite], options=options, **fields))


def seen_by(checked, positions=(0, 1, 2)):
    return observations(checked.identity, checked.suite, checked.task, checked.dataset, positions)


@pytest.mark.parametrize(
    ("suite", "data"),
    [
        ("checkerboard", None),
        ("gaussian", None),
        ("gaussian", {"dimension": 4}),
        ("mixture", None),
        ("mixture", {"dimension": 1}),
    ],
)
def test_pictures_of_every_suite(suite, data, tmp_path, figures):
    checked = planned(tmp_path, suite, data)
    path = posterior_picture(checked, execute(checked).samples())
    assert path == checked.store.paths.picture
    overrides = [word for key, value in (data or {}).items() for word in ("--set", f"data.{key}={value}")]
    assert main(["preview", "--suite", suite, "--task", TASKS[suite], "--out", str(tmp_path), *overrides]) == 0
    sampled, previewed = figures
    assert is_picture_of(path, sampled)
    assert is_picture_of(tmp_path / suite / f"preview-{TASKS[suite]}.png", previewed)
    # A panel for each of the three observations; before those of the preview, one of the data.
    assert [len(figure.axes) for figure in figures] == [3, 1 + 3]
    assert previewed.axes[0].get_title() == "2000 points of the data"
    truth = checked.dataset.load([0, 1, 2])[0].flatten(1)
    for row, axes in enumerate(zip(sampled.axes, previewed.axes[1:], strict=True)):
        for axis in axes:
            assert axis.get_title().startswith(f"observation {row}")
            shown = truth[row, :2].tolist() if truth.shape[1] > 1 else [float(truth[row]), 0.0]
            np.testing.assert_allclose(axis.lines[-1].get_xydata()[0], shown, rtol=1e-6)
        if truth.shape[1] > 1:
            # Draws from the exact posterior, and the run's samples over them.
            assert [len(cloud.get_offsets()) for cloud in axes[0].collections] == [1000, 20]
            assert [len(cloud.get_offsets()) for cloud in axes[1].collections] == [1000]
        else:
            assert [len(axis.patches) for axis in axes] == [2, 1]


def test_compare_draws_a_column_for_each_method(tmp_path, figures, capsys):
    arguments = ["--suite", "gaussian", "--methods", "exact,unguided", "--num-images", "2", "--samples", "8"]
    assert main(["compare", *arguments, "--metrics", "residual", "--set", "unguided.steps=2", "--out", str(tmp_path)]) == 0
    path = tmp_path / "gaussian" / "compare-linear_observation.png"
    assert f"Picture: {path}" in capsys.readouterr().out.replace("\n", "").replace("compare-", "compare-")
    axes = figures[-1].axes
    assert [axis.get_title() for axis in axes] == ["exact", "unguided", "", ""]
    assert [axis.get_ylabel().splitlines()[0] for axis in axes[::2]] == ["observation 0", "observation 1"]
    # The same exact draws and the same truth behind the samples of both methods.
    np.testing.assert_array_equal(axes[0].collections[0].get_offsets(), axes[1].collections[0].get_offsets())
    np.testing.assert_array_equal(axes[0].lines[-1].get_xydata(), axes[1].lines[-1].get_xydata())
    assert [len(axis.collections[1].get_offsets()) for axis in axes] == [8] * 4


def test_panels_show_what_was_stored(tmp_path, figures):
    checked = planned(tmp_path, "checkerboard")
    shards = execute(checked).samples()
    posterior_picture(checked, shards)
    truth = checked.dataset.load([0, 1, 2])[0].flatten(1)
    for number, axis in enumerate(figures[0].axes):
        np.testing.assert_allclose(axis.collections[1].get_offsets(), shards.read("images", [number])[0, ..., 0, 0], rtol=1e-6)
        np.testing.assert_allclose(axis.lines[-1].get_xydata()[0], truth[number], rtol=1e-6)


def test_observed_lines_go_through_what_was_observed(tmp_path):
    for suite in ("checkerboard", "mixture"):
        shown = seen_by(planned(tmp_path, suite))
        normals, y, lines = observed_lines(shown)
        assert lines.all()
        # Any point of the line a x = y, such as y a / |a|^2 and that moved along the line, would be observed as y.
        along = torch.stack([-normals[..., 1], normals[..., 0]], -1)
        points = (y[..., None] * normals / normals.square().sum(-1, keepdim=True) + 0.7 * along)[:, 0]
        seen = shown.measurement.operator.forward(points[..., None, None])
        torch.testing.assert_close(seen, shown.measurement.y, atol=1e-6, rtol=1e-6)
    assert not observed_lines(seen_by(planned(tmp_path, "gaussian")))[2].any()


def test_lines_are_drawn_where_the_observation_puts_them(tmp_path):
    shown = seen_by(planned(tmp_path, "mixture"))
    panels = PointPanels(shown, shown.truth)
    figure, axes = pyplot.subplots(1, 1, squeeze=False)
    panels.prepare(axes)
    panels.draw(axes[0, 0], 1)
    point, slope = axes[0, 0].lines[0].get_xy1(), axes[0, 0].lines[0].get_slope()
    for step in (0.0, 1.0):
        moved = torch.tensor([point[0] + step, point[1] + step * slope], dtype=torch.float32)
        seen = shown.measurement.operator.forward(moved.reshape(1, 2, 1, 1).expand(3, -1, -1, -1))
        assert float(seen[1]) == pytest.approx(float(shown.measurement.y[1]), abs=1e-5)
    pyplot.close(figure)


def test_samples_that_diverged_do_not_break_the_picture(tmp_path):
    shown = seen_by(planned(tmp_path, "gaussian"))
    panels = PointPanels(shown, shown.truth)
    figure, axes = pyplot.subplots(1, 1, squeeze=False)
    samples = torch.zeros(5, 8)
    samples[2] = torch.nan
    panels.draw(axes[0, 0], 0, samples)
    assert len(axes[0, 0].collections[1].get_offsets()) == 4
    pyplot.close(figure)


def test_exact_draws_depend_on_the_observation_alone(tmp_path):
    checked = planned(tmp_path, "mixture", num_images=4)
    run = PointRun.of_plan(checked, execute(checked).samples())
    torch.testing.assert_close(run.observations([2]).exact_samples(50)[0], run.observations([0, 2]).exact_samples(50)[1])
