"""Stable Diffusion's VAE as a codec: against diffusers' own loading and calls, finite differences, and published sizes."""

import hashlib

import pytest
import torch
from safetensors.torch import save_file

from vfmbench.errors import UserError
from vfmbench.metering import Meter
from vfmbench.models import sd_vae
from vfmbench.weights.external import ExternalPaths, load_external

CPU = torch.device("cpu")
NEW_TO_OLD = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


@pytest.fixture
def small(monkeypatch):
    """The same layout with few channels and one layer a block."""
    changes = {"block_out_channels": (8, 8, 16, 16), "layers_per_block": 1, "norm_num_groups": 4, "sample_size": 32}
    for key, value in changes.items():
        monkeypatch.setitem(sd_vae.CONFIG, key, value)


@pytest.fixture
def random_vae(small):
    torch.manual_seed(0)
    return sd_vae.autoencoder().eval()


def old_names(state):
    renamed = {}
    for name, tensor in state.items():
        for new, old in NEW_TO_OLD.items():
            name = name.replace(f"attentions.0.{new}.", f"attentions.0.{old}.")
        renamed[name] = tensor
    return renamed


def codec_of(path):
    meter = Meter(CPU)
    return sd_vae.sd_vae_codec(sd_vae.load_autoencoder(load_external("sd_vae", path)), CPU, meter), meter


def test_the_layout_is_the_published_one():
    with torch.device("meta"):
        network = sd_vae.autoencoder()
    # The published file holds 334615452 bytes of float32 tensors; 49490199 parameters are the decoder's.
    assert 4 * sum(value.numel() for value in network.state_dict().values()) == 334_615_452
    decoder = [*network.decoder.parameters(), *network.post_quant_conv.parameters()]
    assert sum(parameter.numel() for parameter in decoder) == 49_490_199
    assert network.config.scaling_factor == sd_vae.SCALE == 0.18215
    assert not network.use_tiling
    assert not network.use_slicing


@pytest.mark.parametrize("names", ["old", "new"])
@pytest.mark.parametrize("kind", ["safetensors", "bin", "folder"])
def test_both_sets_of_names_load_and_agree_with_diffusers(random_vae, tmp_path, names, kind):
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    state = random_vae.state_dict()
    state = old_names(state) if names == "old" else state
    assert any(".attentions.0.query." in name for name in state) == (names == "old")
    if kind == "bin":
        path = tmp_path / "diffusion_pytorch_model.bin"
        torch.save(state, path)
    else:
        path = tmp_path / "diffusion_pytorch_model.safetensors"
        save_file(state, path)
    # diffusers reads the folder by itself.
    random_vae.save_config(tmp_path)
    reference = AutoencoderKL.from_pretrained(tmp_path, local_files_only=True, use_safetensors=kind != "bin").eval()
    given = ExternalPaths(sd_vae=str(tmp_path if kind == "folder" else path)).path_of("sd_vae")
    assert given == path
    codec, _ = codec_of(given)
    images, latents = torch.rand(2, 3, 32, 40) * 2 - 1, torch.randn(2, 4, 4, 5)
    with torch.no_grad():
        torch.testing.assert_close(codec.encode(images), 0.18215 * reference.encode(images).latent_dist.mode())
        torch.testing.assert_close(codec.decode(latents), reference.decode(latents / 0.18215).sample)


def test_weights_in_half_precision_are_used_in_float32(random_vae, tmp_path):
    path = tmp_path / "half.safetensors"
    save_file({name: tensor.half() for name, tensor in random_vae.state_dict().items()}, path)
    codec, _ = codec_of(path)
    assert codec.decode(torch.randn(1, 4, 4, 4)).dtype == torch.float32


def test_gradients_are_exact(random_vae):
    """All columns of both Jacobians by central differences in float64, against vector-Jacobian products."""
    meter = Meter(CPU)
    codec = sd_vae.sd_vae_codec(random_vae.double(), CPU, meter)
    generator = torch.Generator().manual_seed(1)
    for call, differentiated, x, step in (
        (codec.decode, codec.decode_with_vjp, torch.randn((1, 4, 2, 2), generator=generator, dtype=torch.float64), 1e-5),
        (codec.encode, codec.encode_with_vjp, torch.rand((1, 3, 16, 8), generator=generator, dtype=torch.float64), 1e-5),
    ):
        output, vjp = differentiated(x)
        torch.testing.assert_close(output, call(x))
        cotangent = torch.randn(output.shape, generator=generator, dtype=torch.float64)
        gradient = vjp(cotangent)
        directions = torch.eye(x.numel(), dtype=torch.float64).reshape(-1, *x.shape[1:])
        difference = (call(x + step * directions) - call(x - step * directions)) / (2 * step)
        expected = (difference * cotangent).sum((1, 2, 3)).reshape(x.shape)
        torch.testing.assert_close(gradient, expected, rtol=1e-7, atol=1e-8 * float(expected.abs().max()))
    assert meter.counts["decoder_vjps"] == meter.counts["encoder_vjps"] == 1


def test_encoding_is_deterministic_rows_are_independent_and_nothing_is_clamped(random_vae):
    codec = sd_vae.sd_vae_codec(random_vae, CPU, Meter(CPU))
    images = torch.rand(3, 3, 16, 16) * 2 - 1
    assert torch.equal(codec.encode(images), codec.encode(images))
    torch.testing.assert_close(codec.encode(images)[1:2], codec.encode(images[1:2]))
    with torch.no_grad():
        random_vae.decoder.conv_out.bias += 7
    assert float(codec.decode(torch.randn(1, 4, 2, 2)).min()) > 1
    assert not any(parameter.requires_grad for parameter in random_vae.parameters())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda state: {"layer.weight": torch.ones(2)},
            r"tensors missing: \d+ \(decoder\.conv_in\.bias, .*, \.\.\.\); tensors unexpected: 1 \(layer\.weight\)\.",
        ),
        (
            lambda state: {**state, "decoder.conv_in.bias": torch.ones(3)},
            r": tensors of another shape: 1 \(decoder\.conv_in\.bias is \[3\] instead of \[16\]\)\.",
        ),
        (
            lambda state: {"vae." + name: value for name, value in state.items()},
            r"tensors missing: .* tensors unexpected: \d+ \(vae\.decoder\.conv_in\.bias, ",
        ),
    ],
)
def test_another_architecture_is_one_sentence(random_vae, tmp_path, change, words):
    path = tmp_path / "other.safetensors"
    save_file(change(dict(random_vae.state_dict())), path)
    with pytest.raises(UserError, match=words) as error:
        codec_of(path)
    assert str(error.value).startswith(f"{path} is no sd-vae-ft-mse.safetensors: ")
    assert len(str(error.value).splitlines()) == 1
    assert len(str(error.value)) < 600


def test_a_published_file_says_what_it_is(small, random_vae, tmp_path, monkeypatch):
    from dataclasses import replace

    from vfmbench.weights.external_files import FILES

    path = tmp_path / "vae.safetensors"
    save_file(random_vae.state_dict(), path)
    assert load_external("sd_vae", path).origin == "WARNING: vae.safetensors is NOT the published sd-vae-ft-mse.safetensors"
    published = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setitem(FILES, "sd_vae", replace(FILES["sd_vae"], sha256=("0" * 64, published)))
    assert load_external("sd_vae", path).origin == "weights sd-vae-ft-mse.safetensors"


@pytest.mark.slow
def test_the_whole_network_at_256_pixels(tmp_path):
    torch.manual_seed(0)
    network = sd_vae.autoencoder()
    path = tmp_path / "diffusion_pytorch_model.safetensors"
    save_file(old_names(network.state_dict()), path)
    codec, meter = codec_of(path)
    images = torch.rand(1, 3, 256, 256) * 2 - 1
    latents = codec.encode(images)
    assert latents.shape == (1, 4, 32, 32)
    generator = torch.Generator().manual_seed(1)
    latents, direction = (torch.randn(latents.shape, generator=generator) for _ in range(2))
    decoded, vjp = codec.decode_with_vjp(latents)
    assert decoded.shape == images.shape
    gradient = vjp(decoded - images)
    # The loss is about 1e5, which float32 rounds by 1e-2: a smaller step would measure that.
    step = 1e-3
    losses = [0.5 * (codec.decode(latents + sign * step * direction) - images).double().square().sum() for sign in (1, -1)]
    assert float((gradient * direction).sum()) == pytest.approx(float(losses[0] - losses[1]) / (2 * step), rel=0.02)
    assert meter.counts["decoder_forwards"] == 3
    assert 4 * sum(value.numel() for value in network.parameters()) == 334_615_452
