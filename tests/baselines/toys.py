"""Suites, measurements and noise that are small enough to derive everything by hand; all in float64."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn

from vfmbench.interfaces import IdentityCodec, Suite
from vfmbench.measurement import Measurement
from vfmbench.models.codecs import AutoencoderCodec
from vfmbench.models.flow import NetworkFlow
from vfmbench.models.sit import SiT
from vfmbench.randomness import PhiloxNoise, sample_rows
from vfmbench.tasks import problems
from vfmbench.tasks.operators import BatchedOperator, Mask

CPU = torch.device("cpu")
SHAPE = (1, 8, 8)

LINEAR = {
    "denoise": (problems.Denoise, {}),
    "inpaint_random": (problems.InpaintRandom, {}),
    "inpaint_box": (problems.InpaintBox, {"min_size": 3, "max_size": 6, "margin": 0}),
    "super_resolution": (problems.SuperResolution, {"factor": 2}),
    "gaussian_deblur": (problems.GaussianDeblur, {"kernel_size": 5, "std": 1.0}),
    "motion_deblur": (problems.MotionDeblur, {"kernel_size": 5}),
}
NONLINEAR = {"hdr": (problems.HighDynamicRange, {}), "phase_retrieval": (problems.PhaseRetrieval, {})}
PROBLEMS = {**LINEAR, **NONLINEAR}


class ToySuite(Suite):
    """What a guidance solver takes from a suite.

    Args:
        network: v(x, t, r, label); `num_classes` is its null label.
        decoder, encoder: None for images as latents; a decoder alone makes a codec without encoder.
    """

    name, task_names, image_shape, latent_shape = "toy", (), SHAPE, SHAPE

    def __init__(self, network, latent_shape, num_classes, decoder=None, encoder=None):
        self.network, self.latent_shape, self.num_classes = network, latent_shape, num_classes
        self.decoder, self.encoder = decoder, encoder

    def dataset(self, split):
        raise NotImplementedError

    def task(self, name, options):
        raise NotImplementedError

    def load_flow(self, backbone):
        return NetworkFlow(self.network, self.latent_shape, self.num_classes or None, backbone.meter)

    def load_codec(self, backbone):
        return IdentityCodec() if self.decoder is None else AutoencoderCodec(self.decoder, self.encoder, backbone.meter)

    def velocity(self, x: Tensor, t: float, label: Tensor, scale: float) -> Tensor:
        """v_null + scale (v_label - v_null), straight from the network and differentiable."""
        time = torch.full((len(x),), t, dtype=x.dtype)
        conditional = self.network(x, time, time, label)
        if not self.num_classes:
            return conditional
        null = self.network(x, time, time, torch.full_like(label, self.num_classes))
        return null + scale * (conditional - null)

    def decode(self, latents: Tensor) -> Tensor:
        return latents if self.decoder is None else self.decoder(latents)

    def encode(self, images: Tensor) -> Tensor:
        return images if self.decoder is None else self.encoder(images)

    def ode(self, x: Tensor, label: Tensor, steps: int, scale: float) -> Tensor:
        """The prior's sample from the noise x: Euler steps of equal length from t = 1 to 0."""
        with torch.no_grad():
            for step in range(steps):
                x = x - self.velocity(x, 1 - step / steps, label, scale) / steps
        return x


@cache
def random_suite(codec: str = "identity") -> ToySuite:
    """Three classes; 8x8 images, or (with an `autoencoder` of random weights) latents of four 4x4 channels."""
    torch.manual_seed(0)
    channels, size = (1, 8) if codec == "identity" else (4, 4)
    network = SiT(size, size // 2, channels, hidden_size=32, depth=2, dmf_depth=1, num_heads=2, num_classes=3)
    for parameter in network.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.1)
    network = network.double().requires_grad_(False)
    if codec == "identity":
        return ToySuite(network, SHAPE, 3)
    return ToySuite(network, (4, 4, 4), 3, *autoencoder())


class Scaled(nn.Module):
    def __init__(self, factor: float):
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * x


def autoencoder(latent_scale: float = 0.3) -> tuple[nn.Module, nn.Module]:
    """Decoder [B,4,4,4] -> [B,1,8,8] and encoder back; not inverse to one another, and curved."""
    decoder = nn.Sequential(
        Scaled(1 / latent_scale),
        nn.Conv2d(4, 8, 3, padding=1),
        nn.GroupNorm(2, 8),
        nn.SiLU(),
        nn.ConvTranspose2d(8, 1, 4, stride=2, padding=1),
    )
    encoder = nn.Sequential(
        nn.Conv2d(1, 8, 4, stride=2, padding=1), nn.SiLU(), nn.Conv2d(8, 4, 3, padding=1), Scaled(latent_scale)
    )
    return decoder.double().requires_grad_(False), encoder.double().requires_grad_(False)


class GaussianVelocity(nn.Module):
    """Exact velocity for x_0 ~ N(mean, diag(variance)), whatever the label."""

    def __init__(self, mean: Tensor, variance: Tensor):
        super().__init__()
        self.mean, self.variance = mean, variance

    def forward(self, x, t, r, label):
        t = t[:, None, None, None]
        delta = x - (1 - t) * self.mean
        total = (1 - t) ** 2 * self.variance + t**2
        return t * delta / total - (self.mean + (1 - t) * self.variance * delta / total)


class MixtureVelocity(nn.Module):
    """Exact velocity for an equal mixture of N(mean_k, variance I), means [K,C,H,W]."""

    def __init__(self, means: Tensor, variance: float):
        super().__init__()
        self.means, self.variance = means, variance

    def forward(self, x, t, r, label):
        t = t[:, None, None, None, None]
        delta = x[:, None] - (1 - t) * self.means
        total = (1 - t) ** 2 * self.variance + t**2
        share = (-0.5 * delta.square() / total).flatten(2).sum(2).softmax(1)[..., None, None, None]
        clean = self.means + (1 - t) * self.variance * delta / total
        return (share * (t * delta / total - clean)).sum(1)


class MatrixOperator(BatchedOperator):
    """y = M x for any matrix [m, C H W] of full row rank."""

    def __init__(self, matrix: Tensor, image_shape: tuple[int, int, int], rows: int = 1):
        super().__init__(rows, image_shape, (len(matrix),))
        self.matrix = matrix

    def _forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.matrix.T

    def _adjoint(self, y: Tensor) -> Tensor:
        return (y @ self.matrix).unflatten(1, self.image_shape)

    def _pinv(self, y: Tensor) -> Tensor:
        return (y @ torch.linalg.pinv(self.matrix).T).unflatten(1, self.image_shape)


def measure(problem: str, rows=range(4), noise_std: float = 0.1, **changes) -> Measurement:
    """The given rows of four random 8x8 images of the classes 0, 1, 2, 0, each with its own mask or kernel."""
    images = torch.rand(4, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 2 - 1
    task = toy_task(problem, noise_std=noise_std, **changes)
    index = torch.tensor(list(rows))
    return task.measure(images[index], index % 3, index, seed=0)


def toy_task(problem: str, **changes):
    task_class, options = PROBLEMS[problem]
    return task_class(SHAPE, task_class.Options(**{**options, **changes}))


def direct(y, operator, noise_std: float = 0.1) -> Measurement:
    """A measurement of one image, given its values."""
    y = torch.as_tensor(y, dtype=torch.float64)[None]
    zero = torch.zeros(1, dtype=torch.int64)
    return Measurement(y, operator, torch.full([1] * y.ndim, noise_std, dtype=torch.float64), zero, zero, "toy")


# Decoupled Gaussian toy: one channel, 2x2 pixels with their own mean and variance, of which the first and third are observed.
MEAN = torch.tensor([0.5, -0.5, 0.25, 0.0], dtype=torch.float64).reshape(1, 1, 2, 2)
VARIANCE = torch.tensor([4.0, 1.0, 0.25, 0.05], dtype=torch.float64).reshape(1, 1, 2, 2)


def gaussian_suite() -> ToySuite:
    return ToySuite(GaussianVelocity(MEAN, VARIANCE), (1, 2, 2), 0)


def gaussian_measurement() -> Measurement:
    """The first and third pixel, 1.2 and -0.4, with noise of 0.1."""
    return direct([[[1.2, 0.0], [-0.4, 0.0]]], Mask(torch.tensor([[[[True, False], [True, False]]]]), (1, 2, 2)))


class Stream:
    """A noise source of which only the order of its numbers matters, not how many are asked for at once.

    `draw` number k of rows of one latent each is `_latents(k, latent shape)`, [rows, *latent shape].
    """

    def normal(self, shape, draw):
        *count, channels, height, width = shape
        together = count[0] if count else 1
        latents = [self._latents(draw * together + k, (channels, height, width)) for k in range(together)]
        return torch.stack(latents, 1).reshape(-1, *shape)

    def _latents(self, number: int, shape) -> Tensor:
        raise NotImplementedError


class Float64Noise(Stream):
    """The harness's noise in float64. Rows as in a run: every image's samples in a row."""

    def __init__(self, index: Tensor, samples: int = 1):
        self._index, self._samples = tuple(index.tolist()), samples

    def _latents(self, number, shape):
        return _harness_noise(self._index, self._samples, number, shape)


@cache
def _harness_noise(index, samples, number, shape):
    return PhiloxNoise(0, "sampling", *sample_rows(torch.tensor(index), range(samples))).normal(shape, number).double()


class FastNoise(Stream):
    """Independent normal numbers for many rows, one generator a latent."""

    def __init__(self, rows: int):
        self.rows = rows

    def _latents(self, number, shape):
        generator = torch.Generator().manual_seed(number)
        return torch.randn(self.rows, *shape, generator=generator, dtype=torch.float64)


class ImpulseNoise(Stream):
    """Row k gets ones in draw k and zeros in all others; the last row zeros throughout.

    A sampler that is linear in its noise has the last row as its mean, and the squared distances of the other rows from it sum
    to its variance: exactly, without drawing anything.
    """

    def __init__(self, draws: int):
        self.rows = draws + 1

    def _latents(self, number, shape):
        noise = torch.zeros(self.rows, *shape, dtype=torch.float64)
        noise[number : number + 1 if number < self.rows - 1 else number] = 1
        return noise


def moments(responses: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of each pixel from samples [rows,C,H,W] under `ImpulseNoise`."""
    return responses[-1], (responses[:-1] - responses[-1]).square().sum(0)
