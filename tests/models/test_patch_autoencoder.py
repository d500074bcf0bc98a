"""The patch autoencoder's linear part against numpy's singular value decomposition, and its codec."""

import numpy as np
import pytest
import torch

from vfmbench.metering import Meter
from vfmbench.models.patch_autoencoder import fit_linear, patch_autoencoder, patch_codec, standardise

CPU = torch.device("cpu")
ENDS = {"encoder": {"channels": 8, "blocks": 1}, "decoder": {"channels": 8, "blocks": 1}}


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(12, 12, generator=generator) * torch.arange(1, 13)
    blocks = torch.randn(6, 8, 8, 12, generator=generator) @ mixing / 30
    return torch.nn.functional.pixel_shuffle(blocks.permute(0, 3, 1, 2), 2) + 0.2


def fitted(images, latent_channels, exponent=0.5):
    torch.manual_seed(0)
    ends = patch_autoencoder({"image_channels": 3, "latent_channels": latent_channels, "patch_size": 2, **ENDS})
    fit_linear(*ends, images, exponent)
    return ends


def blocks_of(images):
    return images.unfold(2, 2, 2).unfold(3, 2, 2).permute(0, 2, 3, 1, 4, 5).reshape(-1, 12).double().numpy()


@pytest.mark.parametrize("channels", [3, 7])
def test_a_fresh_autoencoder_is_block_pca(images, channels):
    encoder, decoder = fitted(images, channels)
    blocks = blocks_of(images)
    centred = blocks - blocks.mean(0)
    u, singular, vt = np.linalg.svd(centred, full_matrices=False)
    expected = (u[:, :channels] * singular[:channels]) @ vt[:channels] + blocks.mean(0)
    np.testing.assert_allclose(blocks_of(decoder(encoder(images)).detach()), expected, atol=2e-5)


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0])
def test_latents_have_unit_mean_variance_in_the_given_proportions(images, exponent):
    encoder, _ = fitted(images, 5, exponent)
    std = encoder(images).detach().double().std((0, 2, 3), correction=0)
    assert std.square().mean() == pytest.approx(1, rel=1e-4)
    singular = np.linalg.svd(blocks_of(images) - blocks_of(images).mean(0), compute_uv=False)[:5]
    np.testing.assert_allclose(std / std[0], (singular / singular[0]) ** exponent, rtol=1e-4)


def test_all_components_lose_nothing(images):
    encoder, decoder = fitted(images, 12)
    assert torch.allclose(decoder(encoder(images)), images, atol=1e-4)


def test_standardised_latents_have_mean_0_and_variance_1_and_decode_to_the_same_images(images):
    plain = fitted(images, 5)
    for network in plain:
        torch.nn.init.normal_(network.residual[-1].weight, std=0.1)
    architecture = {"image_channels": 3, "latent_channels": 5, "patch_size": 2, **ENDS, "standardised": True}
    ends = patch_autoencoder(architecture)
    for old, new in zip(plain, ends, strict=True):
        missing, unexpected = new.load_state_dict(old.state_dict(), strict=False)
        assert (sorted(missing), unexpected) == (["standardisation.mean", "standardisation.std"], [])
    assert torch.equal(ends[0](images), plain[0](images))
    for _ in range(2):  # the constants are those of the latents before, so that measuring again changes nothing
        standardise(*ends, images)
        latents = ends[0](images).double()
        torch.testing.assert_close(latents.mean((0, 2, 3)), torch.zeros(5).double(), atol=2e-3, rtol=0)
        torch.testing.assert_close(latents.std((0, 2, 3)), torch.ones(5).double(), atol=2e-3, rtol=0)
    torch.testing.assert_close(ends[1](ends[0](images)), plain[1](plain[0](images)), atol=1e-5, rtol=0)
    # Half precision, in which weights are stored, keeps them.
    assert torch.equal(ends[0].standardisation.std.half().float(), ends[1].standardisation.std)


def test_only_an_autoencoder_that_standardises_can_be_standardised(images):
    with pytest.raises(ValueError, match="standardised"):
        standardise(*fitted(images, 5), images)


def test_codec_counts_and_differentiates(images):
    encoder, decoder = fitted(images, 4)
    for network in (encoder, decoder):
        torch.nn.init.normal_(network.residual[-1].weight, std=0.1)
    meter = Meter(CPU)
    codec = patch_codec(encoder.double(), decoder.double(), CPU, meter)
    latents = codec.encode(images.double())
    assert latents.shape == (6, 4, 8, 8)
    decoded, vjp = codec.decode_with_vjp(latents)
    direction = torch.randn_like(latents)
    cotangent, step = torch.randn_like(decoded), 1e-5
    finite = (codec.decode(latents + step * direction) - codec.decode(latents - step * direction)) / (2 * step)
    assert (vjp(cotangent) * direction).sum().item() == pytest.approx((finite * cotangent).sum().item(), rel=1e-6)
    counted = [meter.counts[kind] for kind in ("encoder_forwards", "decoder_forwards", "decoder_vjps")]
    assert counted == [6, 18, 6]


def test_an_architecture_that_is_incomplete_is_refused():
    with pytest.raises(KeyError, match="encoder"):
        patch_autoencoder({"image_channels": 3, "latent_channels": 4, "patch_size": 2})
    with pytest.raises(TypeError, match="depth"):
        patch_autoencoder({"image_channels": 3, "latent_channels": 4, "patch_size": 2, **ENDS, "decoder": {"depth": 1}})
