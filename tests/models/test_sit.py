import pytest
import torch

from vfmbench.errors import UserError
from vfmbench.models.networks import flow_network
from vfmbench.models.sit import SiT, expand_sit_size, sinusoidal_position_grid

SMALL = {
    "input_size": 8,
    "patch_size": 2,
    "in_channels": 3,
    "hidden_size": 32,
    "depth": 4,
    "dmf_depth": 3,
    "num_heads": 4,
    "num_classes": 5,
}


def random_sit(**changes):
    torch.manual_seed(0)
    network = SiT(**{**SMALL, **changes}).double()
    # adaLN-Zero starts at a zero output, which would hide every error.
    for parameter in network.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)
    return network


def inputs(batch=3):
    torch.manual_seed(1)
    x = torch.randn(batch, 3, 8, 8, dtype=torch.float64)
    t, r = torch.rand(2, batch, dtype=torch.float64)
    return x, t, r, torch.tensor([0, 4, 5])[:batch]


def test_fused_and_matrix_product_attention_agree():
    network = random_sit()
    x, t, r, label = inputs()
    difference = network(x, t, r, label) - network(x, t, r, label, fused_attention=False)
    assert difference.abs().max() < 1e-12


def test_forward_mode_derivative_against_finite_difference():
    network = random_sit()
    x, t, r, label = inputs()
    direction = torch.randn_like(x)

    def function(x, t):
        return network(x, t, r, label, fused_attention=False)

    _, derivative = torch.func.jvp(function, (x, t), (direction, torch.ones_like(t)))
    step = 1e-5
    finite = (function(x + step * direction, t + step) - function(x - step * direction, t - step)) / (2 * step)
    assert (derivative - finite).abs().max() < 1e-7


def test_late_blocks_see_r_and_early_blocks_see_t():
    network = random_sit()
    x, t, r, label = inputs()
    seen = []
    for block in network.blocks:
        block.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[1]))
    network(x, t, r, label)
    early, late = (network.t_embedder(time) + network.y_embedder(label) for time in (t, r))
    assert all(torch.equal(condition, early) for condition in seen[:3])
    assert torch.equal(seen[3], late)


def test_rows_are_independent():
    network = random_sit()
    x, t, r, label = inputs()
    assert (network(x, t, r, label)[1:2] - network(x[1:2], t[1:2], r[1:2], label[1:2])).abs().max() < 1e-12


def test_sit_b2_has_the_published_layout():
    network = SiT()
    trained = sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
    assert 130e6 < trained < 131e6
    names = set(network.state_dict())
    for name in (
        "x_embedder.proj.weight",
        "t_embedder.mlp.0.weight",
        "t_embedder.mlp.2.bias",
        "y_embedder.embedding_table.weight",
        "pos_embed",
        "blocks.11.attn.qkv.weight",
        "blocks.11.attn.proj.bias",
        "blocks.11.mlp.fc1.weight",
        "blocks.11.mlp.fc2.weight",
        "blocks.11.adaLN_modulation.1.weight",
        "final_layer.linear.weight",
        "final_layer.adaLN_modulation.1.bias",
    ):
        assert name in names
    assert {name.split(".")[0] for name in names} == {
        "x_embedder",
        "t_embedder",
        "y_embedder",
        "pos_embed",
        "blocks",
        "final_layer",
    }
    assert network.state_dict()["y_embedder.embedding_table.weight"].shape == (1001, 768)


def test_patches_return_to_their_place():
    """With the blocks and modulation off, each output patch is a linear map of its own token only."""
    network = random_sit(depth=1, dmf_depth=1)
    for parameter in network.blocks.parameters():
        torch.nn.init.zeros_(parameter)
    x, t, r, label = inputs(1)
    changed = x.clone()
    changed[:, :, 2:4, 6:8] += 1
    difference = (network(changed, t, r, label) - network(x, t, r, label)).abs().amax(dim=(0, 1))
    assert (difference[2:4, 6:8] > 0).all()
    difference[2:4, 6:8] = 0
    assert difference.max() == 0


def test_position_embedding_has_distinct_rows_and_unit_pairs():
    grid = sinusoidal_position_grid(32, 4)
    assert grid.shape == (16, 32)
    assert len({tuple(row) for row in grid.tolist()}) == 16
    assert torch.allclose(grid.square().sum(1), torch.full((16,), 16.0))


@pytest.mark.parametrize(
    ("changes", "word"), [({"patch_size": 3}, "patch_size"), ({"dmf_depth": 5}, "dmf_depth"), ({"num_heads": 5}, "num_heads")]
)
def test_impossible_sizes_are_named(changes, word):
    with pytest.raises(ValueError, match=word):
        SiT(**{**SMALL, **changes})


def test_a_new_network_is_the_zero_map():
    torch.manual_seed(0)
    network = SiT(**SMALL).double()
    x, t, r, label = inputs()
    assert torch.equal(network(x, t, r, label), torch.zeros_like(x))
    assert all(block.adaLN_modulation[1].weight.abs().max() == 0 for block in network.blocks)


@pytest.mark.parametrize(
    ("size", "hidden_size", "depth", "num_heads", "millions"),
    [("S/2", 384, 12, 6, 33), ("B/4", 768, 12, 12, 130), ("L/2", 1024, 24, 16, 458), ("XL/2", 1152, 28, 16, 675)],
)
def test_named_sizes_are_the_published_ones(size, hidden_size, depth, num_heads, millions):
    """Widths, depths, heads and rounded numbers of parameters as in SiT's table 1."""
    options = expand_sit_size({"size": size})
    assert options["patch_size"] == int(size[-1])
    assert (options["hidden_size"], options["depth"], options["num_heads"]) == (hidden_size, depth, num_heads)
    # Two thirds of the blocks see t, as DMF advises.
    assert options["dmf_depth"] == pytest.approx(2 * depth / 3, abs=1.5)
    # Per block: attention, MLP and modulation. Per network: embeddings of time and 1001 classes, the last layer's modulation.
    width = hidden_size
    block = (3 + 1 + 4 + 4 + 6) * width**2 + (3 + 1 + 4 + 1 + 6) * width
    number = depth * block + (256 + width + 2) * width + 1001 * width + 2 * width**2
    assert number / 1e6 == pytest.approx(millions, rel=0.01)


def test_a_named_size_makes_the_network_it_names():
    network = flow_network((4, 32, 32), {"size": "S/2", "depth": 2, "dmf_depth": 1})
    assert (len(network.blocks), network.dmf_depth, network.patch_size) == (2, 1, 2)
    assert network.pos_embed.shape == (1, 256, 384)
    assert expand_sit_size({"hidden_size": 8}) == {"hidden_size": 8}
    for wrong in ("B", "B/3", "H/2", 7):
        with pytest.raises(UserError, match="Available: B/2, B/4"):
            expand_sit_size({"size": wrong})
