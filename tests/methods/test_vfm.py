"""The adapter samplers on the shipped digits weights, against the definition written out."""

import pytest
import torch

from vfmbench.domains import IMAGES
from vfmbench.errors import UserError
from vfmbench.methods.adapter import NoiseAdapter
from vfmbench.methods.vfm import VFM, FrozenAdapter
from vfmbench.models.sit import SiT
from vfmbench.randomness import PhiloxNoise, sample_rows
from vfmbench.registry import suites

CPU = torch.device("cpu")
SAMPLES = 3


@pytest.fixture(scope="module")
def suite():
    return suites.get("digits")({})


def measure(suite, name, rows=4, **options):
    images, label = suite.dataset("validation").load(range(rows))
    return IMAGES.restore(images), suite.task(name, options).measure(IMAGES.restore(images), label, torch.arange(rows), seed=0)


def noise_for(measurement):
    return PhiloxNoise(0, "sampling", *sample_rows(measurement.index, range(SAMPLES)))


def flow_and_adapter(suite, flow_name, adapter_name):
    flow_file, adapter_file = suite.weights.load(flow_name), suite.weights.load(adapter_name)
    flow = SiT(**flow_file.entry["architecture"]["flow"])
    flow.load_state_dict(flow_file.part("flow"))
    adapter = NoiseAdapter(**adapter_file.entry["architecture"]["adapter"])
    adapter.load_state_dict(adapter_file.part("adapter"))
    return flow.eval(), adapter.eval(), adapter_file.entry["problems"]


@pytest.mark.parametrize(
    ("sampler_class", "flow_name", "adapter_name"), [(VFM, "vfm", "vfm"), (FrozenAdapter, "flow", "frozen_adapter")]
)
@pytest.mark.parametrize("steps", [1, 3])
def test_sample_is_the_flow_map_of_adapter_noise(suite, sampler_class, flow_name, adapter_name, steps):
    _, measurement = measure(suite, "super_resolution")
    samples = sampler_class(suite, sampler_class.Options(steps=steps), suite.backbone(CPU)).sample(
        measurement, SAMPLES, noise_for(measurement)
    )
    flow, adapter, problems = flow_and_adapter(suite, flow_name, adapter_name)
    with torch.no_grad():
        problem = torch.full((4,), problems.index("super_resolution"))
        mean, logvar = adapter(measurement.operator.to_image(measurement.y), problem)
        noise = noise_for(measurement).normal((1, 8, 8), 0).unflatten(0, (4, SAMPLES))
        for number in range(SAMPLES):
            x = mean + (0.5 * logvar).exp() * noise[:, number]
            for step in range(steps):
                t, r = (torch.full((4,), 1 - (step + ahead) / steps) for ahead in (0, 1))
                x = x - (t - r)[:, None, None, None] * flow(x, t, r, measurement.label)
            assert torch.allclose(samples.images[:, number], x, atol=1e-5)


def test_evaluations_per_sample(suite):
    _, measurement = measure(suite, "denoise")
    sampler = VFM(suite, VFM.Options(steps=4), suite.backbone(CPU))
    sampler.sample(measurement, SAMPLES, noise_for(measurement))
    cost = sampler.meter.per_sample(4 * SAMPLES)
    assert (cost.network_forwards, cost.network_vjps) == (4, 0)
    assert cost.adapter_forwards == pytest.approx(1 / SAMPLES)


def test_projection_agrees_with_the_observation(suite):
    _, measurement = measure(suite, "inpaint_box")
    sampler = VFM(suite, VFM.Options(projection=True), suite.backbone(CPU))
    images = sampler.sample(measurement, SAMPLES, noise_for(measurement)).images
    observed = measurement.operator.observed
    error = torch.where(observed[:, None], images - measurement.y[:, None], 0)
    assert error.abs().max() < 1e-6
    plain = VFM(suite, VFM.Options(), suite.backbone(CPU)).sample(measurement, SAMPLES, noise_for(measurement)).images
    assert torch.equal(torch.where(observed[:, None], 0, images), torch.where(observed[:, None], 0, plain))


def test_projection_leaves_an_image_that_explains_the_observation(suite):
    truth, measurement = measure(suite, "gaussian_deblur", noise_std=0)
    sampler = VFM(suite, VFM.Options(projection=True), suite.backbone(CPU))
    assert (sampler._project(truth, measurement) - truth).abs().max() < 1e-6


def test_projection_needs_a_linear_task(suite):
    truth, measurement = measure(suite, "hdr")
    with pytest.raises(UserError, match="not linear"):
        VFM(suite, VFM.Options(projection=True), suite.backbone(CPU))._project(truth, measurement)


def test_adapter_refuses_a_problem_it_was_not_trained_on(suite):
    supported, reason = VFM.supports(suite.task("hdr", {}), suite)
    assert not supported
    assert "gaussian_deblur" in reason
    assert VFM.supports(suite.task("gaussian_deblur", {}), suite) == (True, "")
