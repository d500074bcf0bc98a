"""The objectives on points: each term against its definition, where gradients go, and bad options."""

import copy
import io
import math

import pytest
import torch
from rich.console import Console

from vfmbench.errors import UserError
from vfmbench.methods.point_adapter import adapter_network
from vfmbench.methods.point_objective import PointFrozenStage, PointUnconstrainedStage, PointVFMStage
from vfmbench.models.networks import flow_network
from vfmbench.registry import suites
from vfmbench.training.points import squared_errors
from vfmbench.training.train import train
from vfmbench.weights.store import WeightStore

CPU, SHAPE = torch.device("cpu"), (2, 1, 1)
SMALL = {"kind": "mlp", "width": 16, "depth": 2}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Random weights of small networks under the names that the stages start from."""
    torch.manual_seed(0)
    store = WeightStore(tmp_path_factory.mktemp("weights"), "")
    for name in ("flow_matching", "flow"):
        network = flow_network(SHAPE, SMALL)
        tensors = {f"flow.{key}": value for key, value in network.state_dict().items()}
        store.save(name, tensors, {"architecture": {"flow": SMALL}})
    return store


def stage_of(weights, stage_class=PointVFMStage, **changes):
    suite = suites.get("checkerboard")({}).with_weights(weights.directory)
    own = {key: value for key, value in suite.training[stage_class.name].items() if key != "objective"}
    options = {**own, "steps": 1, "batch_size": 64, "architecture": {"adapter": SMALL}, **changes}
    torch.manual_seed(1)
    return stage_class(suite, stage_class.Options(**options), weights, CPU)


def loss_of(stage):
    ema = {name: copy.deepcopy(network).requires_grad_(False) for name, network in stage.networks.items()}
    loss, terms = stage.loss(0, torch.Generator().manual_seed(0), ema)
    loss.backward()
    sizes = {
        name: sum(float(p.grad.norm()) for p in net.parameters() if p.grad is not None) for name, net in stage.networks.items()
    }
    return loss.item(), {key: float(value) for key, value in terms.items()}, sizes


def test_squared_errors_against_finite_differences():
    torch.manual_seed(0)
    network = flow_network(SHAPE, SMALL).double()
    network.forward = lambda x, t, r, label: network.body(torch.cat([x.flatten(1), t[:, None], r[:, None]], 1))[..., None, None]
    x, z = torch.randn(2, 8, *SHAPE, dtype=torch.float64)
    generator = torch.Generator().manual_seed(3)
    first, second = torch.rand(2, 8, generator=generator).double()
    t, r = torch.maximum(first, second), torch.minimum(first, second)
    r[4:] = t[4:]
    state, v, h, label = torch.lerp(x, z, t[:, None, None, None]), z - x, 1e-6, torch.zeros(8, dtype=torch.int64)
    ahead, behind = (network(state + sign * h * v, t + sign * h, r, label) for sign in (1, -1))
    target = v - (t - r)[:, None, None, None] * (ahead - behind) / (2 * h)
    expected = (network(state, t, r, label) - target).square().sum((1, 2, 3))

    errors, gap = squared_errors(network, x, z, 0.5, torch.Generator().manual_seed(3))
    torch.testing.assert_close(errors, expected, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(gap, t - r)
    assert (gap[4:] == 0).all()
    assert (gap[:4] > 0).all()


def test_target_carries_no_gradient_and_the_state_does():
    torch.manual_seed(0)
    network = flow_network(SHAPE, SMALL)
    x, z = torch.randn(2, 16, *SHAPE)
    z.requires_grad_(True)
    errors, _ = squared_errors(network, x, z, 0.0, torch.Generator().manual_seed(0))
    gradient = torch.autograd.grad(errors.sum(), z)[0]
    first, second = torch.rand(2, 16, generator=torch.Generator().manual_seed(0))
    t, label = torch.maximum(first, second), torch.zeros(16, dtype=torch.int64)
    state = torch.lerp(x, z.detach(), t[:, None, None, None]).requires_grad_(True)
    error = (network(state, t, t, label) - (z - x).detach()).square().sum()
    expected = t[:, None, None, None] * torch.autograd.grad(error, state)[0]
    torch.testing.assert_close(gradient, expected)


def test_total_is_the_weighted_sum_scaled_by_itself(weights):
    loss, terms, _ = loss_of(stage_of(weights, tau=0.5))
    total = sum(terms.values())
    assert loss == pytest.approx(total / (total + 0.01), rel=1e-5)
    _, doubled, _ = loss_of(stage_of(weights, tau=1.0))
    assert terms["flow"] == pytest.approx(4 * doubled["flow"], rel=1e-5)
    assert terms["kl"] == doubled["kl"]
    assert terms["observation"] == doubled["observation"]


def test_inverse_gap_is_the_authors_weighting(weights):
    _, plain, _ = loss_of(stage_of(weights, tau=1.0))
    _, authors, _ = loss_of(stage_of(weights, tau=1.0, mean_flow_weighting="inverse_gap"))
    # Three quarters of the rows have r = t, where the weight is 1e6, and a mean over two coordinates halves it.
    assert authors["flow"] / plain["flow"] == pytest.approx(0.75e6 / 2, rel=0.01)


def test_kl_term_is_the_divergence_from_the_prior(weights):
    stage = stage_of(weights)
    _, terms, _ = loss_of(stage)
    index = torch.arange(64)
    x = stage._batches.draw(64, torch.Generator().manual_seed(0))[0]
    measurement = stage._task.measure(x, 0 * index, index, "train/0")
    mean, logvar = stage._adapter(measurement.operator.to_image(measurement.y), 0 * index)
    q = torch.distributions.Normal(mean.flatten(1), (0.5 * logvar).exp().flatten(1))
    divergence = torch.distributions.kl_divergence(q, torch.distributions.Normal(0.0, 1.0)).sum(1).mean()
    assert terms["kl"] == pytest.approx(float(divergence), rel=1e-5)
    assert loss_of(stage_of(weights, kl=False))[1]["kl"] == 0


def test_observation_term_reaches_the_flow_map_only_without_ema(weights):
    almost_no_flow = {"tau": 1e6}
    with_ema = loss_of(stage_of(weights, **almost_no_flow))[2]
    without = loss_of(stage_of(weights, **almost_no_flow, ema_target=False))[2]
    assert with_ema["flow"] < 1e-9 < 1e-3 < without["flow"]
    assert with_ema["adapter"] > 1e-3


def test_alpha_zero_trains_the_map_on_independent_noise(weights):
    gradients = {}
    for alpha in (0.0, 1.0):
        stage = stage_of(weights, tau=1e-4, alpha=alpha)
        gradients[alpha] = loss_of(stage)[2]["adapter"]
    assert gradients[0.0] < 1e-3 * gradients[1.0]


def test_frozen_and_unconstrained_train_what_they_say(weights):
    assert set(loss_of(stage_of(weights, PointFrozenStage))[2]) == {"adapter"}
    sizes = loss_of(stage_of(weights, PointUnconstrainedStage))[2]
    assert sizes["flow"] > 0
    assert sizes["adapter"] > 0


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"alpha": 1.5}, "vfm.alpha"),
        ({"alpha": -0.1}, "vfm.alpha"),
        ({"tau": 0}, "vfm.tau"),
        ({"tau": -1.0}, "vfm.tau"),
        ({"mean_flow_weighting": "gap"}, "vfm.mean_flow_weighting"),
        ({"architecture": {"adapter": {"kind": "conv"}}}, "Unknown noise adapter 'conv'"),
        ({"architecture": {}}, "adapter"),
    ],
)
def test_bad_options_are_named_before_anything_is_trained(tmp_path, values, words):
    suite = suites.get("checkerboard")({})
    with pytest.raises(UserError, match=words):
        train("vfm", suite, {"vfm": values}, tmp_path / "out", CPU, False, Console(file=io.StringIO()))
    assert not (tmp_path / "out").exists()


def test_unknown_variant_is_named(tmp_path):
    suite = suites.get("checkerboard")({})
    with pytest.raises(UserError, match=r"Unknown training stage 'unconstraned'\. Did you mean 'unconstrained'"):
        train("unconstraned", suite, {}, tmp_path / "out", CPU, False, Console(file=io.StringIO()))


def test_affine_adapter_starts_at_the_prior_and_has_one_variance():
    adapter = adapter_network((3, 1, 1), {"kind": "affine"})
    mean, logvar = adapter(torch.randn(5, 3, 1, 1), torch.zeros(5, dtype=torch.int64))
    assert (mean == 0).all()
    assert (logvar == 0).all()
    assert logvar.shape == (5, 3, 1, 1)


def test_log_std_is_bounded():
    adapter = adapter_network(SHAPE, SMALL)
    _, logvar = adapter(1e6 * torch.randn(50, *SHAPE), torch.zeros(50, dtype=torch.int64))
    assert logvar.min() >= 2 * -6
    assert logvar.max() <= 2 * 3
    assert math.isfinite(float(logvar.sum()))
