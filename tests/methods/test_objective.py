"""The objective's terms against their definitions, its scalings and reductions, and a term from outside the package."""

import copy
import io
import json
import re
from pathlib import Path

import pytest
import torch
from rich.console import Console

from vfmbench.methods.objective import Objective, ScalingOptions
from vfmbench.methods.terms import CoupledFlow, Coupling, Divergence, GuidedFlow, Observation, divergence
from vfmbench.models.networks import flow_network
from vfmbench.registry import load_plugin, stages, suites
from vfmbench.training.batches import Batch
from vfmbench.training.train import train

CPU = torch.device("cpu")
SHAPE, ROWS = (2, 1, 1), 32


class Still(torch.nn.Module):
    """u = 0: a flow map that leaves z as it is."""

    def forward(self, x, t, r, label):
        return torch.zeros_like(x)


def coupling_of(z, measurements=(), flow=None, batch=None, **changes):
    generator = torch.Generator().manual_seed(0)
    values = {
        "batch": batch or Batch.draw(0, 100, len(z), generator),
        "encode": lambda: torch.zeros_like(z),
        "label": torch.zeros(len(z), dtype=torch.int64),
        "measurements": measurements,
        "mean": z,
        "logvar": torch.zeros_like(z),
        "z": z,
        "flow": flow or Still(),
        "target": flow or Still(),
        "decode": lambda latents: latents,
        "null_label": 0,
    }
    return Coupling(**{**values, **changes})


@pytest.fixture(scope="module")
def measured():
    """Images of digits, and their measurements under all tasks by groups of rows."""
    suite = suites.get("digits")({})
    stage_class = stages.get("vfm")
    stage = stage_class(suite, stage_class.Options(**{**suite.training["vfm"], "batch_size": 42}), suite.weights, CPU)
    batch = Batch.draw(0, len(suite.dataset("train")), 42, torch.Generator().manual_seed(0))
    images, label = stage._loader.load(batch.positions)
    return images, stage._measure(images, label, batch)[2]


def test_kl_against_torch_distributions():
    mean, logvar = torch.randn(2, 3, 1, 4, 4, dtype=torch.float64)
    q = torch.distributions.Normal(mean, (0.5 * logvar).exp())
    expected = torch.distributions.kl_divergence(q, torch.distributions.Normal(torch.zeros_like(mean), torch.ones_like(mean)))
    for reduction, wanted in (("mean", expected.flatten(1).mean(1)), ("sum", expected.flatten(1).sum(1))):
        assert torch.allclose(divergence(mean, logvar, reduction), wanted)
        term = Divergence(Divergence.Options(reduction=reduction))
        assert torch.equal(term(coupling_of(mean, logvar=logvar))[0], divergence(mean, logvar, reduction))


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_observation_term_is_over_y_with_holes_as_zero(measured, reduction):
    images, groups = measured
    latents = torch.randn_like(images)
    (loss,) = Observation(Observation.Options(reduction=reduction))(coupling_of(latents, groups))
    assert len(groups) > 4
    for rows, measurement in groups:
        residual = measurement.operator.forward(latents[rows]) - measurement.y
        if measurement.operator.observed is not None:
            residual = residual * measurement.operator.observed
        squares = residual.square().flatten(1)
        expected = squares.mean(1) if reduction == "mean" else squares.sum(1)
        torch.testing.assert_close(loss[rows], expected / (2 * 0.1**2), rtol=1e-4, atol=1e-4)


def test_true_images_have_an_observation_loss_of_one_half():
    """The noise alone: E |n|^2 / (2 sigma^2) per entry, where every entry is observed."""
    suite = suites.get("digits")({})
    images = suite.dataset("train").load(range(700))[0].float() / 127.5 - 1
    index = torch.arange(700)
    for name in ("denoise", "gaussian_deblur", "super_resolution"):
        measurement = suite.task(name, {}).measure(images, 0 * index, index, "train/0")
        (loss,) = Observation(Observation.Options())(coupling_of(images, [(index, measurement)]))
        assert loss.mean().item() == pytest.approx(0.5, abs=0.03)


def test_observation_term_is_the_authors_mean_over_images(measured):
    """1/(2 sigma^2) mean((T A x - T y)^2) over all pixels of the observation as an image (release, 200 at sigma = 0.05)."""
    images, groups = measured
    latents = torch.randn_like(images)
    (loss,) = Observation(Observation.Options())(coupling_of(latents, groups))
    for rows, measurement in groups:
        operator = measurement.operator
        difference = operator.to_image(operator.forward(latents[rows])) - operator.to_image(measurement.y)
        if operator.observed is not None:  # else the noise of hidden pixels adds a constant
            difference = difference * operator.observed
        expected = difference.square().flatten(1).mean(1) / (2 * 0.1**2)
        torch.testing.assert_close(loss[rows], expected, rtol=1e-4, atol=1e-4)


def test_the_flow_term_mixes_in_independent_noise():
    z = torch.full((4000, *SHAPE), 9.0)
    mixed = GuidedFlow.mixed(coupling_of(z), 0.7)
    fresh = mixed[(mixed != 9).flatten(1).all(1)]
    assert len(fresh) / 4000 == pytest.approx(0.3, abs=0.03)
    assert fresh.std().item() == pytest.approx(1, abs=0.05)
    assert torch.equal(GuidedFlow.mixed(coupling_of(z), 1.0), z)


def test_the_true_latents_are_encoded_once_and_only_if_asked_for():
    calls = []
    coupling = coupling_of(torch.randn(4, *SHAPE), encode=lambda: calls.append(1) or torch.zeros(4, *SHAPE))
    Divergence(Divergence.Options())(coupling)
    assert not calls
    assert coupling.x is coupling.x
    assert len(calls) == 1


def coupled_loss(weighting="plain", reduction="sum"):
    torch.manual_seed(0)
    network = flow_network(SHAPE, {"kind": "mlp", "width": 16, "depth": 2})
    batch = Batch.draw(0, 100, 64, torch.Generator().manual_seed(0))
    term = CoupledFlow(CoupledFlow.Options(mean_flow_weighting=weighting, reduction=reduction, tau=0.5))
    assert term.weight == pytest.approx(2)
    return term(coupling_of(torch.randn(64, *SHAPE), flow=network, batch=batch))[0].mean().item()


def test_inverse_gap_is_the_authors_weighting():
    """Three quarters of the rows have r = t, where the weight is 1e6; their errors are means over coordinates, here two."""
    assert coupled_loss("inverse_gap") / coupled_loss() == pytest.approx(0.75e6 / 2, rel=0.01)
    assert coupled_loss("inverse_gap", "mean") == coupled_loss("inverse_gap", "sum")
    assert coupled_loss("plain", "mean") == pytest.approx(coupled_loss("plain", "sum") / 2)


class Known:
    """A term with known losses of each row."""

    def __init__(self, name, weight, *losses, adaptive=False):
        self.name, self.weight, self.adaptive = name, weight, adaptive
        self.losses = tuple(torch.tensor(part, dtype=torch.float64, requires_grad=True) for part in losses)

    def __call__(self, coupling):
        return self.losses


def scaled(scope, power=1.0):
    terms = [Known("flow", 2.0, [1.0, 2.0], [3.0, 8.0], adaptive=True), Known("kl", 3.0, [0.5, 1.5])]
    options = ScalingOptions(adaptive_scope=scope, adaptive_power=power, adaptive_constant=0.5)
    loss, logged = Objective(terms, options)(coupling_of(torch.zeros(2, *SHAPE)))
    loss.backward()
    assert {name: value.item() for name, value in logged.items()} == {"flow": 3.5, "kl": 1.0}
    assert list(logged) == ["flow", "kl"]
    return loss.item(), [losses.grad.tolist() for term in terms for losses in term.losses]


def test_scaling_by_row_divides_the_total_of_each():
    first, second = 2 * 2 + 3 * 0.5, 2 * 5 + 3 * 1.5
    loss, (matching, mean_flow, kl) = scaled("row")
    assert loss == pytest.approx((first / (first + 0.5) + second / (second + 0.5)) / 2)
    assert matching == mean_flow == pytest.approx([0.5 / (first + 0.5), 0.5 / (second + 0.5)])
    assert kl == pytest.approx([1.5 / (first + 0.5), 1.5 / (second + 0.5)])


def test_scaling_by_term_divides_the_parts_of_the_flow_term_alone():
    loss, (matching, mean_flow, kl) = scaled("term")
    flow = [(1 / 1.5 + 3 / 3.5) / 2, (2 / 2.5 + 8 / 8.5) / 2]
    assert loss == pytest.approx((2 * flow[0] + 3 * 0.5 + 2 * flow[1] + 3 * 1.5) / 2)
    assert matching == pytest.approx([0.5 / 1.5, 0.5 / 2.5])
    assert mean_flow == pytest.approx([0.5 / 3.5, 0.5 / 8.5])
    assert kl == pytest.approx([1.5, 1.5])


def test_scaling_by_batch_divides_the_mean_total():
    total = 2 * 3.5 + 3 * 1.0
    loss, (matching, _, kl) = scaled("batch")
    assert loss == pytest.approx(total / (total + 0.5))
    assert matching == pytest.approx([0.5 / (total + 0.5)] * 2)
    assert kl == pytest.approx([1.5 / (total + 0.5)] * 2)


@pytest.mark.parametrize("scope", ["row", "term", "batch"])
def test_power_zero_turns_every_scaling_off(scope):
    assert scaled(scope, power=0.0)[0] == pytest.approx(2 * 3.5 + 3 * 1.0)


README = Path(__file__).parents[2] / "README.md"


@pytest.fixture
def small_vfm(tmp_path, monkeypatch):
    """The README's stage with one more term, from a file outside the package."""
    monkeypatch.setattr(stages, "_registered", {})
    (tmp_path / "smallness.py").write_text(re.search(r"```python\n(# smallness\.py\n.*?)```", README.read_text(), re.S)[1])
    load_plugin(str(tmp_path / "smallness.py"))
    return stages.get("small_vfm")


def test_a_new_term_is_one_file(small_vfm, tmp_path):
    suite = suites.get("checkerboard")({})
    few = {"objective": "small_vfm", "steps": 2, "batch_size": 32, "smallness_weight": 0.5}
    train("vfm", suite, {"vfm": few}, tmp_path / "out", CPU, False, Console(file=io.StringIO()))
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["vfm"]["training"]["options"]["smallness_weight"] == 0.5
    assert "smallness" in (tmp_path / "out" / "vfm" / "curves.csv").read_text()


def test_a_new_term_adds_its_weighted_loss(small_vfm):
    suite = suites.get("checkerboard")({})
    own = {key: value for key, value in suite.training["vfm"].items() if key != "objective"}
    losses = []
    for stage_class, more in ((stages.get("point_vfm"), {}), (small_vfm, {"smallness_weight": 0.5})):
        torch.manual_seed(0)
        options = stage_class.Options(**{**own, "adaptive_power": 0.0, **more})
        stage = stage_class(suite, options, suite.weights, CPU)
        batch = Batch.draw(0, 100, ROWS, torch.Generator().manual_seed(0))
        loss, terms = stage.loss(batch, {name: copy.deepcopy(network) for name, network in stage.networks.items()})
        losses.append((loss.item(), {name: value.item() for name, value in terms.items()}))
    (plain, plain_terms), (more, more_terms) = losses
    smallness = more_terms.pop("smallness")
    assert more_terms == plain_terms
    assert smallness > 0
    assert more == pytest.approx(plain + 0.5 * smallness, rel=1e-6)


def test_a_stage_without_its_terms_options_is_refused(small_vfm):
    with pytest.raises(TypeError, match=r"Lacking\.Options must inherit from Smallness\.Options"):
        type("Lacking", (stages.get("point_vfm"),), {"terms": small_vfm.terms})
