"""Kernels and matrices against independent implementations."""

import math

import numpy as np
import pytest
import scipy.ndimage
import torch
from PIL import Image

from vfmbench.randomness import PhiloxNoise
from vfmbench.tasks.kernels import (
    bicubic_inverse,
    bicubic_matrix,
    gaussian_kernel,
    gaussian_matrix,
    gaussian_svd,
)
from vfmbench.tasks.motion_kernels import borodenko_kernels, traced_kernels

LIKE = torch.empty(0, dtype=torch.float64)


def kernels(size: int, intensity: float, rows: int = 256, seed: int = 0) -> torch.Tensor:
    return traced_kernels(PhiloxNoise(seed, "test", torch.arange(rows)), 2, size, intensity)


def second_moments(kernel: torch.Tensor) -> torch.Tensor:
    """Eigenvalues of each kernel's covariance in pixels^2, ascending, [B,2]."""
    axis = torch.arange(kernel.shape[-1], dtype=torch.float64) - kernel.shape[-1] // 2
    rows, columns = kernel.sum(2), kernel.sum(1)
    cross = torch.einsum("bij,i,j->b", kernel, axis, axis)
    matrix = torch.stack([rows @ axis**2, cross, cross, columns @ axis**2], 1).reshape(-1, 2, 2)
    return torch.linalg.eigvalsh(matrix)


@pytest.mark.parametrize(("size", "factor"), [(32, 2), (33, 3), (64, 4), (40, 5), (56, 7)])
def test_bicubic_equals_deepinvs_imresize(size, factor):
    imresize = pytest.importorskip("deepinv.physics.functional").imresize_matlab
    x = torch.rand(1, 2, size, 2 * size, dtype=torch.float64)
    rows, columns = bicubic_matrix(x, size, factor)[0], bicubic_matrix(x, 2 * size, factor)[0]
    torch.testing.assert_close(rows @ x @ columns.mT, imresize(x.clone(), scale=1 / factor), atol=1e-5, rtol=0)


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_bicubic_equals_pillow_away_from_the_border(factor):
    x = np.random.default_rng(0).random(24 * factor).astype(np.float32)
    resized = np.asarray(Image.fromarray(x[None]).resize((24, 1), Image.Resampling.BICUBIC))[0]
    ours = bicubic_matrix(LIKE, 24 * factor, factor)[0].numpy() @ x
    np.testing.assert_allclose(ours[3:-3], resized[3:-3], atol=1e-6)


@pytest.mark.parametrize(("size", "factor"), [(8, 4), (8, 2), (8, 8), (6, 3), (4, 1), (5, 5)])
def test_bicubic_mirrors_as_often_as_its_support_needs(size, factor):
    def cubic(d):
        d = abs(d)
        return (d < 1) * ((1.5 * d - 2.5) * d * d + 1) + (1 <= d < 2) * (((-0.5 * d + 2.5) * d - 4) * d + 2)

    x = np.random.default_rng(1).random(size)
    pad = 3 * factor
    mirrored = np.pad(x, pad, mode="symmetric")
    expected = []
    for i in range(size // factor):
        weights = [cubic((j - pad + 0.5) / factor - (i + 0.5)) for j in range(len(mirrored))]
        expected.append(np.dot(weights, mirrored) / np.sum(weights))
    np.testing.assert_allclose(bicubic_matrix(LIKE, size, factor)[0].numpy() @ x, expected, atol=1e-12)


@pytest.mark.parametrize(("size", "factor"), [(8, 4), (8, 2), (15, 3), (64, 4)])
def test_bicubic_inverse_is_a_right_inverse(size, factor):
    product = bicubic_matrix(LIKE, size, factor)[0] @ bicubic_inverse(LIKE, size, factor)[0]
    torch.testing.assert_close(product, torch.eye(size // factor, dtype=torch.float64), atol=1e-10, rtol=0)


@pytest.mark.parametrize(("size", "std"), [(1, 1.0), (7, 1.0), (15, 0.75), (61, 3.0), (5, 10.0)])
def test_gaussian_kernel_equals_scipys(size, std):
    impulse = np.zeros(size)
    impulse[size // 2] = 1
    expected = scipy.ndimage.gaussian_filter1d(impulse, std, mode="constant", radius=size // 2)
    np.testing.assert_allclose(gaussian_kernel(size, std), expected, atol=1e-15)


def test_matrices_follow_dtype_and_survive_inference_mode():
    key = (11, 5, 1.25)
    with torch.inference_mode():
        gaussian_matrix(torch.empty(0), *key)
    matrix = gaussian_matrix(torch.empty(0), *key)[0]
    assert matrix.dtype == torch.float32
    assert not matrix.is_inference()
    u, s, vt = gaussian_svd(LIKE, *key)
    torch.testing.assert_close(u * s @ vt, gaussian_matrix(LIKE, *key)[0])


@pytest.mark.parametrize("size", [3, 5, 7, 15, 61])
@pytest.mark.parametrize("intensity", [0.0, 0.5, 1.0])
def test_motion_kernels_are_weights_centred_in_their_support(size, intensity):
    kernel = kernels(size, intensity, rows=32)
    assert kernel.shape == (32, size, size)
    assert kernel.min() >= 0
    torch.testing.assert_close(kernel.sum((1, 2)), torch.ones(32, dtype=torch.float64), atol=1e-12, rtol=0)
    axis = torch.arange(size, dtype=torch.float64) - size // 2
    assert (kernel.sum(2) @ axis).abs().max() < 1e-10
    assert (kernel.sum(1) @ axis).abs().max() < 1e-10


def test_motion_paths_are_lines_at_intensity_zero_and_bend_with_it():
    bending = []
    for intensity in (0.0, 0.25, 0.5, 1.0):
        minor, major = second_moments(kernels(61, intensity)).unbind(1)
        bending.append(float((minor / major)[major > 20].sqrt().mean()))
    # A line has only the width of its bilinear weights.
    assert bending[0] < 0.08
    assert bending == sorted(bending)
    assert bending[3] > 0.25


def test_motion_paths_start_smooth_and_end_jittery():
    """The turn per step, recovered from the generator's own draws, has a spread that grows along the path."""
    noise = PhiloxNoise(0, "test", torch.arange(4000))
    bend = 2 * noise.uniform((4,), 2)[:, 3:] - 1
    jitter = noise.normal((64,), 3)
    progress = (torch.arange(64) + 0.5) / 64
    turn = math.pi * (bend + jitter * progress * 8) / 64
    assert turn[:, :4].std() < math.pi / 40
    assert turn[:, -4:].std() == pytest.approx(math.pi / 8, rel=0.05)


def test_motion_kernel_lengths_and_directions_are_spread():
    minor, major = second_moments(kernels(61, 0.0, rows=1000)).unbind(1)
    # A uniform trace of length L has variance L^2 / 12; lengths are uniform up to 0.75 sqrt(2) 61 = 65 pixels, slightly shrunk
    # where a line would leave the support.
    length = (12 * major).sqrt()
    assert 28 < length.mean() < 36
    assert length.quantile(0.95) > 52
    assert minor.max() < 0.6
    kernel = kernels(61, 0.5, rows=1000)
    axis = torch.arange(61, dtype=torch.float64) - 30
    vertical, horizontal = kernel.sum(2) @ axis**2, kernel.sum(1) @ axis**2
    assert float(vertical.mean() / horizontal.mean()) == pytest.approx(1, abs=0.1)
    diagonal = torch.einsum("bij,i,j->b", kernel, axis, axis)
    assert abs(float(diagonal.mean() / horizontal.mean())) < 0.06


def test_motion_kernels_depend_on_seed_and_image_index_only():
    kernel = kernels(15, 0.5, rows=8)
    order = torch.tensor([5, 0, 7])
    again = traced_kernels(PhiloxNoise(0, "test", order), 2, 15, 0.5)
    torch.testing.assert_close(again, kernel[order], atol=1e-15, rtol=0)
    assert (kernels(15, 0.5, rows=8, seed=1) - kernel).abs().flatten(1).amax(1).min() > 1e-3


def borodenko(size: int, intensity: float, rows: int = 600, seed: int = 0) -> torch.Tensor:
    return borodenko_kernels(PhiloxNoise(seed, "test", torch.arange(rows)), 2, size, intensity)


# Of 600 kernels of the published generator, size 61: medians of the effective number of pixels 1 / sum k^2, of the peak, and of
# the larger and smaller standard deviation of the weights, in pixels.
@pytest.mark.parametrize(
    ("intensity", "pixels", "peak", "major", "minor"),
    [(0.0, 62.0, 0.0228, 8.97, 0.573), (0.5, 79.1, 0.0193, 10.8, 0.932), (1.0, 91.5, 0.0203, 9.74, 1.57)],
)
def test_borodenko_kernels_are_as_thick_long_and_bent_as_the_published_ones(intensity, pixels, peak, major, minor):
    kernel = borodenko(61, intensity)
    spread = second_moments(kernel)
    assert float((1 / kernel.square().sum((1, 2))).median()) == pytest.approx(pixels, rel=0.1)
    assert float(kernel.amax((1, 2)).median()) == pytest.approx(peak, rel=0.12)
    assert float(spread[:, 1].sqrt().median()) == pytest.approx(major, rel=0.1)
    assert float(spread[:, 0].sqrt().median()) == pytest.approx(minor, rel=0.1)


@pytest.mark.parametrize("size", [3, 5, 15, 61])
@pytest.mark.parametrize("intensity", [0.0, 0.5, 1.0])
def test_borodenko_kernels_are_weights_of_their_row_alone(size, intensity):
    kernel = borodenko(size, intensity, rows=16)
    assert kernel.shape == (16, size, size)
    assert kernel.min() >= 0
    torch.testing.assert_close(kernel.sum((1, 2)), torch.ones(16, dtype=torch.float64), atol=1e-12, rtol=0)
    order = torch.tensor([5, 0, 7])
    again = borodenko_kernels(PhiloxNoise(0, "test", order), 2, size, intensity)
    torch.testing.assert_close(again, kernel[order], atol=1e-15, rtol=0)
