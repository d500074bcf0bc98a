"""Networks for points: shapes, the affine map, and what a wrong architecture says."""

import itertools

import pytest
import torch

from vfmbench.errors import UserError
from vfmbench.models.networks import flow_network

SHAPE = (2, 1, 1)


def test_the_papers_perceptron_has_its_size():
    network = flow_network(SHAPE, {"kind": "mlp"})
    widths = [4, 512, 512, 512, 512, 512, 512, 2]
    assert sum(p.numel() for p in network.parameters()) == sum(a * b + b for a, b in itertools.pairwise(widths))


def test_perceptron_sees_point_and_both_times():
    torch.manual_seed(0)
    network = flow_network(SHAPE, {"kind": "mlp", "width": 16, "depth": 2})
    x, t, r, label = torch.randn(5, *SHAPE), torch.rand(5), torch.rand(5), torch.zeros(5, dtype=torch.int64)
    reference = network(x, t, r, label)
    assert reference.shape == x.shape
    assert reference.dtype == torch.float32
    for changed in ((x + 1, t, r), (x, t + 0.1, r), (x, t, r + 0.1)):
        assert (network(*changed, label) - reference).abs().amin() > 0


def test_perceptron_answers_in_float32_under_autocast():
    network = flow_network(SHAPE, {"kind": "mlp", "width": 16, "depth": 2})
    with torch.autocast("cpu", torch.bfloat16):
        output = network(torch.randn(3, *SHAPE), torch.ones(3), torch.zeros(3), torch.zeros(3, dtype=torch.int64))
    assert output.dtype == torch.float32


@pytest.mark.parametrize(
    ("architecture", "words"),
    [
        ({"kind": "mpl"}, "Unknown flow network 'mpl'. Did you mean 'mlp'"),
        ({"kind": "mlp", "width": 0}, "architecture.flow.width"),
        ({"kind": "mlp", "heads": 4}, "heads"),
    ],
)
def test_wrong_architecture_is_one_sentence(architecture, words):
    with pytest.raises(UserError, match=words.replace("(", r"\(")):
        flow_network(SHAPE, architecture)
