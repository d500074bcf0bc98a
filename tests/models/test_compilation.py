"""Networks in half precision and compiled: against plain autocast, float64 gradients, and the network itself."""

import copy

import pytest
import torch
from torch import nn

from vfmbench.baselines.latent_daps import LatentDAPS
from vfmbench.config import RunConfig, RunIdentity
from vfmbench.errors import UserError
from vfmbench.interfaces import Suite
from vfmbench.metering import Meter
from vfmbench.methods.adapter import NoiseAdapter
from vfmbench.models.codecs import AutoencoderCodec
from vfmbench.models.compilation import check, prepared
from vfmbench.models.flow import NetworkFlow
from vfmbench.models.sit import SiT
from vfmbench.precision import PLAIN, Execution
from vfmbench.registry import suites
from vfmbench.running.plan import plan

CPU = torch.device("cpu")
HALVES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
LABEL = torch.tensor([0, 1, 2, 0])


def randomised(network):
    torch.manual_seed(0)
    for parameter in network.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.2)
    return network.eval().requires_grad_(False)


def sit():
    return randomised(SiT(8, 4, 1, hidden_size=32, depth=2, dmf_depth=1, num_heads=2, num_classes=3))


def adapter():
    sizes = {"channels": 8, "channel_multipliers": (1, 2), "blocks_per_stage": 1, "embedding_size": 16, "norm_groups": 4}
    return randomised(NoiseAdapter(8, 1, 4, 2, num_problems=2, **sizes))


def decoder():
    layers = [nn.Conv2d(4, 16, 3, padding=1), nn.GroupNorm(4, 16), nn.SiLU(), nn.Conv2d(16, 1, 3, padding=1)]
    return randomised(nn.Sequential(*layers))


def inputs(*shape, seed=1):
    return torch.randn(4, *shape, generator=torch.Generator().manual_seed(seed))


def calls():
    """A network and its arguments for each kind of network that a sampler runs."""
    time = torch.full((4,), 0.7)
    return {
        "flow": (sit(), (inputs(1, 8, 8), time, time / 2, LABEL)),
        "adapter": (adapter(), (inputs(1, 8, 8), LABEL % 2)),
        "decoder": (decoder(), (inputs(4, 4, 4),)),
    }


def first(output):
    return output[0] if isinstance(output, tuple) else output


def test_float32_without_compilation_is_the_network_itself():
    network = sit()
    assert prepared(network, Execution()) is network


@pytest.mark.parametrize("precision", HALVES)
@pytest.mark.parametrize("kind", ["flow", "adapter", "decoder"])
def test_half_precision_is_autocast_with_float32_outside(kind, precision):
    network, arguments = calls()[kind]
    half = prepared(network, Execution(precision))
    output = half(*arguments)
    with torch.autocast("cpu", HALVES[precision]):
        plain = network(*arguments)
    for part, expected in zip(*(out if isinstance(out, tuple) else (out,) for out in (output, plain)), strict=True):
        assert part.dtype == torch.float32
        # Channels-last convolutions add up in another order.
        assert torch.allclose(part, expected.float(), rtol=0.02, atol=0.01 * expected.abs().max().item())
    exact = first(network(*arguments))
    error = (first(output) - exact).norm() / exact.norm()
    assert 0 < error < (0.05 if precision == "bfloat16" else 0.006)
    assert all(parameter.dtype == torch.float32 for parameter in network.parameters())


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_guided_velocity_and_its_gradient_in_bfloat16(scale):
    network, x, cotangent = sit(), inputs(1, 8, 8), inputs(1, 8, 8, seed=2)
    exact = NetworkFlow(copy.deepcopy(network).double(), (1, 8, 8), 3, Meter(CPU))
    half = NetworkFlow(prepared(network, Execution("bfloat16")), (1, 8, 8), 3, Meter(CPU))
    velocity, vjp = half.velocity_with_vjp(x, 0.4, LABEL, scale)
    expected, expected_vjp = exact.velocity_with_vjp(x.double(), 0.4, LABEL, scale)
    gradient, expected_gradient = vjp(cotangent), expected_vjp(cotangent.double())
    assert velocity.dtype == gradient.dtype == torch.float32
    assert torch.equal(velocity, half.velocity(x, 0.4, LABEL, scale))
    for found, truth in ((velocity, expected), (gradient, expected_gradient)):
        assert (found - truth).norm() < 0.06 * truth.norm()


@pytest.mark.parametrize("precision", HALVES)
@pytest.mark.parametrize("size", [1e-9, 1.0, 1e9])
def test_gradients_of_any_size_survive_a_decoder_in_half_precision(precision, size):
    network, latents, cotangent = decoder(), inputs(4, 4, 4), size * inputs(1, 4, 4, seed=2)
    exact = AutoencoderCodec(copy.deepcopy(network).double(), None, Meter(CPU))
    expected = exact.decode_with_vjp(latents.double())[1](cotangent.double())
    images, vjp = AutoencoderCodec(prepared(network, Execution(precision)), None, Meter(CPU)).decode_with_vjp(latents)
    gradient = vjp(cotangent)
    assert images.dtype == gradient.dtype == torch.float32
    assert (gradient - expected).norm() < 0.03 * expected.norm()


def test_without_scaling_float16_would_lose_them():
    network, latents, cotangent = decoder(), inputs(4, 4, 4).requires_grad_(), 1e-9 * inputs(1, 4, 4, seed=2)
    with torch.autocast("cpu", torch.float16):
        images = network(latents).float()
    assert torch.autograd.grad(images, latents, cotangent)[0].abs().max() == 0


def test_one_row_does_not_set_the_range_of_another():
    codec = AutoencoderCodec(prepared(decoder(), Execution("float16")), None, Meter(CPU))
    latents, cotangent = inputs(4, 4, 4), inputs(1, 4, 4, seed=2)
    expected = codec.decode_with_vjp(latents)[1](cotangent)
    cotangent[0] *= 2.0**40
    cotangent[1] = 0
    cotangent[2] = torch.nan
    gradient = codec.decode_with_vjp(latents)[1](cotangent)
    assert torch.allclose(gradient[0] / 2.0**40, expected[0])
    assert gradient[1].abs().max() == 0
    assert gradient[2].isnan().all()
    assert torch.allclose(gradient[3], expected[3])


def test_a_precision_that_the_device_lacks(monkeypatch):
    with pytest.raises(UserError, match="float16 needs a CUDA device"):
        plan(RunConfig(method="vfm", task="denoise", precision="float16", device="cpu"))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "an old device")
    with pytest.raises(UserError, match="an old device does not compute in it"):
        check(Execution("bfloat16"), torch.device("cuda"))
    check(Execution("bfloat16"), CPU)
    check(Execution("float16"), torch.device("cuda"))


def test_a_suite_runs_its_networks_as_its_backbone_says():
    suite = suites.get("digits")({})
    backbone = suite.backbone(CPU)
    assert type(backbone.flow.network) is SiT
    half = backbone.under(Execution("bfloat16"))
    assert half.flow.network.network.blocks[0].mlp.fc1.weight.dtype == torch.bfloat16
    assert half.meter is backbone.meter
    assert type(half.under(PLAIN).flow.network) is SiT


IDENTITY = {
    "suite": "digits",
    "suite_options": {},
    "dataset_sha256": "a" * 64,
    "split": "test",
    "task": "denoise",
    "problem": "denoise",
    "task_options": {"noise_std": 0.1},
    "method": "vfm",
    "method_options": {"steps": 1},
    "plugin_sha256": {},
    "weights_sha256": {"vfm": "b" * 64},
    "num_images": 4,
    "samples": 2,
    "seed": 0,
}


def test_runs_in_float32_keep_the_hash_from_before_there_was_a_choice():
    # As computed by the version before the field `precision` existed.
    assert RunIdentity(**IDENTITY).hash == "ccaed3e4a0c1"
    assert RunIdentity(**IDENTITY, precision="float32").model_dump(mode="json") == IDENTITY
    hashes = {RunIdentity(**IDENTITY, precision=precision).hash for precision in ("float32", *HALVES)}
    assert len(hashes) == 3


def test_precision_is_part_of_a_runs_identity_and_compilation_is_not():
    def identity(**options):
        return plan(RunConfig(method="vfm", task="gaussian_deblur", device="cpu", **options)).identity

    assert identity(precision="bfloat16").hash != identity().hash
    assert identity(compile=True) == identity()


def test_unknown_precision():
    with pytest.raises(ValueError, match="'float32', 'bfloat16' or 'float16'"):
        RunConfig(method="vfm", task="denoise", precision="float8")


class Autoencoding(Suite):
    """What Latent DAPS takes from a suite, with a decoder of random weights."""

    name, task_names, image_shape, latent_shape, num_classes = "autoencoding", (), (1, 4, 4), (4, 4, 4), 3
    dataset = task = None

    def load_flow(self, backbone):
        network = SiT(4, 2, 4, hidden_size=16, depth=1, dmf_depth=1, num_heads=2, num_classes=3)
        return NetworkFlow(prepared(randomised(network), backbone.execution), self.latent_shape, 3, backbone.meter)

    def load_codec(self, backbone):
        return AutoencoderCodec(prepared(decoder(), backbone.execution), None, backbone.meter)


def test_the_curvature_that_daps_measures_is_not_rounding():
    suite = suites.get("digits")({})
    task = suite.task("gaussian_deblur", {})
    blur = type(task)((1, 4, 4), type(task.options)(kernel_size=3, std=0.7), "gaussian_deblur")
    measurement = blur.measure(inputs(1, 4, 4).tanh(), LABEL, torch.arange(4), 0)

    def curvature(execution, exact=True):
        suite = Autoencoding()
        sampler = LatentDAPS(suite, LatentDAPS.Options(), suite.backbone(CPU, execution))
        if not exact:
            sampler._exact_codec = sampler.codec
        return sampler._largest_curvature(inputs(4, 4, 4, seed=3), measurement, None)[0]

    truth = curvature(Execution())
    assert torch.allclose(curvature(Execution("bfloat16")), truth, rtol=0.02)
    assert not torch.allclose(curvature(Execution("bfloat16"), exact=False), truth, rtol=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_compiled_networks_give_the_same(precision):
    network, x, cotangent = sit(), inputs(1, 8, 8), inputs(1, 8, 8, seed=2)
    compiled, eager = (
        NetworkFlow(prepared(network, Execution(precision, compile=compiles)), (1, 8, 8), 3, Meter(CPU))
        for compiles in (True, False)
    )
    tolerance = 1e-5 if precision == "float32" else 0.06
    kept = compiled.velocity(x, 0.4, LABEL, 2.0)
    expected = eager.velocity(x, 0.4, LABEL, 2.0)
    compiled.velocity(x + 1, 0.2, LABEL, 2.0)
    assert (kept - expected).norm() < tolerance * expected.norm()
    gradients = [flow.velocity_with_vjp(x, 0.4, LABEL, 2.0)[1](cotangent) for flow in (compiled, eager)]
    assert (gradients[0] - gradients[1]).norm() < tolerance * gradients[1].norm()
    assert kept.dtype == gradients[0].dtype == torch.float32
