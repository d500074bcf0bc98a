"""The shared loop and Latent DPS, against closed forms on a Gaussian prior, finite differences, a one-image derivation."""

from dataclasses import replace

import pytest
import torch

from vfmbench.baselines.guidance import data_gradient, unit
from vfmbench.baselines.latent_dps import LatentDPS
from vfmbench.interfaces import Measurement
from vfmbench.models.codecs import IdentityCodec
from vfmbench.models.flow import FlowModel
from vfmbench.models.metering import Meter
from vfmbench.models.sit import SiT
from vfmbench.randomness import PhiloxNoise, sample_rows
from vfmbench.tasks.operators import Mask
from vfmbench.tasks.problems import GaussianDeblur, InpaintBox, SuperResolution

CPU = torch.device("cpu")


class ToySuite:
    """What a guidance solver takes from a suite."""

    def __init__(self, network, latent_shape, num_classes):
        self.network, self.latent_shape, self.num_classes = network, latent_shape, num_classes

    def flow(self, device):
        return FlowModel(self.network, self.latent_shape, self.num_classes or None, Meter(device))

    def codec(self, device):
        return IdentityCodec()


class GaussianVelocity(torch.nn.Module):
    """Exact velocity for x_0 ~ N(m, diag(variance)), independent of the label."""

    def __init__(self, mean, variance):
        super().__init__()
        self.mean, self.variance = mean, variance

    def forward(self, x, t, r, label):
        t = t[:, None, None, None]
        delta = x - (1 - t) * self.mean
        total = (1 - t) ** 2 * self.variance + t**2
        return t * delta / total - (self.mean + (1 - t) * self.variance * delta / total)


class Float64Noise:
    def __init__(self, noise):
        self._noise = noise

    def normal(self, shape, draw):
        return self._noise.normal(shape, draw).double()


def noise_for(index, samples):
    return Float64Noise(PhiloxNoise(0, "sampling", *sample_rows(index, range(samples))))


def random_suite(num_classes=3):
    torch.manual_seed(0)
    network = SiT(
        input_size=8, patch_size=4, in_channels=1, hidden_size=32, depth=2, dmf_depth=1, num_heads=2, num_classes=num_classes
    )
    for parameter in network.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)
    return ToySuite(network.double(), (1, 8, 8), num_classes)


def measure(task_class=SuperResolution, rows=range(4), **options):
    torch.manual_seed(1)
    images = torch.rand(4, 1, 8, 8, dtype=torch.float64) * 2 - 1
    task = task_class((1, 8, 8), task_class.Options(noise_std=0.1, **options))
    index = torch.tensor(list(rows))
    return task.measure(images[index], index % 3, index, seed=0)


def euler(suite, x, label, steps, scale):
    flow = suite.flow(CPU)
    for step in range(steps):
        x = x - flow.velocity(x, 1 - step / steps, label, scale) / steps
    return x


def test_zero_step_size_is_the_unguided_sample():
    suite, measurement = random_suite(), measure(factor=2)
    sampler = LatentDPS(suite, LatentDPS.Options(steps=5, guidance_scale=2.0, step_size=0.0), CPU)
    samples = sampler.sample(measurement, 3, noise_for(measurement.index, 3)).images.flatten(0, 1)
    start = noise_for(measurement.index, 3).normal((1, 8, 8), 0)
    expected = euler(suite, start, measurement.label.repeat_interleave(3), 5, 2.0)
    assert (samples - expected).abs().max() < 1e-10


@pytest.mark.parametrize(
    ("task", "options"),
    [
        (SuperResolution, {"factor": 2}),
        (InpaintBox, {"min_size": 3, "max_size": 6, "margin": 0}),
        (GaussianDeblur, {"kernel_size": 5, "std": 1.0}),
    ],
)
def test_a_step_is_the_same_alone_and_in_a_batch(task, options):
    suite, measurement = random_suite(), measure(task, **options)
    sampler = LatentDPS(suite, LatentDPS.Options(steps=10), CPU)
    x = noise_for(measurement.index, 1).normal((1, 8, 8), 0)
    together = sampler.step(x, 0.6, 0.5, measurement)
    for row in range(4):
        alone = sampler.step(x[row : row + 1], 0.6, 0.5, measure(task, [row], **options))
        assert (alone - together[row]).abs().max() < 1e-9


def test_data_gradient_against_finite_difference():
    measurement = measure(InpaintBox, min_size=3, max_size=6, margin=0)
    torch.manual_seed(2)
    images, direction = torch.randn(2, 4, 1, 8, 8, dtype=torch.float64)

    def loss(x):
        return 0.5 * measurement.residual(x).square().sum()

    slope = (loss(images + 1e-5 * direction) - loss(images - 1e-5 * direction)) / 2e-5
    assert float((data_gradient(measurement, images) * direction).sum()) == pytest.approx(float(slope), rel=1e-7)


def test_noise_in_the_hole_changes_nothing():
    suite, measurement = random_suite(), measure(InpaintBox, min_size=3, max_size=6, margin=0)
    sampler = LatentDPS(suite, LatentDPS.Options(steps=3), CPU)
    altered = replace(measurement, y=torch.where(measurement.operator.observed, measurement.y, 7.0))
    noise = noise_for(measurement.index, 2)
    assert torch.equal(sampler.sample(measurement, 2, noise).images, sampler.sample(altered, 2, noise).images)


def test_step_equals_a_one_image_derivation():
    """x' = Euler - zeta g/|g|, g = d/dx 1/2 |A D(x - t v) - y|^2 by plain autograd through the whole chain."""
    suite, measurement = random_suite(), measure(rows=[2], factor=2)
    sampler = LatentDPS(suite, LatentDPS.Options(steps=10, guidance_scale=1.5, step_size=0.7), CPU)
    x = noise_for(measurement.index, 1).normal((1, 8, 8), 0)
    t, t_next = 0.6, 0.5
    leaf = x.clone().requires_grad_(True)
    time = torch.full((1,), t, dtype=torch.float64)
    with_label = suite.network(leaf, time, time, measurement.label)
    without = suite.network(leaf, time, time, torch.tensor([3]))
    velocity = without + 1.5 * (with_label - without)
    loss = 0.5 * (measurement.operator.forward(leaf - t * velocity) - measurement.y).square().sum()
    gradient = torch.autograd.grad(loss, leaf)[0]
    expected = x + (t_next - t) * velocity.detach() - 0.7 * gradient / gradient.norm()
    assert (sampler.step(x, t, t_next, measurement) - expected).abs().max() < 1e-12


def test_each_correction_has_length_step_size():
    suite, measurement = random_suite(), measure(factor=2)
    x = noise_for(measurement.index, 1).normal((1, 8, 8), 0)
    plain = LatentDPS(suite, LatentDPS.Options(step_size=0.0), CPU).step(x, 0.6, 0.5, measurement)
    guided = LatentDPS(suite, LatentDPS.Options(step_size=0.3), CPU).step(x, 0.6, 0.5, measurement)
    assert torch.allclose((guided - plain).flatten(1).norm(dim=1), torch.full((4,), 0.3, dtype=torch.float64))


def test_unit_of_zero_is_zero():
    gradient = torch.zeros(2, 1, 2, 2)
    gradient[1] = 3.0
    assert torch.equal(unit(gradient)[0], torch.zeros(1, 2, 2))
    assert unit(gradient)[1].norm() == pytest.approx(1)


def test_evaluations_are_counted():
    suite, measurement = random_suite(), measure(factor=2)
    sampler = LatentDPS(suite, LatentDPS.Options(steps=5), CPU)
    sampler.sample(measurement, 3, noise_for(measurement.index, 3))
    cost = sampler.meter.per_sample(12)
    assert (cost.network_forwards, cost.network_vjps) == (10, 10)


# Decoupled Gaussian toy: one channel, 2x2 pixels with their own mean and variance, of which the first and third are observed.
MEAN = torch.tensor([0.5, -0.5, 0.25, 0.0], dtype=torch.float64).reshape(1, 1, 2, 2)
VARIANCE = torch.tensor([4.0, 1.0, 0.25, 0.05], dtype=torch.float64).reshape(1, 1, 2, 2)


def toy_measurement():
    observed = torch.tensor([[[[True, False], [True, False]]]])
    y = torch.tensor([1.2, 0.0, -0.4, 0.0], dtype=torch.float64).reshape(1, 1, 2, 2)
    noise_std = torch.full((1, 1, 1, 1), 0.1, dtype=torch.float64)
    return Measurement(
        y, Mask(observed, (1, 2, 2)), noise_std, torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64), "toy"
    )


def toy_suite():
    return ToySuite(GaussianVelocity(MEAN, VARIANCE), (1, 2, 2), 0)


@pytest.mark.parametrize(
    ("steps", "ratios"), [(250, (0.98822, 0.98977, 0.98822, 0.98142)), (50, (0.94244, 0.94988, 0.94244, 0.91044))]
)
def test_unguided_euler_has_the_closed_form_variance(steps, ratios):
    """Euler on the exact velocity is linear in the noise: its gain squared, over the prior's variance."""
    suite, label = toy_suite(), torch.zeros(1, dtype=torch.int64)
    zero = euler(suite, torch.zeros(1, 1, 2, 2, dtype=torch.float64), label, steps, 1.0)
    one = euler(suite, torch.ones(1, 1, 2, 2, dtype=torch.float64), label, steps, 1.0)
    assert (zero - MEAN).abs().max() < 1e-12
    assert ((one - zero).square() / VARIANCE).flatten().tolist() == pytest.approx(ratios, abs=1e-4)


def test_unobserved_coordinates_stay_unguided_and_residual_is_below_the_step():
    suite, measurement = toy_suite(), toy_measurement()
    noise = noise_for(measurement.index, 200)
    sampler = LatentDPS(suite, LatentDPS.Options(steps=250, step_size=0.3), CPU)
    samples = sampler.sample(measurement, 200, noise).images[0]
    free = euler(suite, noise.normal((1, 2, 2), 0), torch.zeros(200, dtype=torch.int64), 250, 1.0)
    assert (samples[..., 1] - free[..., 1]).abs().max() < 1e-9
    # The unit step overshoots to a floor set by its own length, whatever the noise level.
    residual = (samples[..., 0] - measurement.y[..., 0]).flatten(1).norm(dim=1)
    assert residual.max() <= 0.3 * (1 + 1e-6)
    assert 0.4 < residual.mean() / 0.3 < 0.65
