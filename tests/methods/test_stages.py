"""The adapter stages on images and points: what they measure, where gradients go, and bad options."""

import copy
import io
import math

import pytest
import torch
from rich.console import Console

from vfmbench.errors import UserError
from vfmbench.methods.point_adapter import adapter_network
from vfmbench.methods.stages import (
    FrozenAdapterStage,
    PointFrozenAdapterStage,
    PointUnconstrainedStage,
    PointVFMStage,
    VFMStage,
)
from vfmbench.models.networks import flow_network
from vfmbench.registry import suites
from vfmbench.training.batches import Batch
from vfmbench.training.train import train
from vfmbench.training.trainer import Trainer
from vfmbench.weights.store import WeightStore

CPU, POINT = torch.device("cpu"), (2, 1, 1)
QUIET = Console(file=io.StringIO())
SMALL = {"kind": "mlp", "width": 16, "depth": 2}


@pytest.fixture(scope="module")
def digits():
    return suites.get("digits")({})


@pytest.fixture(scope="module")
def checkerboard(tmp_path_factory):
    """The suite on random weights of small networks under the names that the stages start from."""
    torch.manual_seed(0)
    store = WeightStore(tmp_path_factory.mktemp("weights"), "")
    for name in ("flow_matching", "flow"):
        network = flow_network(POINT, SMALL)
        tensors = {f"flow.{key}": value for key, value in network.state_dict().items()}
        store.save(name, tensors, {"architecture": {"flow": SMALL}})
    return suites.get("checkerboard")({}).with_weights(store.directory)


def stage_of(suite, stage_class, **changes):
    own = {key: value for key, value in suite.training[stage_class.name].items() if key != "objective"}
    small = {"batch_size": 14} if suite.name == "digits" else {"batch_size": 64, "architecture": {"adapter": SMALL}}
    torch.manual_seed(1)
    stage = stage_class(suite, stage_class.Options(**{**own, "steps": 1, **small, **changes}), suite.weights, CPU)
    if suite.name == "digits":
        # The adapter's zero head would hide errors in its mean and variance.
        torch.nn.init.normal_(stage.networks["adapter"].conv_out.weight, std=0.05)
    return stage


def batch_of(stage, rows=None, step=0):
    size = len(stage.suite.dataset("train"))
    return Batch.draw(step, size, rows or stage.options.batch_size, torch.Generator().manual_seed(0))


def gradients(stage):
    """The norm of each network's gradient, and the logged terms."""
    ema = {name: copy.deepcopy(network).requires_grad_(False) for name, network in stage.networks.items()}
    loss, terms = stage.loss(batch_of(stage), ema)
    loss.backward()
    norms = {
        name: sum(float(p.grad.norm()) for p in net.parameters() if p.grad is not None) for name, net in stage.networks.items()
    }
    return norms, {key: float(value) for key, value in terms.items()}


def reached(stage):
    return {name: norm > 0 for name, norm in gradients(stage)[0].items()}


def test_observation_and_kl_terms_reach_the_adapter_only(digits):
    assert reached(stage_of(digits, VFMStage, flow_weight=0)) == {"flow": False, "adapter": True}


def test_without_ema_the_observation_term_also_reaches_the_flow_map(digits, checkerboard):
    assert reached(stage_of(digits, VFMStage, flow_weight=0, ema_target=False)) == {"flow": True, "adapter": True}
    almost_no_flow = {"tau": 1e6}
    with_ema = gradients(stage_of(checkerboard, PointVFMStage, **almost_no_flow))[0]
    without = gradients(stage_of(checkerboard, PointVFMStage, **almost_no_flow, ema_target=False))[0]
    assert with_ema["flow"] < 1e-9 < 1e-3 < without["flow"]
    assert with_ema["adapter"] > 1e-3


def test_flow_term_reaches_the_adapter_through_z(digits, checkerboard):
    alone = {"observation_weight": 0, "kl_weight": 0}
    for suite, stage_class in ((digits, VFMStage), (checkerboard, PointVFMStage)):
        assert reached(stage_of(suite, stage_class, **alone, alpha=1.0)) == {"flow": True, "adapter": True}
        assert reached(stage_of(suite, stage_class, **alone, alpha=0.0)) == {"flow": True, "adapter": False}


@pytest.mark.parametrize("name", ["digits", "checkerboard"])
def test_frozen_flow_map_stays_as_it_is(request, name):
    suite = request.getfixturevalue(name)
    stage = stage_of(suite, FrozenAdapterStage if name == "digits" else PointFrozenAdapterStage)
    before = copy.deepcopy(stage._flow.state_dict())
    assert reached(stage) == {"adapter": True}
    assert all(parameter.grad is None for parameter in stage._flow.parameters())
    assert all(torch.equal(value, before[name]) for name, value in stage._flow.state_dict().items())


def test_an_unconstrained_map_is_trained_by_what_it_observes(checkerboard):
    assert reached(stage_of(checkerboard, PointUnconstrainedStage)) == {"flow": True, "adapter": True}


def test_kl_term_is_the_divergence_from_the_prior(checkerboard):
    stage = stage_of(checkerboard, PointVFMStage)
    _, terms = gradients(stage)
    batch = batch_of(stage)
    x, label = stage._loader.load(batch.positions)
    measurement = stage._tasks[0].measure(x, label, batch.index, "train/0")
    mean, logvar = stage.networks["adapter"](measurement.operator.to_image(measurement.y), label)
    q = torch.distributions.Normal(mean.flatten(1), (0.5 * logvar).exp().flatten(1))
    divergence = torch.distributions.kl_divergence(q, torch.distributions.Normal(0.0, 1.0)).sum(1).mean()
    assert terms["kl"] == pytest.approx(divergence.item(), rel=1e-5)


def test_operators_and_noise_are_new_at_every_step(digits):
    stage = stage_of(digits, VFMStage)
    images, label = torch.zeros(14, 1, 8, 8), torch.zeros(14, dtype=torch.int64)
    first, again, later = (stage._measure(images, label, batch_of(stage, step=step))[0] for step in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.isclose(first, later).flatten(1).all(1).any()


def test_every_row_is_measured_once_under_its_own_problem(digits):
    stage = stage_of(digits, VFMStage)
    batch = batch_of(stage, 70)
    images, label = stage._loader.load(batch.positions)
    observation, problem, measurements = stage._measure(images, label, batch)
    assert len(problem.unique()) == len(measurements) == len(stage._tasks)
    assert sorted(torch.cat([rows for rows, _ in measurements]).tolist()) == list(range(70))
    for rows, measurement in measurements:
        assert {stage._tasks[number].name for number in problem[rows]} == {measurement.condition}
        assert torch.equal(observation[rows], measurement.operator.to_image(measurement.y))
        assert torch.equal(measurement.index, rows)


def test_a_short_training_moves_samples_towards_the_images(digits, tmp_path):
    stage = stage_of(digits, FrozenAdapterStage, steps=40, batch_size=32, warmup_steps=0, validate_every=1000)
    before = stage.evaluate(stage.networks, "validation", 32)["psnr/denoise"]
    networks = Trainer(stage, tmp_path, QUIET).run()
    assert stage.evaluate(networks, "validation", 32)["psnr/denoise"] > before + 1.5


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"alpha": 1.5}, "vfm.alpha"),
        ({"alpha": -0.1}, "vfm.alpha"),
        ({"tau": 0}, "vfm.tau"),
        ({"tau": -1.0}, "vfm.tau"),
        ({"mean_flow_weighting": "gap"}, "vfm.mean_flow_weighting"),
        ({"reduction": "median"}, "vfm.reduction: .*'mean' or 'sum'"),
        ({"adaptive_scope": "total"}, "vfm.adaptive_scope: .*'row', 'term' or 'batch'"),
        ({"architecture": {"adapter": {"kind": "conv"}}}, "Unknown noise adapter 'conv'"),
        ({"architecture": {}}, "vfm.architecture: the adapter of points needs a kind, mlp or affine"),
    ],
)
def test_bad_options_are_named_before_anything_is_trained(tmp_path, values, words):
    suite = suites.get("checkerboard")({})
    with pytest.raises(UserError, match=words):
        train("vfm", suite, {"vfm": values}, tmp_path / "out", CPU, False, QUIET)
    assert not (tmp_path / "out").exists()


def test_unknown_variant_is_named(tmp_path):
    suite = suites.get("checkerboard")({})
    with pytest.raises(UserError, match=r"Unknown training stage 'unconstraned'\. Did you mean 'unconstrained'"):
        train("unconstraned", suite, {}, tmp_path / "out", CPU, False, QUIET)


def test_affine_adapter_starts_at_the_prior_and_has_one_variance():
    adapter = adapter_network((3, 1, 1), {"kind": "affine"})
    mean, logvar = adapter(torch.randn(5, 3, 1, 1), torch.zeros(5, dtype=torch.int64))
    assert (mean == 0).all()
    assert (logvar == 0).all()
    assert logvar.shape == (5, 3, 1, 1)


def test_log_std_is_bounded():
    adapter = adapter_network(POINT, SMALL)
    _, logvar = adapter(1e6 * torch.randn(50, *POINT), torch.zeros(50, dtype=torch.int64))
    assert logvar.min() >= 2 * -6
    assert logvar.max() <= 2 * 3
    assert math.isfinite(logvar.sum().item())
