"""Tasks: options, what is random and on what it depends, noise, bad input."""

import math

import pytest
import torch
from pydantic import ValidationError

from vfmbench.errors import UserError
from vfmbench.interfaces import Task
from vfmbench.tasks.noise import NOISE_FLOOR
from vfmbench.tasks.problems import (
    Denoise,
    GaussianDeblur,
    HighDynamicRange,
    InpaintBox,
    InpaintRandom,
    InverseProblem,
    MotionDeblur,
    PhaseRetrieval,
    SuperResolution,
)

PROBLEMS = [
    Denoise,
    InpaintRandom,
    InpaintBox,
    SuperResolution,
    GaussianDeblur,
    MotionDeblur,
    HighDynamicRange,
    PhaseRetrieval,
]
BLURS = [GaussianDeblur, MotionDeblur]
SMALL = {
    InpaintBox: {"min_size": 3, "max_size": 6, "margin": 0},
    SuperResolution: {"factor": 4},
    GaussianDeblur: {"std": 1.0, "kernel_size": 7},
    MotionDeblur: {"kernel_size": 5},
}


def small(problem: type[InverseProblem], shape=(1, 8, 8), **options) -> InverseProblem:
    return problem(shape, problem.Options(**{**SMALL.get(problem, {}), **options}))


def pictures(rows: int, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return (2 * torch.rand(rows, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) - 1).to(dtype)


def measure(task: InverseProblem, images: torch.Tensor, index: torch.Tensor | None = None, seed: int = 0):
    index = torch.arange(len(images)) if index is None else index
    return task.measure(images, torch.zeros_like(index), index, seed)


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 12, 8)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_measurement_fits_its_operator(problem, shape, dtype):
    task = small(problem, shape)
    images = pictures(5, *shape, dtype=dtype)
    m = measure(task, images)
    assert isinstance(task, InverseProblem)
    assert m.y.dtype == m.noise_std.dtype == dtype
    assert m.y.shape == (5, *m.operator.measurement_shape)
    assert (task.linear, m.condition, task.name) == (m.operator.linear, problem.kind, problem.kind)
    assert m.operator.to_image(m.y).shape == images.shape
    assert m.repeat(2).normalised_residual(images.repeat_interleave(2, 0)).sub(1).abs().max() < 0.6
    if task.linear:
        assert m.operator.adjoint(m.y).shape == m.operator.pinv(m.y).shape == images.shape


def test_a_problem_is_a_task():
    task: Task = small(Denoise)
    assert task.options.noise_std == 0.05


@pytest.mark.parametrize(
    ("problem", "noise"),
    [(problem, noise) for problem in PROBLEMS for noise in ("gaussian", "poisson") if problem.bounded or noise == "gaussian"],
)
def test_a_row_does_not_depend_on_batch_order_or_shard(problem, noise):
    task = small(problem, (3, 8, 8), noise=noise)
    images, index = pictures(7, 3, 8, 8), torch.tensor([40, 3, 7, 0, 2**31, 12, 5])
    whole = measure(task, images, index)
    order = torch.tensor([4, 2, 6, 0, 1, 5, 3])
    shuffled = measure(task, images[order], index[order])
    assert torch.equal(shuffled.y, whole.y[order])
    for row in range(7):
        single = measure(task, images[row : row + 1], index[row : row + 1])
        assert torch.equal(single.y, whole.y[row : row + 1])
        assert torch.equal(single.noise_std, whole.noise_std[row : row + 1])
        images64 = images.double()
        clean, expected = single.operator.forward(images64[row : row + 1]), whole.operator.forward(images64)[row : row + 1]
        torch.testing.assert_close(clean, expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("problem", PROBLEMS)
def test_a_row_depends_on_seed_and_image_index(problem):
    task = small(problem)
    images = pictures(1, 1, 8, 8)
    first = measure(task, images).y
    assert not torch.equal(first, measure(task, images, seed=1).y)
    assert not torch.equal(first, measure(task, images, torch.tensor([1])).y)


def test_the_display_name_changes_nothing_and_the_problem_does():
    images = pictures(2, 1, 8, 8)
    y = measure(small(Denoise), images).y
    assert torch.equal(measure(Denoise((1, 8, 8), Denoise.Options(), "my_task"), images).y, y)
    same_operator = small(SuperResolution, factor=1)
    assert not torch.allclose(measure(same_operator, images).y, y)


def test_measuring_keeps_the_images_graph_out():
    images = pictures(2, 1, 8, 8).requires_grad_()
    assert not measure(small(GaussianDeblur), images).y.requires_grad


def test_random_masks_drop_exactly_the_drawn_share():
    task = InpaintRandom((3, 16, 16), InpaintRandom.Options())
    observed = measure(task, pictures(400, 3, 16, 16)).operator.observed
    assert observed.shape == (400, 1, 16, 16)
    share = 1 - observed.flatten(1).double().mean(1)
    assert share.min() >= int(0.3 * 256) / 256
    assert share.max() < 0.7
    assert float(share.mean()) == pytest.approx(0.5, abs=0.03)
    assert float(share.std()) == pytest.approx(0.4 / math.sqrt(12), abs=0.01)
    exact = InpaintRandom((1, 7, 9), InpaintRandom.Options(min_drop=0.5, max_drop=0.5))
    assert (~measure(exact, pictures(20, 1, 7, 9)).operator.observed).flatten(1).sum(1).unique().tolist() == [int(0.5 * 63)]
    # Every pixel is as likely as any other.
    frequency = observed.double().mean((0, 1))
    assert (frequency - frequency.mean()).abs().max() < 5 * 0.5 / 20


def test_masks_and_noise_are_independent():
    task = InpaintRandom((1, 64, 64), InpaintRandom.Options())
    images = pictures(16, 1, 64, 64)
    m = measure(task, images)
    noise = (m.y - m.operator.forward(images)) / 0.05
    observed = m.operator.observed
    for part in (noise[observed], noise[~observed]):
        assert abs(float(part.mean())) < 4 / math.sqrt(part.numel())
        assert float(part.std()) == pytest.approx(1, abs=0.02)


def box_sides(observed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Height, width, top and left of the dropped box of every row."""
    rows, columns = (~observed).any(3)[:, 0], (~observed).any(2)[:, 0]
    return rows.sum(1), columns.sum(1), rows.int().argmax(1), columns.int().argmax(1)


def test_boxes_are_boxes_of_the_right_sizes_and_places():
    task = InpaintBox((1, 32, 48), InpaintBox.Options(min_size=4, max_size=8, margin=3))
    observed = measure(task, pictures(1500, 1, 32, 48)).operator.observed
    height, width, top, left = box_sides(observed)
    assert torch.equal((~observed).flatten(1).sum(1), height * width)
    for side in (height, width):
        assert side.unique().tolist() == [4, 5, 6, 7]
        assert side.bincount()[4:].min() > 1500 / 4 * 0.8
    assert abs(float(torch.corrcoef(torch.stack([height, width]).double())[0, 1])) < 0.1
    assert (top.min(), left.min()) == (3, 3)
    assert ((top + height).max(), (left + width).max()) == (29, 45)
    # The centre of a uniformly placed box is uniform about the image's centre.
    assert float((top + height / 2).mean()) == pytest.approx(16, abs=0.7)
    assert float((left + width / 2).mean()) == pytest.approx(24, abs=1)


def test_a_box_may_fill_the_image():
    task = InpaintBox((1, 8, 8), InpaintBox.Options(min_size=8, max_size=9, margin=0))
    assert not measure(task, pictures(3, 1, 8, 8)).operator.observed.any()


@pytest.mark.parametrize("problem", [InpaintRandom, InpaintBox])
def test_results_do_not_depend_on_the_hole(problem):
    task = small(problem)
    images = pictures(4, 1, 8, 8)
    m = measure(task, images)
    hole = ~m.operator.observed
    # The convention puts noise there, and the adapter sees it.
    assert (m.operator.to_image(m.y)[hole] != 0).all()
    changed = m.y + 3 * hole
    other = type(m)(changed, m.operator, m.noise_std, m.label, m.index, m.condition)
    assert torch.equal(m.operator.adjoint(changed), m.operator.adjoint(m.y))
    assert torch.equal(m.operator.pinv(changed), m.operator.pinv(m.y))
    assert torch.equal(other.residual(images), m.residual(images))
    assert torch.equal(other.normalised_residual(images), m.normalised_residual(images))


@pytest.mark.parametrize("problem", PROBLEMS)
def test_no_noise_is_the_operator_alone(problem):
    task = small(problem, noise_std=0)
    images = pictures(3, 1, 8, 8)
    m = measure(task, images)
    torch.testing.assert_close(m.y, m.operator.forward(images.double()).float(), atol=0, rtol=0)
    assert (m.noise_std == NOISE_FLOOR).all()
    assert m.normalised_residual(images).isfinite().all()


@pytest.mark.parametrize("problem", [problem for problem in PROBLEMS if problem.bounded])
def test_poisson_noise_has_the_declared_size(problem):
    task = small(problem, (3, 16, 16), noise="poisson", peak=200)
    # Entries near black, which HDR has more of, would meet the floor of one photon.
    images = pictures(20, 3, 16, 16) * (0.45 if problem is HighDynamicRange else 0.9)
    m = measure(task, images)
    assert m.noise_std.shape == m.y.shape
    assert float(m.normalised_residual(images).square().mean()) == pytest.approx(1, abs=0.1)


def test_poisson_is_refused_where_measurements_leave_the_range():
    with pytest.raises(UserError, match="noise must be gaussian"):
        PhaseRetrieval((1, 8, 8), PhaseRetrieval.Options(noise="poisson"))


def test_lengths_follow_the_image():
    def resolved(problem, size):
        return problem((3, size, size), problem.Options()).options

    assert (resolved(GaussianDeblur, 256).kernel_size, resolved(GaussianDeblur, 256).std) == (61, 3.0)
    assert (resolved(GaussianDeblur, 64).kernel_size, resolved(GaussianDeblur, 64).std) == (15, 0.75)
    assert (resolved(GaussianDeblur, 128).kernel_size, resolved(MotionDeblur, 128).kernel_size) == (31, 31)
    assert [resolved(MotionDeblur, size).kernel_size for size in (256, 64, 32, 8)] == [61, 15, 7, 3]
    for size, box in [(256, (32, 128, 16)), (64, (8, 32, 4)), (32, (4, 16, 2)), (8, (1, 4, 1))]:
        options = resolved(InpaintBox, size)
        assert (options.min_size, options.max_size, options.margin) == box
    assert InpaintBox((1, 256, 64), InpaintBox.Options()).options == resolved(InpaintBox, 64)
    assert GaussianDeblur((1, 64, 64), GaussianDeblur.Options(std=2.0)).options.std == 2.0


def test_every_problem_works_with_its_defaults_from_4_pixels_on():
    for size in (4, 8, 20):
        for problem in PROBLEMS:
            measurement = measure(problem((1, size, size), problem.Options()), pictures(2, 1, size, size))
            assert measurement.y.shape == (2, *measurement.operator.measurement_shape)
            assert measurement.y.isfinite().all()


@pytest.mark.parametrize(
    ("problem", "options", "message"),
    [
        (GaussianDeblur, {"kernel_size": 17}, r"kernel_size 17 is too large for 8x8 images .*; the largest is 15\."),
        (MotionDeblur, {"kernel_size": 61}, r"kernel_size 61 is too large for 8x8 images .*; the largest is 15\."),
        (GaussianDeblur, {"kernel_size": 4}, "kernel_size must be odd, not 4"),
        (MotionDeblur, {"kernel_size": 4}, "kernel_size must be odd, not 4"),
        (SuperResolution, {"factor": 3}, r"factor must divide both sides of 8x8 images \(1, 2, 4, 8\), not 3"),
        (SuperResolution, {"factor": 16}, "factor must divide"),
        (InpaintBox, {"min_size": 3, "max_size": 10, "margin": 0}, "do not fit into 8x8 images.* at most 8"),
        (InpaintBox, {"min_size": 3, "max_size": 6, "margin": 2}, "do not fit into 8x8 images"),
        (InpaintBox, {"min_size": 4, "max_size": 4, "margin": 0}, r"max_size must be larger than min_size \(4\), not 4"),
        (InpaintRandom, {"min_drop": 0.6, "max_drop": 0.4}, r"min_drop must be at most max_drop \(0.4\), not 0.6"),
    ],
)
def test_options_that_do_not_suit_the_images(problem, options, message):
    with pytest.raises(UserError, match=message):
        problem((1, 8, 8), problem.Options(**options))


@pytest.mark.parametrize("problem", BLURS)
def test_the_largest_kernel_works(problem):
    measurement = measure(problem((1, 8, 10), problem.Options(kernel_size=15, noise_std=0)), torch.ones(2, 1, 8, 10))
    assert torch.allclose(measurement.y, torch.ones(2, 1, 8, 10))


@pytest.mark.parametrize(
    ("problem", "options"),
    [
        (Denoise, {"noise_std": -0.1}),
        (Denoise, {"noise_std": math.nan}),
        (Denoise, {"noise_std": math.inf}),
        (Denoise, {"noise": "laplace"}),
        (Denoise, {"peak": 0}),
        (Denoise, {"sigma": 0.1}),
        (GaussianDeblur, {"std": 0}),
        (GaussianDeblur, {"kernel_size": 3.5}),
        (MotionDeblur, {"intensity": 1.5}),
        (SuperResolution, {"factor": 0}),
        (InpaintRandom, {"max_drop": 1.0}),
        (InpaintBox, {"min_size": 0}),
    ],
)
def test_options_out_of_range(problem, options):
    with pytest.raises(ValidationError):
        problem.Options(**options)


@pytest.mark.parametrize("value", [1.01, -1.5, math.nan, math.inf, -math.inf])
def test_bad_values_are_named_by_row(value):
    images = pictures(4, 1, 8, 8)
    images[2, 0, 3, 3] = value
    with pytest.raises(UserError, match=r"row 2 \(image index 12\)"):
        measure(small(Denoise), images, torch.arange(10, 14))


def test_values_just_outside_are_rounding():
    images = pictures(2, 1, 8, 8)
    images[0, 0, 0, 0] = 1.0009
    assert len(measure(small(Denoise), images)) == 2


@pytest.mark.parametrize("shape", [(4, 3, 8, 8), (4, 1, 8, 9), (4, 8, 8), (1, 8, 8), (0, 1, 8, 8)])
def test_bad_shapes(shape):
    with pytest.raises(UserError, match=r"images must have shape \[B, 1, 8, 8\]"):
        measure(small(Denoise), torch.zeros(shape))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.uint8, torch.int64])
def test_other_dtypes_are_refused(dtype):
    with pytest.raises(UserError, match="must be float32 or float64"):
        measure(small(Denoise), torch.zeros(2, 1, 8, 8, dtype=dtype))


def test_labels_and_indices_must_fit():
    with pytest.raises(UserError, match="one entry for each of the 2 images"):
        measure(small(Denoise), torch.zeros(2, 1, 8, 8), torch.arange(3))
