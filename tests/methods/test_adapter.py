import inspect

import pytest
import torch

from vfmbench.domains import IMAGES
from vfmbench.errors import UserError
from vfmbench.interfaces import IdentityCodec
from vfmbench.methods.adapter import (
    LOGVAR_RANGE,
    SIZES,
    NoiseAdapter,
    adapter_arguments,
    adapter_observation,
    expand_adapter_size,
)
from vfmbench.registry import suites
from vfmbench.restoration import regularised_inverse


def small_adapter(**changes):
    torch.manual_seed(0)
    sizes = {"image_size": 16, "image_channels": 3, "latent_size": 4, "latent_channels": 2, "num_problems": 3, "channels": 8}
    return NoiseAdapter(
        **{**sizes, "channel_multipliers": (1, 2), "blocks_per_stage": 1, "embedding_size": 16, "norm_groups": 4, **changes}
    )


def test_base_is_the_default():
    defaults = {name: parameter.default for name, parameter in inspect.signature(NoiseAdapter).parameters.items()}
    assert expand_adapter_size({"size": "base"}).items() <= defaults.items()


def test_three_halvings_lead_from_the_observation_to_the_latent():
    adapter = NoiseAdapter(**expand_adapter_size({"size": "small", "image_size": 64, "latent_size": 8}))
    with torch.no_grad():
        mean, logvar = adapter(torch.randn(1, 3, 64, 64), torch.tensor([5]))
    assert mean.shape == logvar.shape == (1, 4, 8, 8)


def counted(c, blocks, e):
    """Parameters of the adapter with c channels, summed by hand over its layers."""

    def block(before, width):
        convolutions = 9 * before * width + 9 * width * width + 2 * width
        norms, films = 2 * before + 2 * width, 2 * (2 * width * e + 2 * width)
        return convolutions + norms + films + (before * width + width if before != width else 0)

    total = 6 * e + 2 * (e * e + e) + 9 * 3 * c + c
    for before, width in ((c, c), (c, 2 * c), (2 * c, 4 * c), (4 * c, 4 * c)):
        total += block(before, width) + (blocks - 1) * block(width, width)
    total += sum(9 * width * width + width for width in (c, 2 * c, 4 * c))
    return total + 2 * block(4 * c, 4 * c) + 2 * 4 * c + 9 * 4 * c * 8 + 8


@pytest.mark.parametrize("size", SIZES)
def test_the_documented_number_of_parameters_is_that_of_the_network(size):
    number = sum(parameter.numel() for parameter in NoiseAdapter(**expand_adapter_size({"size": size})).parameters())
    assert number == counted(*SIZES[size].values())
    assert f"{size} {number:,}" in " ".join((expand_adapter_size.__doc__ or "").split())


def test_a_named_size_is_a_default_for_single_options():
    assert expand_adapter_size({"size": "small", "channels": 64}) == {**SIZES["small"], "channels": 64}
    assert expand_adapter_size({"channels": 8}) == {"channels": 8}
    with pytest.raises(UserError, match="Available: base, large, small"):
        expand_adapter_size({"size": "huge"})


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


def test_a_restored_adapter_starts_around_the_restored_latent():
    adapter = small_adapter(restored=True, patch_size=2, skip_gain=0.5)
    observation, latent = torch.randn(2, 7, 16, 16), torch.randn(2, 2, 4, 4)
    observation[:, -1] = 1
    observation[:, -1, 4:8, :2] = 0
    mean, logvar = adapter(observation, torch.tensor([0, 2]), latent)
    assert torch.equal(mean, 0.5 * latent)
    expected = torch.full_like(latent, -2.0)
    expected[:, :, 1, 0] = -1.0
    assert torch.equal(logvar, expected)


def test_a_restored_adapter_without_skip_starts_at_the_prior_and_sees_the_inverse():
    adapter = small_adapter(restored=True, patch_size=2, skip_gain=0.0, restored_logvar=0.0)
    observation, latent = torch.randn(2, 7, 16, 16), torch.randn(2, 2, 4, 4)
    mean, logvar = adapter(observation, torch.tensor([0, 2]), latent)
    assert mean.abs().max() == logvar.abs().max() == 0
    torch.nn.init.normal_(adapter.conv_out.weight)
    before = adapter(observation, torch.tensor([0, 2]), latent)[0]
    observation[:, 3:6] += 1
    assert (adapter(observation, torch.tensor([0, 2]), latent)[0] - before).abs().max() > 0.01


def test_a_restored_adapter_sees_observation_inverse_and_mask():
    suite = suites.get("digits")({})
    images, label = suite.dataset("validation").load(range(4))
    images, index = IMAGES.restore(images), torch.arange(4)
    for name in ("inpaint_box", "super_resolution"):
        measurement = suite.task(name, {}).measure(images, label, index, 0)
        operator = measurement.operator
        assert torch.equal(adapter_observation(measurement, False), operator.to_image(measurement.y))
        seen = adapter_observation(measurement, True)
        assert seen.shape == (4, 3, 8, 8)
        assert torch.equal(seen[:, :1], operator.to_image(measurement.y))
        assert torch.equal(seen[:, 1:2], regularised_inverse(measurement, 0.3))
        assert torch.equal(seen[:, 2:], torch.ones(4, 1, 8, 8) if operator.observed is None else operator.observed.float())
        assert adapter_arguments(seen, label, False, None) == (seen, label)
        *_, latent = adapter_arguments(seen, label, True, IdentityCodec())
        assert torch.equal(latent, seen[:, 1:2])
