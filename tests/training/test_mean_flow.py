"""The mean-flow losses against finite differences and against cases with a known answer, in float64."""

import pytest
import torch

from vfmbench.models.networks import flow_network
from vfmbench.models.sit import SiT
from vfmbench.training.batches import Batch
from vfmbench.training.mean_flow import (
    MeanFlowOptions,
    adaptive_scale,
    draw_coupled_times,
    draw_fm_time,
    draw_mean_flow_times,
    drop_labels,
    flow_matching_loss,
    guided_velocity,
    mean_flow_loss,
)

NULL = 3


@pytest.fixture
def network():
    torch.manual_seed(0)
    net = SiT(input_size=8, patch_size=4, in_channels=1, hidden_size=16, depth=2, dmf_depth=1, num_heads=2, num_classes=3)
    for parameter in net.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.2)
    return net.double()


@pytest.fixture
def batch():
    torch.manual_seed(1)
    x, z = torch.randn(2, 4, 1, 8, 8, dtype=torch.float64)
    r, t = torch.rand(2, 4, dtype=torch.float64).sort(dim=0).values
    return x, z, t, r, torch.tensor([0, 1, 2, NULL])


def test_target_uses_the_total_derivative(network, batch):
    """Against du/dt along (v, 1, 0) by central differences."""
    x, z, t, r, label = batch
    v, step = z - x, 1e-5

    def along(s):
        time = t + s
        return network(torch.lerp(x, z, time[:, None, None, None]), time, r, label)

    derivative = (along(step) - along(-step)) / (2 * step)
    target = v - (t - r)[:, None, None, None] * derivative
    expected = (along(0.0) - target).square().flatten(1).mean(1)
    assert torch.allclose(mean_flow_loss(network, x, z, t, r, label, NULL, 0.0), expected, rtol=1e-7)


def test_equal_times_need_no_derivative(network, batch):
    """Where the last rows have r = t, the loss is the same whether or not their derivative is taken."""
    x, z, t, r, label = batch
    for distinct in range(5):
        r = torch.cat([r[:distinct], t[distinct:]])
        for tangent in ("conditional", "network"):
            whole, short = (mean_flow_loss(network, x, z, t, r, label, NULL, 0.5, tangent, "sum", n) for n in (None, distinct))
            assert torch.allclose(short, whole, rtol=1e-12)
    mean = mean_flow_loss(network, x, z, t, r, label, NULL, 0.5)
    assert torch.allclose(mean * 64, mean_flow_loss(network, x, z, t, r, label, NULL, 0.5, reduction="sum"), rtol=1e-12)


def test_coupled_times_are_ordered_and_a_share_is_distinct():
    t, r, distinct = draw_coupled_times(1000, 0.25, torch.Generator().manual_seed(0))
    assert distinct == 250
    assert (t[:250] > r[:250]).all()
    assert torch.equal(t[250:], r[250:])
    # The larger of two uniforms.
    assert t.mean().item() == pytest.approx(2 / 3, abs=0.02)


def test_a_perceptron_has_the_total_derivative_too():
    torch.manual_seed(0)
    network = flow_network((2, 1, 1), {"kind": "mlp", "width": 16, "depth": 2}).double()
    # In float32, as it comes out, differences would drown in rounding.
    network.forward = lambda x, t, r, label, fused_attention=True: network.body(
        torch.cat([x.flatten(1), t[:, None], r[:, None]], 1)
    )[..., None, None]
    x, z = torch.randn(2, 8, 2, 1, 1, dtype=torch.float64)
    r, t = torch.rand(2, 8, dtype=torch.float64).sort(dim=0).values
    state, v, h, label = torch.lerp(x, z, t[:, None, None, None]), z - x, 1e-6, torch.zeros(8, dtype=torch.int64)
    ahead, behind = (network(state + sign * h * v, t + sign * h, r, label) for sign in (1, -1))
    target = v - (t - r)[:, None, None, None] * (ahead - behind) / (2 * h)
    expected = (network(state, t, r, label) - target).square().sum((1, 2, 3))
    torch.testing.assert_close(
        mean_flow_loss(network, x, z, t, r, label, 0, 0.0, reduction="sum"), expected, rtol=1e-6, atol=1e-8
    )


def test_equal_times_give_flow_matching(network, batch):
    x, z, t, _, label = batch
    mean_flow = mean_flow_loss(network, x, z, t, t, label, NULL, 0.5)
    assert torch.allclose(mean_flow, flow_matching_loss(network, x, z, t, label, NULL, 0.5), rtol=1e-12)


def test_flow_map_of_a_point_mass_has_zero_loss():
    """For a point mass at 0 the average velocity is z = x_t / t at every r: the loss is zero."""

    class PointMass(torch.nn.Module):
        def forward(self, x, t, r, label, fused_attention=True):
            return x / t[:, None, None, None]

    torch.manual_seed(0)
    z = torch.randn(5, 1, 4, 4, dtype=torch.float64)
    t, r = torch.full((5,), 0.8).double(), torch.full((5,), 0.3).double()
    loss = mean_flow_loss(PointMass(), torch.zeros_like(z), z, t, r, torch.zeros(5, dtype=torch.int64), NULL, 0.0)
    assert loss.max() < 1e-20


def test_gradient_reaches_z_through_x_t_only(network, batch):
    x, z, t, r, label = batch
    z = z.requires_grad_(True)
    mean_flow_loss(network, x, z, t, r, label, NULL, 0.0).sum().backward()
    with torch.no_grad():
        v = z - x
        _, derivative = torch.func.jvp(
            lambda x, t: network(x, t, r, label, fused_attention=False),
            (torch.lerp(x, z, t[:, None, None, None]), t),
            (v, torch.ones_like(t)),
        )
        target = v - (t - r)[:, None, None, None] * derivative
    x_t = torch.lerp(x, z.detach(), t[:, None, None, None]).requires_grad_(True)
    (network(x_t, t, r, label) - target).square().flatten(1).mean(1).sum().backward()
    assert torch.allclose(z.grad, t[:, None, None, None] * x_t.grad, rtol=1e-10)


def test_model_guidance_leaves_dropped_labels_alone(network, batch):
    x, z, t, _, label = batch
    x_t, v = torch.lerp(x, z, t[:, None, None, None]), z - x
    guided = guided_velocity(network, x_t, t, v, label, NULL, 0.5)
    conditional = network(x_t, t, t, label)
    unconditional = network(x_t, t, t, torch.full_like(label, NULL))
    assert torch.allclose(guided, v + 0.5 * (conditional - unconditional))
    assert torch.equal(guided[3], v[3])


def test_times_follow_the_stated_distributions():
    options, generator = MeanFlowOptions(one_step_share=0.25), torch.Generator().manual_seed(0)
    t, r = draw_mean_flow_times(20_000, options, generator)
    assert (t >= r).all()
    corner = (t == 1) & (r == 0)
    assert corner.float().mean() == pytest.approx(0.25, abs=0.015)
    first = torch.sigmoid(torch.randn(20_000, generator=generator) + 0.4)
    second = torch.sigmoid(torch.randn(20_000, generator=generator) - 1.2)
    assert t[~corner].mean() == pytest.approx(torch.maximum(first, second).mean().item(), abs=0.01)
    assert r[~corner].mean() == pytest.approx(torch.minimum(first, second).mean().item(), abs=0.01)
    assert torch.logit(draw_fm_time(20_000, options, generator)).std() == pytest.approx(1, abs=0.03)


def test_label_dropout_share():
    batch = Batch.draw(0, 10_000, 10_000, torch.Generator().manual_seed(0))
    label = drop_labels(torch.zeros(10_000, dtype=torch.int64), NULL, 0.1, batch)
    assert (label == NULL).float().mean() == pytest.approx(0.1, abs=0.01)


def test_adaptive_scale_has_the_stated_value_and_gradient():
    loss = torch.tensor([0.5, 4.0], dtype=torch.float64, requires_grad=True)
    scaled = adaptive_scale(loss, power=1.0, constant=0.01)
    scaled.sum().backward()
    assert scaled.tolist() == pytest.approx([0.5 / 0.51, 4 / 4.01])
    assert loss.grad.tolist() == pytest.approx([1 / 0.51, 1 / 4.01])


def test_tangents_of_the_network_and_none(network, batch):
    """The network's own velocity as the direction of du/dt, against central differences; without one, v is the target."""
    x, z, t, r, label = batch
    v, x_t, step = z - x, torch.lerp(x, z, t[:, None, None, None]), 1e-5
    with torch.no_grad():
        own = network(x_t, t, t, label)
        shifted = [network(x_t + s * own, t + s, r, label) for s in (step, -step)]
    derivative = (shifted[0] - shifted[1]) / (2 * step)
    target = v - (t - r)[:, None, None, None] * derivative
    output = network(x_t, t, r, label)
    for tangent, wanted in (("network", target), ("none", v)):
        loss = mean_flow_loss(network, x, z, t, r, label, NULL, 0.0, tangent)
        assert torch.allclose(loss, (output - wanted).square().flatten(1).mean(1), rtol=1e-7)


def test_the_networks_tangent_is_the_mean_of_the_pairs(network):
    """du/dt is linear in its direction, so that the targets of many pairs through one x_t average to that of their mean."""
    torch.manual_seed(2)
    point, t, r = torch.randn(1, 1, 8, 8, dtype=torch.float64), torch.tensor([0.7]).double(), torch.tensor([0.2]).double()
    v = torch.randn(64, 1, 8, 8, dtype=torch.float64)
    label, times = torch.zeros(64, dtype=torch.long), (t.expand(64), r.expand(64))

    def derivative(direction):
        rows = len(direction)
        return torch.func.jvp(
            lambda x, t: network(x, t, times[1][:rows], label[:rows], fused_attention=False),
            (point.repeat(rows, 1, 1, 1), times[0][:rows].clone()),
            (direction, torch.ones(rows, dtype=torch.float64)),
        )[1]

    with torch.no_grad():
        assert torch.allclose(derivative(v).mean(0), derivative(v.mean(0, keepdim=True))[0], atol=1e-12)
