"""`figure densities` and `figure alignment` on stored runs whose samples were made by a map that is known."""

import math

import numpy as np
import pytest
import torch
from matplotlib import pyplot
from matplotlib.colors import to_hex

from vfmbench.config import RunIdentity
from vfmbench.errors import Status, UserError
from vfmbench.methods.figures.alignment import alignment_figure
from vfmbench.methods.figures.checkerboard import coloured_draws, outline
from vfmbench.methods.figures.densities import VALUES, densities_figure, nearest_posteriors
from vfmbench.options import dump
from vfmbench.randomness import PhiloxNoise, sample_rows
from vfmbench.registry import suites
from vfmbench.reporting.drawing import CELL_COLOURS, OUTSIDE
from vfmbench.reporting.point_runs import PointRun
from vfmbench.reporting.training_labels import training_labels
from vfmbench.results.run_directory import RunStore
from vfmbench.results.shards import Shard, Shards
from vfmbench.results.stored import StoredRun
from vfmbench.running.evaluating import measured
from vfmbench.running.sampling import PRIOR_STREAM
from vfmbench.weights.store import WeightStore

from ..pictures import is_picture_of

SAMPLES, OBSERVATIONS = 6, 100


def stretch(z):
    """The map of the stored runs."""
    return 1.25 * z


@pytest.fixture
def make_board(tmp_path):
    """`make_board(method, ...)`: a stored run on the checkerboard; its shards lie in another order than their images."""
    suite = suites.get("checkerboard")({})
    task, dataset = suite.task("first_coordinate", {}), suite.dataset("test")

    def make(method, *, adapted=True, diverged=None, weights=None, n=OBSERVATIONS, seed=0, sessions=()):
        identity = RunIdentity(
            suite="checkerboard",
            suite_options=dict(suite.data_options),
            dataset_sha256=dataset.sha256,
            split="test",
            task=task.name,
            problem=task.kind,
            task_options=dump(task.options),
            method=method,
            method_options={},
            plugin_sha256={},
            weights_sha256=weights or {},
            num_images=n,
            samples=SAMPLES,
            seed=seed,
        )
        store = RunStore.at(tmp_path / "runs", identity)
        store.paths.samples.mkdir(parents=True)
        store.write_config(identity)
        store.write_provenance({"status": Status.DONE, "sessions": list(sessions)})
        y = measured(task, dataset, suite.domain, identity, list(range(n)), torch.device("cpu"))[1].y
        for index in (torch.arange(n // 2, n), torch.arange(n // 2).flip(0)):
            shape = (len(index), SAMPLES, 2, 1, 1)
            rows = sample_rows(index, range(SAMPLES))
            source = PhiloxNoise(0, "source", *rows).normal((2, 1, 1), 0).reshape(shape) + y[index].reshape(-1, 1, 1, 1, 1)
            residual = torch.ones(shape[:2])
            if diverged is not None:
                residual[index == diverged, 2] = torch.nan
            prior = stretch(PhiloxNoise(seed, PRIOR_STREAM, *rows).normal((2, 1, 1), 0)).reshape(shape)
            Shards(store.directory).write(
                Shard(
                    images=stretch(source).numpy(),
                    index=index.numpy(),
                    label=torch.zeros_like(index).numpy(),
                    residual=residual.numpy(),
                    log_likelihood=residual.numpy(),
                    measurement_hash=[""] * len(index),
                    cost={"network_forwards": 1.0},
                    prior=prior.numpy() if adapted else None,
                    source=source.numpy() if adapted else None,
                )
            )
        return StoredRun.read(store)

    return make


def cell_by_hand(x, y):
    column, row = math.floor(x) + 2, math.floor(y) + 2
    if not (0 <= column < 4 and 0 <= row < 4) or (column + row) % 2:
        return OUTSIDE
    filled = [(i, j) for i in range(4) for j in range(4) if (i + j) % 2 == 0]
    return CELL_COLOURS[filled.index((column, row))]


def test_noise_of_prior_draws_is_made_again(make_board):
    run = PointRun.of_stored(make_board("vfm", seed=3))
    z, x = run.prior_draws(250)
    assert x.shape == (250, 2)
    torch.testing.assert_close(x, stretch(z), rtol=0, atol=0)
    assert len(x.unique(dim=0)) == 250
    # First one draw of every observation, in order, then a second one.
    torch.testing.assert_close(x[:OBSERVATIONS], run.prior[:, 0])
    assert run.prior_draws(10**6)[0].shape == (OBSERVATIONS * SAMPLES, 2)


def test_stored_order_does_not_matter(make_board):
    stored = make_board("vfm")
    run = PointRun.of_stored(stored)
    assert run.index.tolist() == list(range(OBSERVATIONS))
    torch.testing.assert_close(run.samples, stretch(run.source), rtol=0, atol=0)
    expected = PhiloxNoise(0, "source", *sample_rows(run.index, range(SAMPLES))).normal((2,), 0).reshape(-1, SAMPLES, 2)
    y = run.observations(run.index.tolist()).measurement.y
    torch.testing.assert_close(run.source, expected + y[:, None])


def test_diverged_samples_are_left_out(make_board):
    run = PointRun.of_stored(make_board("vfm", diverged=7))
    broken = run.samples.isnan().any(2)
    assert broken.nonzero().tolist() == [[7, 2]]


def test_draws_have_the_colour_of_their_cell(make_board):
    draws = coloured_draws(PointRun.of_stored(make_board("vfm")), 500)
    assert draws.colours == [cell_by_hand(*point) for point in draws.x.tolist()]
    assert set(draws.colours) == {*CELL_COLOURS, OUTSIDE}


def test_posteriors_are_of_the_nearest_observations(make_board):
    run = PointRun.of_stored(make_board("vfm"))
    found = nearest_posteriors(run)
    y = run.observations(run.index.tolist()).measurement.y.flatten().numpy()
    assert found.count == 20
    farthest = 0.0
    for value, samples, source in zip(VALUES, found.samples, found.source, strict=True):
        rows = [row for row in np.argsort(np.abs(y - value))[:20] if abs(y[row] - value) <= 0.5]
        np.testing.assert_array_equal(samples, run.samples[rows].reshape(-1, 2))
        np.testing.assert_array_equal(source, run.source[rows].reshape(-1, 2))
        farthest = max(farthest, np.abs(y[rows] - value).max())
    assert found.distance == pytest.approx(farthest)


def test_outlines_hold_their_share_of_a_normal_distribution():
    points = torch.randn(4000, 2, generator=torch.Generator().manual_seed(0))
    figure, axis = pyplot.subplots()
    axis.set_xlim(-4, 4)
    outline(axis, points)
    paths = axis.collections[-1].get_paths()
    # The disc of radius r holds 1 - exp(-r^2 / 2).
    for path, share in zip(paths, (0.9, 0.5), strict=True):
        radius = np.linalg.norm(path.vertices, axis=1).mean()
        assert radius == pytest.approx(math.sqrt(-2 * math.log(1 - share)), rel=0.05)
    pyplot.close(figure)


def test_collapsed_samples_are_dots():
    figure, axis = pyplot.subplots()
    outline(axis, torch.tensor([[1.0, 2.0]]).expand(50, 2))
    assert len(axis.collections[-1].get_offsets()) == 50
    outline(axis, torch.linspace(-1, 1, 60)[:, None] * torch.tensor([1.0, 2.0]))
    assert len(axis.collections[-1].get_offsets()) == 60
    pyplot.close(figure)


def test_densities_figure(make_board, tmp_path, figures):
    make_board("vfm")
    make_board("exact", adapted=False)
    path = densities_figure([tmp_path])
    assert path == tmp_path / "runs/checkerboard/first_coordinate/densities.png"
    (figure,) = figures
    assert is_picture_of(path, figure)
    assert len(figure.axes) == 3 * len(VALUES)
    labels = [axis.get_ylabel() for axis in figure.axes[::4]]
    assert [label.splitlines() for label in labels] == [
        ["exact", "data space, $x_2$"],
        ["vfm", "noise space, $z_2$"],
        ["vfm", "data space, $x_2$"],
    ]
    assert [axis.get_title() for axis in figure.axes[:4]] == ["y = -1.5", "y = -0.5", "y = 0.5", "y = 1.5"]
    for axis, value in zip(figure.axes[:4], VALUES, strict=True):
        assert list(axis.lines[0].get_xdata()) == [value, value]
    dots = figure.axes[4].collections[0]
    assert {to_hex(colour).upper() for colour in dots.get_facecolors()} == {*CELL_COLOURS, OUTSIDE}
    np.testing.assert_allclose(figure.axes[8].collections[0].get_offsets(), 1.25 * dots.get_offsets(), rtol=1e-6)
    assert "20 observations nearest to y" in figure.get_supxlabel().replace("\n", " ")
    assert "seed 0" in figure.get_suptitle()


def test_alignment_figure_is_ordered_and_named_by_training(make_board, tmp_path, figures):
    for alpha in (0.5, 0.0, 1.0):
        store = WeightStore(tmp_path / "training/checkerboard" / f"vfm-{alpha}", "")
        entry = {"architecture": {}, "training": {"options": {"alpha": alpha, "steps": 10, "architecture": {}}}}
        store.save("vfm", {"flow.a": torch.tensor([alpha])}, entry)
        make_board("vfm", weights={"vfm": store.sha256("vfm")})
    make_board("exact", adapted=False)
    out = tmp_path / "figure.png"
    assert alignment_figure([tmp_path], out) == out
    (figure,) = figures
    assert is_picture_of(out, figure)
    axes = figure.axes
    assert len(axes) == 3 * 3
    assert [axis.get_title() for axis in axes[:3]] == ["vfm, alpha=0.0", "vfm, alpha=0.5", "vfm, alpha=1.0"]
    noise, data, paths = (axes[row * 3].collections[0] for row in range(3))
    np.testing.assert_allclose(data.get_offsets(), 1.25 * noise.get_offsets(), rtol=1e-6)
    ends = np.array(paths.get_segments())
    np.testing.assert_allclose(ends[:, 1], 1.25 * ends[:, 0], rtol=1e-6)


def test_weights_are_also_found_by_the_command_line(make_board, tmp_path):
    runs = []
    for tau in (0.1, 3.0):
        store = WeightStore(tmp_path / f"elsewhere{tau}", "")
        store.save("vfm", {"a": torch.tensor([tau])}, {"architecture": {}, "training": {"options": {"tau": tau}}})
        sessions = [{"command": ["vfmbench", "run", "--set", f"weights.path={store.directory}"]}]
        runs.append(make_board("vfm", weights={"vfm": store.sha256("vfm")}, sessions=sessions))
    assert training_labels(runs) == ["vfm, tau=0.1", "vfm, tau=3.0"]
    unknown = make_board("vfm", weights={"vfm": "0" * 64})
    assert training_labels([*runs, unknown]) == ["vfm, tau=0.1", "vfm, tau=3.0", f"vfm #{unknown.hash[:6]}"]
    assert training_labels([runs[0], unknown]) == [f"vfm #{run.hash[:6]}" for run in (runs[0], unknown)]


def test_what_the_figures_cannot_show(make_board, make_run, tmp_path):
    short = make_board("short", n=4)
    with pytest.raises(UserError, match=r"of 4 observations has none within 0\.5"):
        densities_figure([short.store.directory])
    make_board("exact", adapted=False)
    with pytest.raises(UserError, match="one set of observations"):
        densities_figure([tmp_path])
    with pytest.raises(UserError, match="None of these runs has draws"):
        alignment_figure([tmp_path / "runs/checkerboard/first_coordinate/exact"])
    with pytest.raises(UserError, match=r"ends in \.png"):
        alignment_figure([short.store.directory], tmp_path / "figure.jpg")
    images = make_run("vfm", out=tmp_path / "other")
    for figure in (densities_figure, alignment_figure):
        with pytest.raises(UserError, match="for runs on the suite checkerboard"):
            figure([images.store.directory])
    identity = short.identity.model_dump(exclude={"method", "method_options"})
    empty = make_run("vfm", out=tmp_path / "empty", **identity)
    with pytest.raises(UserError, match="holds no samples"):
        densities_figure([empty.store.directory])


def test_other_points_than_the_runs(make_run, tmp_path):
    run = make_run("vfm", suite="checkerboard", task="first_coordinate", task_options={})
    with pytest.raises(UserError, match="are not those that"):
        PointRun.of_stored(run)
    with pytest.raises(UserError, match="run on images"):
        PointRun.of_stored(make_run("vfm"))
