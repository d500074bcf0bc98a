"""Operators: adjoints, pseudo-inverses, boundaries, gradients, precision, batching."""

import math

import numpy as np
import pytest
import scipy.ndimage
import torch

from vfmbench.errors import UserError
from vfmbench.randomness import PhiloxNoise
from vfmbench.tasks.kernels import PINV_TOLERANCE, gaussian_kernel
from vfmbench.tasks.motion_kernels import traced_kernels
from vfmbench.tasks.operators import HDR, GaussianBlur, Identity, Mask, MotionBlur, PhaseRetrieval, SuperResolution
from vfmbench.tasks.operators.base import TIKHONOV_TOLERANCE, BatchedOperator

ROWS = 3


def random(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def random_mask(shape, rows=ROWS):
    return Mask(torch.rand(rows, 1, *shape[1:], generator=torch.Generator().manual_seed(1)) < 0.5, shape)


def random_kernel(size, rows=ROWS):
    """Without symmetry and with negative entries, so that a flipped kernel cannot go unnoticed."""
    return random(rows, size, size, seed=2) / size


def shaken(shape, size, rows=ROWS):
    return MotionBlur(traced_kernels(PhiloxNoise(0, "test", torch.arange(rows)), 0, size, 0.5), shape)


EXACT = {
    "identity": lambda: Identity(ROWS, (2, 5, 7)),
    "mask": lambda: random_mask((3, 7, 12)),
    **{
        f"super-resolution-{c}x{h}x{w}-by-{f}": lambda c=c, h=h, w=w, f=f: SuperResolution(ROWS, (c, h, w), f)
        for c, h, w, f in [(1, 8, 8, 4), (1, 8, 8, 2), (3, 15, 21, 3), (2, 20, 5, 5), (1, 7, 5, 1), (1, 8, 16, 8)]
    },
}
BLURS = {
    **{
        f"gaussian-{c}x{h}x{w}-{k}": lambda c=c, h=h, w=w, k=k, s=s: GaussianBlur(ROWS, (c, h, w), k, s)
        for c, h, w, k, s in [
            (1, 8, 8, 7, 1.0),
            (3, 9, 14, 5, 0.7),
            (1, 8, 8, 15, 3.0),
            (2, 31, 20, 11, 2.0),
            (1, 4, 5, 1, 1.0),
        ]
    },
    **{
        f"motion-{c}x{h}x{w}-{k}": lambda c=c, h=h, w=w, k=k: MotionBlur(random_kernel(k), (c, h, w))
        for c, h, w, k in [(1, 8, 8, 5), (3, 8, 8, 15), (3, 9, 14, 3), (2, 31, 20, 21), (1, 5, 4, 1)]
    },
}
LINEAR = EXACT | BLURS
NONLINEAR = {"hdr": lambda: HDR(ROWS, (2, 5, 8)), "phase-retrieval": lambda: PhaseRetrieval(ROWS, (2, 9, 12))}
ALL = LINEAR | NONLINEAR


def dense(operator, map_name: str) -> torch.Tensor:
    """Matrices of every row for one of the operator's maps, float64 [rows, outputs, inputs]."""
    shape = operator.image_shape if map_name == "forward" else operator.measurement_shape
    size = math.prod(shape)
    wide = operator.repeat(size)
    basis = torch.eye(size, dtype=torch.float64).repeat(len(operator), 1).reshape(-1, *shape)
    return getattr(wide, map_name)(basis).reshape(len(operator), size, -1).mT


@pytest.mark.parametrize("name", LINEAR)
def test_adjoint_identity(name):
    operator = LINEAR[name]()
    x = random(ROWS, *operator.image_shape, seed=3)
    y = random(ROWS, *operator.measurement_shape, seed=4)
    forward, adjoint = operator.forward(x), operator.adjoint(y)
    assert forward.shape == y.shape
    assert adjoint.shape == x.shape
    left, right = (forward * y).flatten(1).sum(1), (x * adjoint).flatten(1).sum(1)
    scale = forward.flatten(1).norm(dim=1) * y.flatten(1).norm(dim=1)
    assert ((left - right).abs() / scale).max() < 1e-10


@pytest.mark.parametrize("name", [name for name in LINEAR if "31x20" not in name])
def test_adjoint_is_the_transposed_matrix(name):
    operator = LINEAR[name]()
    torch.testing.assert_close(dense(operator, "adjoint"), dense(operator, "forward").mT, atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", EXACT)
def test_exact_pseudo_inverse(name):
    operator = EXACT[name]()
    a, p = dense(operator, "forward"), dense(operator, "pinv")
    close = {"atol": 1e-10, "rtol": 0}
    torch.testing.assert_close(a @ p @ a, a, **close)
    torch.testing.assert_close(p @ a @ p, p, **close)
    torch.testing.assert_close((a @ p).mT, a @ p, **close)
    torch.testing.assert_close((p @ a).mT, p @ a, **close)
    torch.testing.assert_close(p, torch.linalg.pinv(a), **close)


@pytest.mark.parametrize("name", BLURS)
def test_blur_pseudo_inverse_solves_least_squares_to_its_tolerance(name):
    operator = BLURS[name]()
    y = random(ROWS, *operator.measurement_shape, seed=5)
    x = operator.pinv(y)
    gradient = operator.adjoint(operator.forward(x) - y).flatten(1).norm(dim=1)
    # For the Gaussian |A|^2 <= |A|_1 |A|_inf <= 2 * 2, as the mirror at most doubles a column's sum along each axis.
    bound = operator.adjoint(y) if isinstance(operator, MotionBlur) else 2 * y
    assert (gradient / bound.flatten(1).norm(dim=1)).max() <= PINV_TOLERANCE * (1 + 1e-6)


def test_gaussian_pseudo_inverse_is_the_truncated_one():
    operator = GaussianBlur(1, (1, 9, 7), 5, 1.2)
    matrix = dense(operator, "forward")[0]
    u, s, vt = torch.linalg.svd(matrix)
    inverse = torch.where(s > PINV_TOLERANCE * s[0], 1 / s, 0)
    torch.testing.assert_close(dense(operator, "pinv")[0], vt.mT * inverse @ u.mT, atol=1e-9, rtol=0)


@pytest.mark.parametrize(("size", "kernel_size"), [(64, 15), (64, 31)])
def test_motion_pseudo_inverse_converges_within_its_cap_in_float32(size, kernel_size):
    operator = shaken((1, size, size), kernel_size, rows=4)
    noise = 0.05 * random(4, 1, size, size, dtype=torch.float32, seed=1)
    y = operator.forward(random(4, 1, size, size, dtype=torch.float32)) + noise
    x = operator.pinv(y)
    gradient = operator.adjoint(operator.forward(x) - y).flatten(1).norm(dim=1)
    assert (gradient / operator.adjoint(y).flatten(1).norm(dim=1)).max() <= 1.05 * PINV_TOLERANCE


def test_motion_pseudo_inverse_of_a_row_does_not_depend_on_the_others():
    operator = shaken((1, 12, 12), 5)
    y = operator.forward(random(ROWS, 1, 12, 12).tanh())
    y[1] = 0
    alone = MotionBlur(operator._kernel[2:], (1, 12, 12)).pinv(y[2:])
    together = operator.pinv(y)
    torch.testing.assert_close(together[2:], alone, atol=1e-8, rtol=0)
    assert (together[1] == 0).all()


@pytest.mark.parametrize(("height", "width", "size"), [(8, 8, 15), (12, 9, 5), (40, 33, 31)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_motion_blur_is_scipys_mirrored_correlation(height, width, size, dtype):
    kernel = random_kernel(size)
    x = random(ROWS, 2, height, width, dtype=dtype)
    y = MotionBlur(kernel, (2, height, width)).forward(x)
    expected = [
        [scipy.ndimage.correlate(c, k, mode="mirror") for c in image]
        for image, k in zip(x.double().numpy(), kernel.numpy(), strict=True)
    ]
    np.testing.assert_allclose(y, np.array(expected), atol=2e-5 if dtype == torch.float32 else 1e-12)


@pytest.mark.parametrize(("height", "width", "size", "std"), [(8, 8, 7, 1.0), (8, 8, 15, 2.0), (30, 17, 21, 3.0)])
def test_gaussian_blur_is_scipys_mirrored_filter(height, width, size, std):
    x = random(ROWS, 2, height, width)
    y = GaussianBlur(ROWS, (2, height, width), size, std).forward(x)
    expected = scipy.ndimage.gaussian_filter(x.numpy(), std, mode="mirror", radius=size // 2, axes=(2, 3))
    np.testing.assert_allclose(y, expected, atol=1e-12)


def test_gaussian_blur_equals_motion_blur_with_its_kernel():
    kernel = torch.from_numpy(np.outer(gaussian_kernel(9, 1.5), gaussian_kernel(9, 1.5))).expand(ROWS, 9, 9)
    x = random(ROWS, 1, 10, 12)
    torch.testing.assert_close(MotionBlur(kernel, (1, 10, 12)).forward(x), GaussianBlur(ROWS, (1, 10, 12), 9, 1.5).forward(x))


@pytest.mark.parametrize("size", [5, 15])
def test_direct_and_fourier_motion_blur_agree(size):
    """Small kernels take grouped convolution in float32 and the FFT in float64."""
    operator = MotionBlur(random_kernel(size), (3, 11, 16))
    x = random(ROWS, 3, 11, 16)
    torch.testing.assert_close(operator.forward(x.float()).double(), operator.forward(x), atol=2e-5, rtol=0)
    torch.testing.assert_close(operator.adjoint(x.float()).double(), operator.adjoint(x), atol=2e-5, rtol=0)


@pytest.mark.parametrize("name", ALL)
def test_forward_gradient(name):
    operator = ALL[name]()
    # Clipping has kinks at 1/2 and amplitudes at 0; random values stay clear of both.
    x = random(ROWS, *operator.image_shape, seed=6).requires_grad_()
    assert torch.autograd.gradcheck(operator.forward, x, fast_mode=True)


@pytest.mark.parametrize("name", [*LINEAR])
def test_adjoint_gradient_is_the_forward_operator(name):
    operator = LINEAR[name]()
    y = random(ROWS, *operator.measurement_shape, seed=7).requires_grad_()
    x = random(ROWS, *operator.image_shape, seed=8)
    (gradient,) = torch.autograd.grad(operator.adjoint(y), y, x)
    torch.testing.assert_close(gradient, operator.forward(x), atol=1e-10, rtol=0)
    float32 = y.detach().float().requires_grad_()
    (gradient,) = torch.autograd.grad(operator.adjoint(float32), float32, x.float())
    torch.testing.assert_close(gradient, operator.forward(x.float()), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_rounded_only_at_the_end(name, dtype):
    operator = ALL[name]()
    x = random(ROWS, *operator.image_shape, dtype=dtype)
    y = operator.forward(x)
    assert y.dtype == dtype
    torch.testing.assert_close(y, operator.forward(x.float()).to(dtype))
    assert operator.to_image(y).dtype == dtype


@pytest.mark.parametrize("name", ALL)
def test_autocast_does_not_reach_inside(name):
    operator = ALL[name]()
    x = random(ROWS, *operator.image_shape, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y = operator.forward(x)
    torch.testing.assert_close(y, operator.forward(x), atol=0, rtol=0)


@pytest.mark.parametrize("name", ALL)
def test_repeat_and_to(name):
    operator = ALL[name]()
    x = random(2 * ROWS, *operator.image_shape)
    repeated = operator.repeat(2).to("cpu")
    assert len(operator) == ROWS
    assert len(repeated) == 2 * ROWS
    y = repeated.forward(x)
    torch.testing.assert_close(y[0::2], operator.forward(x[0::2]))
    torch.testing.assert_close(y[1::2], operator.forward(x[1::2]))
    if operator.observed is not None:
        assert torch.equal(repeated.observed[::2], operator.observed)


@pytest.mark.parametrize("name", ALL)
def test_to_image_has_the_images_shape(name):
    operator = ALL[name]()
    y = random(ROWS, *operator.measurement_shape)
    assert operator.to_image(y).shape == (ROWS, *operator.image_shape)


@pytest.mark.parametrize("name", ALL)
def test_wrong_shapes_and_integers_are_refused(name):
    operator = ALL[name]()
    c, h, w = operator.image_shape
    for shape in [(ROWS + 1, c, h, w), (ROWS, c + 1, h, w), (ROWS, c, h + 1, w), (c, h, w)]:
        with pytest.raises(ValueError, match="shape"):
            operator.forward(torch.zeros(shape))
    with pytest.raises(ValueError, match=r"torch\.uint8"):
        operator.forward(torch.zeros(ROWS, c, h, w, dtype=torch.uint8))


def test_super_resolution_to_image_repeats_pixels():
    y = torch.tensor([[[[1.0, 2.0]]]])
    assert torch.equal(SuperResolution(1, (1, 2, 4), 2).to_image(y)[0, 0], torch.tensor([[1.0, 1, 2, 2]] * 2))


def test_mask_ignores_what_is_in_the_hole_and_shows_it():
    operator = random_mask((3, 8, 8))
    y = random(ROWS, 3, 8, 8)
    altered = y.where(operator.observed, 1e6)
    assert torch.equal(operator.adjoint(altered), operator.adjoint(y))
    assert torch.equal(operator.pinv(altered), operator.pinv(y))
    assert torch.equal(operator.to_image(y), y)


def test_hdr_clips_twice_the_image():
    y = HDR(1, (1, 1, 4)).forward(torch.tensor([[[[-0.8, -0.25, 0.5, 0.9]]]]))
    assert torch.equal(y, torch.tensor([[[[-1, -0.5, 1, 1]]]]))


def test_phase_retrieval_is_the_centred_amplitude_of_the_padded_image():
    x = random(1, 1, 8, 12).tanh()
    operator = PhaseRetrieval(1, (1, 8, 12))
    padded = np.pad((x[0, 0].numpy() + 1) / 2, ((2, 2), (3, 3)))
    expected = np.abs(np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(padded)))) / math.sqrt(padded.size)
    np.testing.assert_allclose(operator.forward(x)[0, 0], expected, atol=1e-12)
    assert operator.measurement_shape == (1, 12, 18)


def test_phase_retrieval_image_is_within_range():
    operator = PhaseRetrieval(2, (1, 8, 8))
    y = operator.forward(torch.stack([torch.ones(1, 8, 8), -torch.ones(1, 8, 8)]))
    shown = operator.to_image(y - torch.tensor([0.0, 0.1])[:, None, None, None])
    assert shown[0].max() == pytest.approx(1, abs=1e-6)
    assert shown[0].argmax() == 4 * 8 + 4
    assert (shown[1] == -1).all()


@pytest.mark.parametrize("name", NONLINEAR)
def test_nonlinear_operators_have_no_adjoint(name):
    operator = NONLINEAR[name]()
    assert not operator.linear
    y = random(ROWS, *operator.measurement_shape)
    with pytest.raises(UserError, match="not linear and has no adjoint"):
        operator.adjoint(y)
    with pytest.raises(UserError, match="not linear and has no pseudo-inverse"):
        operator.pinv(y)
    with pytest.raises(UserError, match="not linear and has no regularised inverse"):
        operator.tikhonov(y, torch.ones(1, 1, 1, 1))


def weights(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)[:, None, None, None]


@pytest.mark.parametrize("name", [name for name in LINEAR if "31x20" not in name])
def test_tikhonov_solves_the_regularised_normal_equations(name):
    operator = LINEAR[name]()
    weight = weights(0.3, 0.1, 2.0)
    matrix, y = dense(operator, "forward"), random(ROWS, *operator.measurement_shape, seed=9)
    system = matrix.mT @ matrix + weight[:, 0] * torch.eye(matrix.shape[2], dtype=torch.float64)
    right = (matrix.mT @ y.flatten(1)[..., None]).squeeze(2)
    found = operator.tikhonov(y, weight).flatten(1)
    expected = torch.linalg.solve(system, right)
    if isinstance(operator, MotionBlur):
        gradient = (system @ found[..., None]).squeeze(2) - right
        assert (gradient.norm(dim=1) / right.norm(dim=1)).max() <= TIKHONOV_TOLERANCE * (1 + 1e-6)
        # The smallest eigenvalue of the system is at least the weight.
        bound = TIKHONOV_TOLERANCE * right.norm(dim=1) / weight.flatten()
        assert ((found - expected).norm(dim=1) <= bound * (1 + 1e-6)).all()
    else:
        torch.testing.assert_close(found, expected, atol=1e-10, rtol=0)


@pytest.mark.parametrize("name", LINEAR)
def test_tikhonov_without_a_closed_form_agrees(name):
    """The solver that any operator falls back on, on those that have a closed form."""
    operator = LINEAR[name]()
    y = random(ROWS, *operator.measurement_shape, seed=10)
    found, weight = operator.tikhonov(y, weights(0.5)), weights(0.5).expand(ROWS, 1, 1, 1)
    generic = BatchedOperator._tikhonov(operator, y, weight)
    bound = TIKHONOV_TOLERANCE * operator.adjoint(y).flatten(1).norm(dim=1) / 0.5
    assert ((found - generic).flatten(1).norm(dim=1) <= 2 * bound).all()


@pytest.mark.parametrize("name", LINEAR)
def test_tikhonov_of_a_row_does_not_depend_on_the_others(name):
    """A row that converges at once and one that needs long, beside each other and with their neighbours exchanged."""
    operator = LINEAR[name]()
    y = random(ROWS, *operator.measurement_shape, seed=11)
    together = operator.tikhonov(y, weights(0.01, 1e3, 0.1))
    altered = y.clone()
    altered[1] = 0
    other = operator.tikhonov(altered, weights(0.01, 1e-4, 0.1))
    torch.testing.assert_close(together[::2], other[::2], atol=1e-10, rtol=0)
    assert (other[1] == 0).all()


def test_tikhonov_ignores_the_hole_and_takes_one_weight_for_all():
    operator, y = random_mask((3, 8, 8)), random(ROWS, 3, 8, 8)
    found = operator.tikhonov(y, weights(0.5))
    assert torch.equal(operator.tikhonov(y.where(operator.observed, 1e6), weights(0.5, 0.5, 0.5)), found)
    with pytest.raises(ValueError, match="weight of shape"):
        operator.tikhonov(y, torch.ones(ROWS))


@pytest.mark.parametrize("name", LINEAR)
def test_tikhonov_keeps_dtypes_and_autocast_does_not_reach_inside(name):
    operator = LINEAR[name]()
    y = random(ROWS, *operator.measurement_shape, dtype=torch.bfloat16)
    plain = operator.tikhonov(y, weights(0.1))
    assert plain.dtype == torch.bfloat16
    torch.testing.assert_close(plain, operator.tikhonov(y.float(), weights(0.1)).bfloat16())
    outside = operator.tikhonov(y.float(), weights(0.1))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(operator.tikhonov(y.float(), weights(0.1)), outside)
