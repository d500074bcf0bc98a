import torch

from vfmbench.methods.adapter import LOGVAR_RANGE, NoiseAdapter


def small_adapter(**changes):
    torch.manual_seed(0)
    sizes = {"image_size": 16, "image_channels": 3, "latent_size": 4, "latent_channels": 2, "num_problems": 3, "channels": 8}
    return NoiseAdapter(
        **{**sizes, "channel_multipliers": (1, 2), "blocks_per_stage": 1, "embedding_size": 16, "norm_groups": 4, **changes}
    )


def test_base_has_about_ten_million_parameters_and_latent_shape():
    adapter = NoiseAdapter()
    assert 10e6 < sum(parameter.numel() for parameter in adapter.parameters()) < 10.9e6
    with torch.no_grad():
        mean, logvar = adapter(torch.randn(1, 3, 256, 256), torch.tensor([5]))
    assert mean.shape == logvar.shape == (1, 4, 32, 32)


def test_starts_at_the_prior():
    mean, logvar = small_adapter()(torch.randn(2, 3, 16, 16), torch.tensor([0, 2]))
    assert torch.equal(mean, torch.zeros(2, 2, 4, 4))
    assert torch.equal(logvar, torch.zeros(2, 2, 4, 4))


def test_film_starts_as_the_identity_then_separates_problems():
    adapter = small_adapter()
    torch.nn.init.normal_(adapter.conv_out.weight)
    x = torch.randn(1, 3, 16, 16).expand(2, -1, -1, -1)
    ids = torch.tensor([0, 2])
    mean, _ = adapter(x, ids)
    assert torch.allclose(mean[0], mean[1], atol=1e-6)
    for module in adapter.modules():
        if module.__class__.__name__ == "FiLM":
            torch.nn.init.normal_(module.linear.weight)
    mean, _ = adapter(x, ids)
    assert (mean[0] - mean[1]).abs().max() > 0.1


def test_log_variance_is_clamped():
    adapter = small_adapter()
    torch.nn.init.constant_(adapter.conv_out.bias, 100.0)
    _, logvar = adapter(torch.randn(2, 3, 16, 16), torch.tensor([0, 1]))
    assert logvar.max() == LOGVAR_RANGE[1]
