"""Trivial references: closed forms, another library's interpolation, dense matrices."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from vfmbench.baselines.reference import Autoencoded, Bicubic, MeanFill, Tikhonov
from vfmbench.errors import UserError
from vfmbench.measurement import Measurement
from vfmbench.registry import samplers, suites
from vfmbench.restoration import regularised_inverse
from vfmbench.tasks.operators import Mask

from .checks import build
from .toys import LINEAR, NONLINEAR, MatrixOperator, ToySuite, autoencoder, measure, toy_task

SUITE = ToySuite(None, (1, 8, 8), 0)
CODED = ToySuite(None, (4, 4, 4), 0, *autoencoder())
CODED.image_shape = (1, 8, 8)


def test_every_reference_is_registered():
    names = {"tikhonov": Tikhonov, "bicubic": Bicubic, "mean_fill": MeanFill, "autoencoded": Autoencoded}
    assert {name: samplers.get(name) for name in names} == names


def posterior_mean(measurement: Measurement, row: int, prior_std: float) -> torch.Tensor:
    """Of one row from dense matrices in covariance form: m + S A^T (A S A^T + N)^-1 (y - A m), over the observed entries."""
    operator = measure(measurement.condition, [row]).operator
    size = operator.image_shape[1] * operator.image_shape[2]
    basis = torch.eye(size, dtype=torch.float64).reshape(size, *operator.image_shape)
    matrix = operator.repeat(size).forward(basis).flatten(1).mT
    y = measurement.y[row].flatten()
    mean = y.mean().expand(size)
    if operator.observed is not None:
        kept = operator.observed.flatten()
        matrix, y = matrix[kept], y[kept]
        place = torch.cartesian_prod(*map(torch.arange, operator.image_shape[1:])).double()
        weights = (1 + torch.cdist(place, place[kept]).square()) ** -2
        mean = (weights @ y) / weights.sum(1)
    covariance = prior_std**2 * matrix @ matrix.mT + 0.1**2 * torch.eye(len(y), dtype=torch.float64)
    return mean + prior_std**2 * matrix.mT @ torch.linalg.solve(covariance, y - matrix @ mean)


@pytest.mark.parametrize("problem", LINEAR)
@pytest.mark.parametrize("prior_std", [0.5, 0.2])
def test_tikhonov_is_the_posterior_mean_under_a_white_prior(problem, prior_std):
    measurement = measure(problem)
    found = build(Tikhonov, SUITE, {"prior_std": prior_std}).sample(measurement, 2, None).images
    assert torch.equal(found[:, 0], found[:, 1])
    # Conjugate gradients stop at 1e-3 of the gradient; the others are exact.
    tolerance = 1e-2 if problem == "motion_deblur" else 1e-9
    for row in range(4):
        expected = posterior_mean(measurement, row, prior_std)
        assert (found[row, 0].flatten() - expected).norm() <= tolerance * expected.norm()


def test_regularised_inverse_fills_a_hole_from_what_is_observed():
    observed = torch.ones(2, 1, 4, 4, dtype=torch.bool)
    observed[0, 0, 1:3, 1:3] = False
    colour = torch.tensor([[0.5, -0.25, 0.0], [0.1, 0.2, 0.3]])[:, :, None, None]
    y = colour.expand(2, 3, 4, 4).where(observed, 9.0)
    zero = torch.zeros(2, dtype=torch.int64)
    measurement = Measurement(y, Mask(observed, (3, 4, 4)), torch.full((2, 1, 1, 1), 0.3), zero, zero, "inpaint_box")
    torch.testing.assert_close(regularised_inverse(measurement), colour.expand(2, 3, 4, 4))
    # One loud entry, inside the hole and outside: only what is observed counts.
    y[:, :, 0, 0] += 1
    noise_std = torch.full((2, 3, 4, 4), 0.3)
    noise_std[0, :, 1, 1] = 100.0
    varied = replace(measurement, noise_std=noise_std)
    torch.testing.assert_close(regularised_inverse(varied), regularised_inverse(measurement))


def test_noise_of_several_levels_counts_with_its_root_mean_square():
    measurement = measure("denoise")
    noise_std = torch.linspace(0.1, 0.4, 64, dtype=torch.float64).reshape(1, 1, 8, 8).expand(4, 1, 8, 8)
    weight = noise_std[0].square().mean() / 0.25
    mean = measurement.y.mean((2, 3), keepdim=True)
    expected = mean + (measurement.y - mean) / (1 + weight)
    torch.testing.assert_close(regularised_inverse(replace(measurement, noise_std=noise_std)), expected)


@pytest.mark.parametrize("problem", LINEAR)
def test_noise_free_measurements_have_a_finite_regularised_inverse(problem):
    measurement = measure(problem, noise_std=0.0)
    measurement = replace(measurement, noise_std=torch.zeros_like(measurement.noise_std))
    found = regularised_inverse(measurement)
    assert found.isfinite().all()
    scale = measurement.y.square().mean().sqrt()
    assert measurement.residual(found).square().mean().sqrt() < 0.02 * scale


def test_measurements_that_are_no_images_are_taken_around_zero():
    matrix = torch.randn(3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = torch.tensor([[1.0, -2.0, 0.5]], dtype=torch.float64)
    zero = torch.zeros(1, dtype=torch.int64)
    noise_std = torch.full((1, 1), 0.2, dtype=torch.float64)
    found = regularised_inverse(Measurement(y, MatrixOperator(matrix, (1, 2, 2)), noise_std, zero, zero, "toy"))
    expected = torch.linalg.solve(matrix.mT @ matrix + 0.16 * torch.eye(4, dtype=torch.float64), matrix.mT @ y[0])
    assert (found.flatten() - expected).norm() < 1e-2 * expected.norm()


@pytest.mark.parametrize("problem", NONLINEAR)
def test_nonlinear_problems_are_refused(problem):
    for reference in (Tikhonov, Bicubic, MeanFill, Autoencoded):
        allowed, reason = reference.supports(toy_task(problem), CODED)
        assert not allowed
        assert problem in reason
    with pytest.raises(UserError, match="no regularised inverse"):
        regularised_inverse(measure(problem))


@pytest.mark.parametrize("value", [0.0, -1.0])
def test_prior_std_must_be_positive(value):
    with pytest.raises(ValidationError, match="greater than 0"):
        Tikhonov.Options(prior_std=value)


@pytest.mark.parametrize("factor", [2, 4])
def test_bicubic_is_pillows(factor):
    """Pillow's bicubic has a = -0.5, too."""
    measurement = measure("super_resolution", factor=factor)
    found = build(Bicubic, SUITE, {}).reconstruct(measurement)
    images = [Image.fromarray(y.numpy().astype(np.float32)) for y in measurement.y[:, 0]]
    expected = np.stack([np.asarray(image.resize((8, 8), Image.Resampling.BICUBIC)) for image in images])
    np.testing.assert_allclose(found[:, 0], expected, atol=1e-5)


def test_mean_fill_leaves_what_is_observed_and_fills_the_rest():
    for problem in ("inpaint_box", "inpaint_random"):
        measurement = measure(problem)
        found = build(MeanFill, SUITE, {}).reconstruct(measurement)
        for row in range(4):
            observed = measurement.operator.observed[row]
            assert torch.equal(found[row][observed], measurement.y[row][observed])
            assert (found[row][~observed] - measurement.y[row][observed].mean()).abs().max() < 1e-12


def test_autoencoded_passes_the_pseudo_inverse_through_the_codec():
    measurement = measure("super_resolution")
    sampler = build(Autoencoded, CODED, {})
    found = sampler.reconstruct(measurement)
    torch.testing.assert_close(found, CODED.decode(CODED.encode(measurement.operator.pinv(measurement.y))))
    counted = sampler.meter.per_sample(2)
    assert (counted.encoder_forwards, counted.decoder_forwards) == (2, 2)


def test_which_tasks_are_supported():
    def supported(reference, suite=CODED):
        return {problem for problem in LINEAR if reference.supports(toy_task(problem), suite)[0]}

    assert supported(Tikhonov) == supported(Autoencoded) == set(LINEAR)
    assert supported(Bicubic) == {"super_resolution"}
    assert supported(MeanFill) == {"inpaint_box", "inpaint_random"}
    assert supported(Autoencoded, SUITE) == set()
    assert "has no codec" in Autoencoded.supports(toy_task("denoise"), SUITE)[1]


def test_a_renamed_task_keeps_its_references():
    """Suites name a task's problem after the task, such as super_resolution_x4."""
    task = toy_task("super_resolution", factor=4)
    task.name = task.condition = "super_resolution_x4"
    assert Bicubic.supports(task, SUITE) == (True, "")
    assert Bicubic.supports(toy_task("denoise"), SUITE)[0] is False


def test_tikhonov_takes_its_tuned_width_where_there_is_one():
    for name, expected in (("photos64", {"prior_std": 1.0}), ("digits", {})):
        suite = suites.get(name)({})
        task = suite.task("super_resolution", {})
        assert Tikhonov.preset("tuned", "tikhonov", task, suite) == expected
        assert Tikhonov.preset("paper", "tikhonov", task, suite) == {}
