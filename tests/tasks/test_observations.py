"""Observations of points and their operator: matrices, determinism, bad input."""

import math

import numpy as np
import pytest
import scipy.stats
import torch
from pydantic import ValidationError

from vfmbench.errors import UserError
from vfmbench.interfaces import Task
from vfmbench.tasks.observations import FirstCoordinate, LinearObservation, Observation
from vfmbench.tasks.operators import MatrixOperator
from vfmbench.tasks.operators.matrix import orthonormal_rows

SHAPE = (5, 1, 1)
TASKS = {
    "first_coordinate": lambda **options: FirstCoordinate(SHAPE, FirstCoordinate.Options(**options)),
    "linear_observation": lambda **options: LinearObservation(SHAPE, LinearObservation.Options(observations=3, **options)),
}


def random(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def measure(task: Observation, points: torch.Tensor, index: torch.Tensor | None = None, seed: int | str = 0):
    index = torch.arange(len(points)) if index is None else index
    return task.measure(points, torch.zeros_like(index), index, seed)


@pytest.mark.parametrize(("rows", "columns"), [(1, 4), (3, 4), (4, 4), (6, 4), (1, 1)])
def test_matrix_operator_is_its_matrix(rows, columns):
    matrix = random(rows, columns)
    operator = MatrixOperator(7, matrix)
    x, y = random(7, columns, 1, 1, seed=1), random(7, rows, seed=2)
    assert (operator.image_shape, operator.measurement_shape, len(operator)) == ((columns, 1, 1), (rows,), 7)
    np.testing.assert_allclose(operator.forward(x), np.einsum("mi,bi->bm", matrix, x[..., 0, 0]), atol=1e-13)
    np.testing.assert_allclose(operator.adjoint(y)[..., 0, 0], np.einsum("mi,bm->bi", matrix, y), atol=1e-13)
    np.testing.assert_allclose(
        operator.pinv(y)[..., 0, 0], np.einsum("im,bm->bi", np.linalg.pinv(matrix.numpy()), y), atol=1e-12
    )
    assert torch.equal(operator.to_image(y), operator.adjoint(y))
    assert torch.autograd.gradcheck(operator.forward, x.requires_grad_(), fast_mode=True)


def test_matrix_operator_repeats_moves_and_keeps_dtypes():
    operator = MatrixOperator(2, random(3, 4))
    repeated = operator.repeat(3)
    x = random(2, 4, 1, 1)
    torch.testing.assert_close(repeated.forward(x.repeat_interleave(3, 0)), operator.forward(x).repeat_interleave(3, 0))
    moved = operator.to("meta")
    assert moved.matrix.is_meta
    assert not operator.matrix.is_meta
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        y = operator.forward(x.to(dtype))
        assert y.dtype == operator.adjoint(y).dtype == operator.pinv(y).dtype == dtype
    single = MatrixOperator(2, random(3, 4).float())
    assert single.matrix.dtype == torch.float64
    with pytest.raises(ValueError, match="shape"):
        operator.forward(x[:1])


def test_orthonormal_rows_are_gram_schmidt():
    vectors = random(3, 5)
    expected = []
    for vector in vectors.numpy():
        for earlier in expected:
            vector = vector - (vector @ earlier) * earlier
        expected.append(vector / np.linalg.norm(vector))
    np.testing.assert_allclose(orthonormal_rows(vectors), expected, atol=1e-13)


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_measurement_fits_its_operator(name, dtype):
    task: Task = TASKS[name]()
    points = 40 * random(6, *SHAPE, dtype=dtype)
    m = measure(task, points)
    assert isinstance(m.operator, MatrixOperator)
    assert m.y.dtype == m.noise_std.dtype == dtype
    assert m.y.shape == (6, *m.operator.measurement_shape)
    assert (m.condition, task.name, task.linear, m.operator.linear) == (name, name, True, True)
    assert m.operator.to_image(m.y).shape == points.shape
    assert m.noise_std.tolist() == [[pytest.approx(0.1)]] * 6


@pytest.mark.parametrize("name", TASKS)
def test_a_row_does_not_depend_on_batch_order_or_shard(name):
    task = TASKS[name]()
    points, index = random(7, *SHAPE, dtype=torch.float32), torch.tensor([40, 3, 7, 0, 2**31, 12, 5])
    whole = measure(task, points, index)
    order = torch.tensor([4, 2, 6, 0, 1, 5, 3])
    assert torch.equal(measure(task, points[order], index[order]).y, whole.y[order])
    for row in range(7):
        assert torch.equal(measure(task, points[row : row + 1], index[row : row + 1]).y, whole.y[row : row + 1])


@pytest.mark.parametrize("name", TASKS)
def test_a_row_depends_on_seed_index_and_problem_but_not_on_the_name(name):
    task = TASKS[name]()
    points = random(1, *SHAPE)
    first = measure(task, points).y
    assert not torch.equal(first, measure(task, points, seed=1).y)
    assert not torch.equal(first, measure(task, points, torch.tensor([1])).y)
    assert torch.equal(first, measure(type(task)(SHAPE, task.options, "mine"), points).y)
    task.kind = "another"
    assert not torch.equal(first, measure(task, points).y)


@pytest.mark.parametrize("name", TASKS)
def test_noise_is_gaussian_of_the_stated_size(name):
    points = random(4000, *SHAPE)
    m = measure(TASKS[name](noise_std=0.3), points)
    noise = (m.y - m.operator.forward(points)) / 0.3
    assert scipy.stats.kstest(noise.flatten(), "norm").pvalue > 0.01
    assert m.normalised_residual(points).square().mean().item() == pytest.approx(1, abs=0.1)


def test_first_coordinate_observes_the_first_coordinate():
    m = measure(TASKS["first_coordinate"](noise_std=1e-9), random(4, *SHAPE))
    assert m.operator.matrix.tolist() == [[1, 0, 0, 0, 0]]
    torch.testing.assert_close(m.y[:, 0], random(4, *SHAPE)[:, 0, 0, 0], atol=1e-8, rtol=0)


def test_observed_directions_are_orthonormal_and_seeded():
    def matrix(**options) -> torch.Tensor:
        task = LinearObservation((6, 1, 1), LinearObservation.Options(**options))
        return measure(task, torch.zeros(2, 6, 1, 1)).operator.matrix

    full = matrix(observations=6)
    torch.testing.assert_close(full @ full.mT, torch.eye(6, dtype=torch.float64), atol=1e-12, rtol=0)
    assert matrix().shape == (1, 6)
    torch.testing.assert_close(matrix(observations=2), full[:2], atol=1e-12, rtol=0)
    assert not torch.allclose(matrix(matrix_seed=1), matrix(matrix_seed=0))
    # Directions are uniform on the sphere: a squared coordinate in 6 dimensions is Beta(1/2, 5/2).
    squares = torch.stack([matrix(matrix_seed=seed)[0, 0].square() for seed in range(300)])
    assert scipy.stats.kstest(squares, scipy.stats.beta(0.5, 2.5).cdf).pvalue > 0.01


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 1, 8), (0, 1, 1)])
@pytest.mark.parametrize("task", [FirstCoordinate, LinearObservation])
def test_images_are_refused(task, shape):
    with pytest.raises(UserError, match=r"observes points, of shape \(d, 1, 1\)"):
        task(shape, task.Options())


def test_more_observations_than_dimensions_are_refused():
    with pytest.raises(UserError, match="observations must be from 1 to the points' dimension 5, not 6"):
        LinearObservation(SHAPE, LinearObservation.Options(observations=6))


@pytest.mark.parametrize(
    ("task", "options"),
    [
        (FirstCoordinate, {"noise_std": 0}),
        (FirstCoordinate, {"noise_std": -1}),
        (FirstCoordinate, {"noise_std": math.inf}),
        (FirstCoordinate, {"observations": 1}),
        (LinearObservation, {"observations": 0}),
        (LinearObservation, {"matrix_seed": -1}),
    ],
)
def test_options_out_of_range(task, options):
    with pytest.raises(ValidationError):
        task.Options(**options)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_bad_values_are_named_by_row(value):
    points = random(4, *SHAPE)
    points[2, 3] = value
    with pytest.raises(UserError, match=r"points must be finite; row 2 \(index 12\)"):
        measure(TASKS["first_coordinate"](), points, torch.arange(10, 14))


@pytest.mark.parametrize("shape", [(4, 6, 1, 1), (4, 5), (5, 1, 1), (0, 5, 1, 1)])
def test_bad_shapes(shape):
    with pytest.raises(UserError, match=r"points must have shape \[B, 5, 1, 1\]"):
        measure(TASKS["first_coordinate"](), torch.zeros(shape))


def test_bad_dtypes_and_lengths():
    task = TASKS["first_coordinate"]()
    with pytest.raises(UserError, match="must be float32 or float64"):
        measure(task, torch.zeros(2, *SHAPE, dtype=torch.int64))
    with pytest.raises(UserError, match="one entry for each of the 2 points"):
        measure(task, torch.zeros(2, *SHAPE), torch.arange(3))
