import pytest
import torch

from vfmbench.metering import Meter
from vfmbench.models.flow import NetworkFlow
from vfmbench.models.sit import SiT

CPU = torch.device("cpu")


@pytest.fixture
def flow():
    torch.manual_seed(0)
    network = SiT(input_size=4, patch_size=2, in_channels=1, hidden_size=16, depth=2, dmf_depth=1, num_heads=2, num_classes=3)
    for parameter in network.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.3)
    return NetworkFlow(network.double(), (1, 4, 4), 3, Meter(CPU))


@pytest.fixture
def x():
    return torch.randn(5, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


LABEL = torch.tensor([0, 1, 2, 0, 1])


def test_guidance_is_affine_in_the_scale_and_guides_every_channel(flow, x):
    conditional = flow.velocity(x, 0.7, LABEL)
    unconditional = flow.velocity(x, 0.7, torch.full_like(LABEL, 3))
    guided = flow.velocity(x, 0.7, LABEL, guidance_scale=2.5)
    assert torch.allclose(guided, unconditional + 2.5 * (conditional - unconditional))
    assert torch.allclose(flow.velocity(x, 0.7, LABEL, guidance_scale=0.0), unconditional)


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_vjp_against_finite_differences(flow, x, scale):
    velocity, vjp = flow.velocity_with_vjp(x, 0.4, LABEL, scale)
    assert torch.allclose(velocity, flow.velocity(x, 0.4, LABEL, scale))
    generator = torch.Generator().manual_seed(2)
    direction, cotangent = (torch.randn(x.shape, generator=generator, dtype=torch.float64) for _ in range(2))
    step = 1e-5
    ahead, behind = (flow.velocity(x + sign * step * direction, 0.4, LABEL, scale) for sign in (1, -1))
    slope = ((ahead - behind) / (2 * step) * cotangent).sum()
    assert (vjp(cotangent) * direction).sum().item() == pytest.approx(slope.item(), rel=1e-6)


def test_every_branch_is_counted(flow, x):
    flow.velocity(x, 0.5, LABEL, 2.0)
    flow.average_velocity(x, 1.0, 0.0, LABEL)
    flow.velocity_with_vjp(x, 0.5, LABEL, 2.0)[1](x)
    assert flow.meter.counts["network_forwards"] == 25
    assert flow.meter.counts["network_vjps"] == 10
    assert flow.meter.per_sample(5).network_forwards == 5
    assert flow.meter.seconds() > 0
    flow.meter.reset()
    assert flow.meter.seconds() == 0


def test_no_null_label_no_guidance(x):
    flow = NetworkFlow(torch.nn.Identity(), (1, 4, 4), None, Meter(CPU))
    with pytest.raises(ValueError, match="guidance_scale"):
        flow.velocity(x, 0.5, LABEL, 2.0)
