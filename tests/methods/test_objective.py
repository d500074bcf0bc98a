"""The adapter objectives: where gradients go, and each term against its definition."""

import copy
import io

import pytest
import torch
from rich.console import Console

from vfmbench.methods.objective import FrozenAdapterStage, VFMStage
from vfmbench.registry import suites
from vfmbench.training.trainer import Trainer

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def suite():
    return suites.get("digits")({})


def stage_of(suite, stage_class=VFMStage, **changes):
    torch.manual_seed(0)
    options = {**suite.training[stage_class.name], "steps": 1, "batch_size": 14, **changes}
    stage = stage_class(suite, stage_class.Options(**options), suite.weights, CPU)
    # The adapter's zero head would hide errors in its mean and variance.
    torch.nn.init.normal_(stage.networks["adapter"].conv_out.weight, std=0.05)
    return stage


def gradients(stage):
    ema = {name: copy.deepcopy(network).requires_grad_(False) for name, network in stage.networks.items()}
    loss, terms = stage.loss(0, torch.Generator().manual_seed(0), ema)
    loss.backward()
    found = {
        name: any(parameter.grad is not None and parameter.grad.abs().max() > 0 for parameter in network.parameters())
        for name, network in stage.networks.items()
    }
    return found, terms


def test_observation_and_kl_terms_reach_the_adapter_only(suite):
    found, _ = gradients(stage_of(suite, flow_weight=0))
    assert found == {"flow": False, "adapter": True}


def test_without_ema_the_observation_term_also_reaches_the_flow_map(suite):
    found, _ = gradients(stage_of(suite, flow_weight=0, ema_target=False))
    assert found == {"flow": True, "adapter": True}


def test_flow_term_reaches_the_adapter_through_z(suite):
    found, _ = gradients(stage_of(suite, observation_weight=0, kl_weight=0, alpha=1.0))
    assert found == {"flow": True, "adapter": True}
    found, _ = gradients(stage_of(suite, observation_weight=0, kl_weight=0, alpha=0.0))
    assert found == {"flow": True, "adapter": False}


def test_frozen_flow_map_stays_as_it_is(suite):
    stage = stage_of(suite, FrozenAdapterStage)
    before = copy.deepcopy(stage._flow.state_dict())
    found, _ = gradients(stage)
    assert found == {"adapter": True}
    assert all(parameter.grad is None for parameter in stage._flow.parameters())
    assert all(torch.equal(value, before[name]) for name, value in stage._flow.state_dict().items())


def test_kl_against_torch_distributions():
    mean, logvar = torch.randn(2, 3, 1, 4, 4, dtype=torch.float64)
    q = torch.distributions.Normal(mean, (0.5 * logvar).exp())
    expected = torch.distributions.kl_divergence(q, torch.distributions.Normal(torch.zeros_like(mean), torch.ones_like(mean)))
    assert torch.allclose(VFMStage._kl(mean, logvar), expected.flatten(1).mean(1))


def test_observation_loss_is_the_mean_over_y_with_holes_as_zero(suite):
    stage = stage_of(suite)
    generator = torch.Generator().manual_seed(0)
    images, label = stage._batches.draw(21, generator)
    _, problem, groups = stage._measure(images, label, 0, generator)
    latents = torch.randn_like(images)
    loss = stage._observation_loss(latents, groups)
    seen = []
    for rows, measurement in groups:
        for position, row in enumerate(rows.tolist()):
            residual = (measurement.operator.forward(latents[rows]) - measurement.y)[position]
            if measurement.operator.observed is not None:
                residual = residual * measurement.operator.observed[position]
            assert loss[row].item() == pytest.approx((residual.square().mean() / (2 * 0.1**2)).item(), rel=1e-4)
            assert measurement.problem == stage._tasks[problem[row]].name
            seen.append(row)
    assert sorted(seen) == list(range(21))


def test_true_images_have_an_observation_loss_of_one_half(suite):
    """The noise alone: E |n|^2 / (2 sigma^2) per entry, where every entry is observed."""
    stage = stage_of(suite, problems=["denoise", "gaussian_deblur", "super_resolution"])
    generator = torch.Generator().manual_seed(0)
    images, label = stage._batches.draw(700, generator)
    _, _, groups = stage._measure(images, label, 0, generator)
    assert stage._observation_loss(images, groups).mean().item() == pytest.approx(0.5, abs=0.03)


def test_operators_and_noise_are_new_at_every_step(suite):
    stage = stage_of(suite)
    images = torch.zeros(14, 1, 8, 8)
    label = torch.zeros(14, dtype=torch.int64)
    first, again, later = (stage._measure(images, label, step, torch.Generator().manual_seed(0))[0] for step in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.isclose(first, later).flatten(1).all(1).any()


def test_a_short_training_moves_samples_towards_the_images(suite, tmp_path):
    stage = stage_of(suite, FrozenAdapterStage, steps=40, batch_size=32, warmup_steps=0, validate_every=1000)
    before = stage.evaluate(stage.networks, "validation")["psnr/denoise"]
    networks = Trainer(stage, tmp_path, Console(file=io.StringIO())).run()
    assert stage.evaluate(networks, "validation")["psnr/denoise"] > before + 1.5


def test_observation_loss_is_the_authors_mean_over_images(suite):
    """1/(2 sigma^2) mean((T A x - T y)^2) over all pixels of the observation as an image (release, 200 at sigma = 0.05)."""
    stage = stage_of(suite)
    generator = torch.Generator().manual_seed(0)
    images, label = stage._batches.draw(42, generator)
    _, problem, groups = stage._measure(images, label, 0, generator)
    assert len(groups) == len(stage._tasks) == len(problem.unique())
    latents = torch.randn_like(images)
    loss = stage._observation_loss(latents, groups)
    for rows, measurement in groups:
        operator = measurement.operator
        difference = operator.to_image(operator.forward(latents[rows])) - operator.to_image(measurement.y)
        if operator.observed is not None:  # else the noise of hidden pixels adds a constant
            difference = difference * operator.observed
        expected = difference.square().flatten(1).mean(1) / (2 * 0.1**2)
        torch.testing.assert_close(loss[rows], expected, rtol=1e-4, atol=1e-4)


def test_each_flow_term_may_be_scaled_by_itself(suite):
    """The gradient of the scaled terms is that of their logarithms, whatever the observation and KL terms are."""
    stage = stage_of(suite, adaptive_scope="flow", adaptive_constant=1e-9, observation_weight=0.0, kl_weight=0.0)
    loss, terms = stage.loss(0, torch.Generator().manual_seed(0), stage.networks)
    assert loss.item() == pytest.approx(1.0, abs=1e-3)
    heavier = stage_of(suite, adaptive_scope="flow", adaptive_constant=1e-9, observation_weight=2.0, kl_weight=3.0)
    total, terms = heavier.loss(0, torch.Generator().manual_seed(0), heavier.networks)
    assert total.item() == pytest.approx(1.0 + 2 * terms["observation"].item() + 3 * terms["kl"].item(), rel=1e-3)
